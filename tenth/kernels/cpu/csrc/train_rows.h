// Norms and rotary positions while they train: one pass over the rows forward, one backward.
//
// The gradient of a norm's weight is a sum over all rows: 64 rows at a time, then over those sums, always in order.
#pragma once

#include <cmath>

#include "grouped.h"

namespace tenth::TENTH_ISA {

constexpr int kRowsOfSum = 64;

// 1 / sqrt(mean(x^2) + eps) of a row of floats
inline float inverse_root(const float* x, int width, float eps) {
  F squares = zero();
  for (int n = 0; n < width; n += kLanes) {
    const F v = load_numbers(x + n, width - n);
    squares = fma(v, v, squares);
  }
  return 1.0f / std::sqrt(sum_lanes(squares) / (float)width + eps);
}

// pairs (i, i + width / 2) turned by angle i; `back`: by minus the angle
inline void turn_pairs(float* x, int width, const float* cos, const float* sin, bool back) {
  const int half = width / 2;
  for (int n = 0; n < half; n += kLanes) {
    const int count = half - n;
    const F c = load_numbers(cos + n, count), angle = load_numbers(sin + n, count);
    const F s = back ? sub(zero(), angle) : angle;
    const F first = load_numbers(x + n, count), second = load_numbers(x + half + n, count);
    store_numbers(x + n, count, sub(mul(first, c), mul(second, s)));
    store_numbers(x + half + n, count, add(mul(second, c), mul(first, s)));
  }
}

template <class T>
void read_row(float* to, const T* from, const T* plus, T* sum, int width) {
  for (int n = 0; n < width; n += kLanes) {
    F v = load_numbers(from + n, width - n);
    if (plus) {
      v = rounded(add(v, load_numbers(plus + n, width - n)), from);
      store_numbers(sum + n, width - n, v);
    }
    store(to + n, v);  // there is room for whole vectors
  }
}

template <class T>
void train_rows_as(Team& team, const TrainRowsArgs& args) {
  auto* row = (float*)team.local(round_up(args.width, kLanes) * 4);
  const int half = args.width / 2;
  for (int64_t i; (i = team.claim(1)) * kRowsOfSum < args.rows;)
    for (int64_t r = i * kRowsOfSum; r < std::min(args.rows, (i + 1) * kRowsOfSum); ++r) {
      const int64_t at = r * args.width, token = r / args.heads;
      read_row(row, (const T*)args.x + at, args.plus ? (const T*)args.plus + at : nullptr, args.plus ? (T*)args.sum + at : nullptr,
               args.width);
      if (args.weight) {
        const F scale = set1(inverse_root(row, args.width, args.eps));
        for (int n = 0; n < args.width; n += kLanes)
          store(row + n, mul(mul(load(row + n), scale), load_numbers(args.weight + n, args.width - n)));
      }
      if (args.cos) turn_pairs(row, args.width, args.cos + token * half, args.sin + token * half, false);
      for (int n = 0; n < args.width; n += kLanes)
        store_numbers((T*)args.y + at + n, args.width - n, load(row + n));
    }
  team.barrier();
}

// row: x; dy: its gradient behind the norm, which becomes the one before it; adds to the weight's
inline void norm_backward(const float* row, float* dy, const float* weight, float eps, int width, float* dweight) {
  const float root = inverse_root(row, width, eps);
  const F scale = set1(root);
  F dots = zero();
  for (int n = 0; n < width; n += kLanes) {
    const F x = mul(load(row + n), scale), g = load(dy + n);
    store(dweight + n, fma(g, x, load(dweight + n)));
    const F gw = mul(g, load_numbers(weight + n, width - n));
    dots = fma(gw, x, dots);
    store(dy + n, gw);
  }
  const F mean = set1(sum_lanes(dots) / (float)width * root);
  for (int n = 0; n < width; n += kLanes)
    store(dy + n, mul(scale, sub(load(dy + n), mul(load(row + n), mean))));
}

template <class T>
void train_rows_backward_as(Team& team, const TrainRowsBackwardArgs& args) {
  const int half = args.width / 2;
  const int64_t room = round_up(args.width, kLanes), blocks = (args.rows + kRowsOfSum - 1) / kRowsOfSum;
  auto* row = (float*)team.local(2 * room * 4);
  float* dy = row + room;
  auto* parts = args.weight ? (float*)team.shared(blocks * room * 4) : nullptr;
  for (int64_t i; (i = team.claim(1)) < blocks;) {
    if (parts) std::fill_n(parts + i * room, room, 0.0f);
    for (int64_t r = i * kRowsOfSum; r < std::min(args.rows, (i + 1) * kRowsOfSum); ++r) {
      const int64_t at = r * args.width, token = r / args.heads;
      read_row(dy, (const T*)args.dy + at, (const T*)nullptr, (T*)nullptr, args.width);
      if (args.cos) turn_pairs(dy, args.width, args.cos + token * half, args.sin + token * half, true);
      if (args.weight) {
        read_row(row, (const T*)args.x + at, (const T*)nullptr, (T*)nullptr, args.width);
        norm_backward(row, dy, args.weight, args.eps, args.width, parts + i * room);
      }
      for (int n = 0; n < args.width; n += kLanes) {
        const int count = args.width - n;
        const F dx = load(dy + n);
        store_numbers((T*)args.dx + at + n, count,
                      args.dsum ? add(dx, load_numbers((const T*)args.dsum + at + n, count)) : dx);
      }
    }
  }
  team.barrier();
  if (!args.dweight || !args.weight) return;
  for (int64_t n; (n = team.claim(1) * kLanes) < args.width;) {
    F sum = zero();
    for (int64_t i = 0; i < blocks; ++i) sum = add(sum, load(parts + i * room + n));
    store_numbers(args.dweight + n, (int)(args.width - n), sum);
  }
  team.barrier();
}

inline void train_rows(Team& team, const TrainRowsArgs& args) {
  args.half ? train_rows_as<uint16_t>(team, args) : train_rows_as<float>(team, args);
}
inline void train_rows_backward(Team& team, const TrainRowsBackwardArgs& args) {
  args.half ? train_rows_backward_as<uint16_t>(team, args) : train_rows_backward_as<float>(team, args);
}

}  // namespace tenth::TENTH_ISA
