// The arithmetic of attention: a block of 64 keys beside a few rows, in registers.
//
// Keys and values are read as pairs of bfloat16: 16 keys, or 16 channels, side by side. Either they are widened and
// multiplied in float32, or (`halves`) the other factor is rounded to bfloat16 as well, and pairs meet pairs.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cstring>
#include <limits>

#include "simd.h"

namespace tenth::TENTH_ISA {

constexpr int kKeys = 64;              // of a block
constexpr int kRuns = kKeys / kLanes;  // of 16 keys, each within one page
constexpr int kMaxRows = 16;           // side by side

// Where 16 keys of a block lie, their values, and those of the next block: each load asks for its like there. Pages are
// in no order, and a processor does not look ahead into a page that it has not seen.
struct Run { const uint8_t *keys, *values, *next_keys, *next_values; };

// What computes `width` rows; there may be fewer, but the memory of all. `sees`: how many keys of the block, from the
// first on, each row may look at, never fewer than the row before.
struct RowKernels {
  int width;
  // x times scale as row w of q
  void (*place)(const float* x, float scale, int size, int w, float* q);
  // scores s [rows][kKeys] of the first `count` runs
  void (*scores)(const Run* runs, const float* q, int size, int count, float* s);
  // y [rows][size] times shrink [rows], plus the values by their weights s
  void (*values)(const Run* runs, const float* s, const int* sees, int rows, int size, const float* shrink, float* y);
};

// Loops over sums are unrolled by order: one that is not keeps the array in memory, and every pass stores it.

// W rows times G runs of 16 keys: s [W][kKeys]. q [size][W] float32, or [size / 2][W] pairs
template <bool halves, int W, int G>
void score_panel(const Run* runs, const float* q, int size, float* s) {
  F sum[W][G];
#pragma GCC unroll 12
  for (int w = 0; w < W; ++w)
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) sum[w][g] = zero();
  for (int pair = 0; pair < size / 2; ++pair) {
    I k[G];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      k[g] = loadi((const int32_t*)runs[g].keys + pair * kLanes);
      prefetch(runs[g].next_keys + pair * 4 * kLanes);
    }
    if constexpr (halves) {
#pragma GCC unroll 12
      for (int w = 0; w < W; ++w) {
        const B x = repeat4(q + pair * W + w);
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) sum[w][g] = dot_bf16(sum[w][g], as_bytes(k[g]), x);
      }
    } else {
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        F part[G];
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) part[g] = i ? pair_high(k[g]) : pair_low(k[g]);
#pragma GCC unroll 12
        for (int w = 0; w < W; ++w) {
          const F x = set1(q[(2 * pair + i) * W + w]);
#pragma GCC unroll 4
          for (int g = 0; g < G; ++g) sum[w][g] = fma(part[g], x, sum[w][g]);
        }
      }
    }
  }
#pragma GCC unroll 12
  for (int w = 0; w < W; ++w)
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) store(s + w * kKeys + g * kLanes, sum[w][g]);
}

// W rows of weights times the values of keys from (even) to `to`, 16 G channels of them from `channel` on, added to
// y [W][size] times shrink[w]. p [W][kKeys] float32; where `halves`, each row begins with as many bfloat16
template <bool halves, int W, int G>
void value_panel(const Run* runs, const float* p, int from, int to, int channel, int size, const float* shrink,
                 float* y) {
  y += channel;
  F sum[W][G];
#pragma GCC unroll 12
  for (int w = 0; w < W; ++w)
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) sum[w][g] = mul(load(y + (size_t)w * size + g * kLanes), set1(shrink[w]));
  auto one = [&](int key, const F(&v)[G]) __attribute__((always_inline)) {
#pragma GCC unroll 12
    for (int w = 0; w < W; ++w) {
      const F x = set1(p[w * kKeys + key]);
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) sum[w][g] = fma(v[g], x, sum[w][g]);
    }
  };
  auto two = [&](int key, const I(&v)[G]) __attribute__((always_inline)) {
#pragma GCC unroll 12
    for (int w = 0; w < W; ++w) {
      const B x = repeat4((const uint16_t*)(p + w * kKeys) + key);
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) sum[w][g] = dot_bf16(sum[w][g], as_bytes(v[g]), x);
    }
  };
  for (int run = from / kLanes; run * kLanes < to; ++run) {
    const int first = run * kLanes, end = std::min(to, first + kLanes);
    int key = std::max(from, first);
    const size_t offset = (size_t)((key - first) / 2) * size + channel;
    const int32_t* at = (const int32_t*)runs[run].values + offset;
    const int32_t* next = (const int32_t*)runs[run].next_values + offset;
    I v[G];
    F part[G];
    for (; key + 2 <= end; key += 2, at += size, next += size) {
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        v[g] = loadi(at + g * kLanes);
        prefetch(next + g * kLanes);
      }
      if constexpr (halves) {
        two(key, v);
      } else {
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) part[g] = pair_low(v[g]);
        one(key, part);
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) part[g] = pair_high(v[g]);
        one(key + 1, part);
      }
    }
    if (key < end) {  // the other token of the pair is none of this row's business
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        v[g] = and_bits(loadi(at + g * kLanes), set1i(0xffff));
        part[g] = pair_low(v[g]);
      }
      if constexpr (halves)
        two(key, v);
      else
        one(key, part);
    }
  }
#pragma GCC unroll 12
  for (int w = 0; w < W; ++w)
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) store(y + (size_t)w * size + g * kLanes, sum[w][g]);
}

template <bool halves, int W>
void place_row(const float* x, float scale, int size, int w, float* q) {
  alignas(64) float part[kLanes];
  alignas(64) uint16_t half[kLanes];
  for (int c = 0; c < size; c += kLanes) {
    const F scaled = mul(load(x + c), set1(scale));
    if (halves) {
      store_bf16(half, scaled);
      for (int i = 0; i < kLanes; i += 2) std::memcpy(q + (c + i) / 2 * W + w, half + i, 4);
    } else {
      store(part, scaled);
      for (int i = 0; i < kLanes; ++i) q[(c + i) * W + w] = part[i];
    }
  }
}

template <bool halves, int W, int G>
void row_scores(const Run* runs, const float* q, int size, int count, float* s) {
  int i = 0;
  for (; i + G <= count; i += G) score_panel<halves, W, G>(runs + i, q, size, s + i * kLanes);
  for (; i < count; ++i) score_panel<halves, W, 1>(runs + i, q, size, s + i * kLanes);
}

template <bool halves, int W, int G>
void all_channels(const Run* runs, const float* p, int from, int to, int size, const float* shrink, float* y) {
  int c = 0;
  for (; c + G * kLanes <= size; c += G * kLanes) value_panel<halves, W, G>(runs, p, from, to, c, size, shrink, y);
  for (; c < size; c += kLanes) value_panel<halves, W, 1>(runs, p, from, to, c, size, shrink, y);
}

template <bool halves, int W, int G>
void row_values(const Run* runs, const float* s, const int* sees, int rows, int size, const float* shrink, float* y) {
  const int least = sees[0], most = sees[rows - 1], common = least == most ? least : least & ~1;
  const float one = 1.0f;
  all_channels<halves, W, G>(runs, s, 0, common, size, shrink, y);
  if (common == most) return;
  for (int r = 0; r < rows; ++r)  // on the diagonal some rows see more than others
    all_channels<halves, 1, 4>(runs, s + r * kKeys, common, sees[r], size, &one, y + (size_t)r * size);
}

template <bool halves, int W, int G>
constexpr RowKernels row_kernels() {
  return {W, place_row<halves, W>, row_scores<halves, W, G>, row_values<halves, W, G>};
}

// as many sums as there are registers for
template <bool halves>
inline constexpr RowKernels kRowKernels[] = {
#if defined(TENTH_AVX512)
    row_kernels<halves, 1, 4>(), row_kernels<halves, 2, 4>(),  row_kernels<halves, 4, 4>(),
    row_kernels<halves, 8, 2>(), row_kernels<halves, 12, 2>(),
#else
    row_kernels<halves, 1, 4>(), row_kernels<halves, 2, 2>(), row_kernels<halves, 4, 1>(),
#endif
};

// for the first of `rows` rows: the widest that they fill, or the next if they nearly do
template <int N>
inline const RowKernels& kernels_for(int rows, const RowKernels (&all)[N]) {
  int best = 0;
  while (best + 1 < N && all[best + 1].width * 3 <= rows * 4) ++best;
  return all[best];
}

// one row of scores, of which the first `sees` count, to weights; returns their sum by lanes, added to `total`
template <bool sees_all>
inline __attribute__((always_inline)) F weigh(float* x, int sees, bool halves, F top, F total) {
  const int runs = sees_all ? kRuns : (sees + kLanes - 1) / kLanes;
#pragma GCC unroll 4
  for (int g = 0; g < runs; ++g) {
    const F p = exp2_falling(sub(load(x + g * kLanes), top));
    if (halves)
      store_bf16((uint16_t*)x + g * kLanes, p);
    else
      store(x + g * kLanes, p);
    total = add(total, p);
  }
  // a tile of AMX takes the weights of 32 keys: zero where no more than 16 of them were seen
  if (halves && runs % 2) store_bf16((uint16_t*)x + runs * kLanes, zero());
  return total;
}

// the largest of one row of scores; what does not count is minus infinity from here on, up to a whole run
inline float largest(float* x, int sees) {
  if (sees == kKeys)
    return max_lanes(max(max(load(x), load(x + kLanes)), max(load(x + 2 * kLanes), load(x + 3 * kLanes))));
  F top = set1(-FLT_MAX);
  int g = 0;
  for (; g < sees / kLanes; ++g) top = max(top, load(x + g * kLanes));
  if (const int rest = sees % kLanes) {
    const F none = set1(-std::numeric_limits<float>::infinity());
    const F masked = select((uint16_t)((1 << rest) - 1), load(x + g * kLanes), none);
    store(x + g * kLanes, masked);
    top = max(top, masked);
  }
  return max_lanes(top);
}

// `rows` (at most 16) rows of scores s [rows][kKeys], of which row r has the first sees[r], to weights: powers of two
// of their distance from the largest so far. shrink: what became of a weight 1 given before; best, sum: see State.
// weigh(x, sees, top, total) does it for one row
template <class Weigh>
void soften_rows(float* s, const int* sees, int rows, float* best, float* sum, float* shrink, const Weigh& weigh) {
  alignas(64) float most[kLanes];
  std::fill(most, most + kLanes, -FLT_MAX);
  for (int r = 0; r < rows; ++r) most[r] = largest(s + r * kKeys, sees[r]);
  const F before = load_first(best, rows), now = max(before, load(most));
  store_first(best, rows, now);
  store(most, now);
  store(shrink, exp2_falling(sub(before, now)));
  for (int r = 0; r < rows; ++r) {
    float* x = s + r * kKeys;
    const F top = set1(most[r]), before = mul(load(sum + r * kLanes), set1(shrink[r]));
    store(sum + r * kLanes, weigh(x, sees[r], top, before));
  }
}

template <bool halves>
void soften(float* s, const int* sees, int rows, float* best, float* sum, float* shrink) {
  soften_rows(s, sees, rows, best, sum, shrink, [](float* x, int sees, F top, F total) {
    return sees == kKeys ? weigh<true>(x, kKeys, halves, top, total) : weigh<false>(x, sees, halves, top, total);
  });
}

}  // namespace tenth::TENTH_ISA
