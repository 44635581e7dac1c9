// What a decoder does to single rows: norms, rotary positions, activations, sums, the choice of experts.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops.h"
#include "simd.h"

namespace tenth::TENTH_ISA {

// fn(row) for every row, in pieces large enough to be worth handing out
template <class Fn>
void each_row(Team& team, int rows, int columns, const Fn& fn) {
  const int64_t piece = std::max(1, 4096 / columns);
  for (int64_t i; (i = team.claim(piece)) < rows;)
    for (int64_t row = i; row < std::min<int64_t>(i + piece, rows); ++row) fn(row);
  team.barrier();
}

// fn(first column, lanes) for 16 columns at a time, and for the rest of them
template <class Fn>
inline __attribute__((always_inline)) void each_lanes(int columns, const Fn& fn) {
  int c = 0;
  for (; c + kLanes <= columns; c += kLanes) fn(c, kLanes);
  if (c < columns) fn(c, columns - c);
}

inline F read(const float* p, int n) { return n == kLanes ? load(p) : load_first(p, n); }
inline void write(float* p, int n, F a) {
  if (n == kLanes)
    store(p, a);
  else
    store_first(p, n, a);
}

// sums of products of a row in a fixed order: four sums of 16 lanes take turns
struct SquareSum {
  F part[4] = {zero(), zero(), zero(), zero()};

  void take(F x, int c) {
    F& sum = part[c / kLanes % 4];
    sum = fma(x, x, sum);
  }
  // 1 / sqrt(mean + eps); NaN, not 0, of an infinite mean: an infinity spoils its row
  float scale(int columns, float eps) const {
    const float mean = sum_lanes(add(add(part[0], part[1]), add(part[2], part[3]))) / (float)columns;
    return 1.0f / std::sqrt(mean + eps) + (mean - mean);
  }
};

inline void rms_norm(Team& team, const RmsNormArgs& a) {
  each_row(team, a.tokens, a.columns, [&](int64_t row) {
    const float* x = a.x + row * a.x_stride;
    float* y = a.y + row * a.y_stride;
    SquareSum squares;
    if (a.add) {
      const float* z = a.add + row * a.add_stride;
      float* sum = a.sum + row * a.sum_stride;
      each_lanes(a.columns, [&](int c, int n) {
        const F s = add(read(x + c, n), read(z + c, n));
        write(sum + c, n, s);
        squares.take(s, c);
      });
      x = sum;
    } else {
      each_lanes(a.columns, [&](int c, int n) { squares.take(read(x + c, n), c); });
    }
    const F scale = set1(squares.scale(a.columns, a.eps));
    each_lanes(a.columns, [&](int c, int n) {
      write(y + c, n, mul(mul(read(x + c, n), scale), read(a.weight + c, n)));
    });
  });
}

inline void head(const float* x, const float* weight, float eps, const float* cos, const float* sin, int size,
                 float* y) {
  F scale = set1(1.0f);
  if (weight) {
    SquareSum squares;
    each_lanes(size, [&](int c, int n) { squares.take(read(x + c, n), c); });
    scale = set1(squares.scale(size, eps));
  }
  const int half = size / 2;
  each_lanes(half, [&](int c, int n) {
    F first = read(x + c, n), second = read(x + half + c, n);
    if (weight) {
      first = mul(mul(first, scale), read(weight + c, n));
      second = mul(mul(second, scale), read(weight + half + c, n));
    }
    const F cosine = read(cos + c, n), sine = read(sin + c, n);
    write(y + c, n, sub(mul(first, cosine), mul(second, sine)));
    write(y + half + c, n, add(mul(second, cosine), mul(first, sine)));
  });
}

inline void heads(Team& team, const HeadsArgs& a) {
  each_row(team, a.tokens, (a.q.heads + a.k.heads) * a.head_size, [&](int64_t row) {
    const int64_t angles = row * (a.head_size / 2);
    for (const HeadsArgs::Part* part : {&a.q, &a.k})
      for (int h = 0; h < part->heads; ++h) {
        const int64_t at = (int64_t)h * a.head_size;
        head(part->x + row * part->x_stride + at, part->weight, a.eps, a.cos + angles, a.sin + angles, a.head_size,
             part->y + row * part->y_stride + at);
      }
  });
}

inline void silu_mul(Team& team, const SiluMulArgs& a) {
  each_row(team, a.tokens, a.columns, [&](int64_t row) {
    const float *gate = a.gate + row * a.gate_stride, *up = a.up + row * a.up_stride;
    float* y = a.y + row * a.y_stride;
    each_lanes(a.columns, [&](int c, int n) { write(y + c, n, mul(silu(read(gate + c, n)), read(up + c, n))); });
  });
}

inline void add_rows(Team& team, const AddArgs& a) {
  each_row(team, a.tokens, a.columns, [&](int64_t row) {
    const float *x = a.x + row * a.x_stride, *z = a.z + row * a.z_stride;
    float* y = a.y + row * a.y_stride;
    each_lanes(a.columns, [&](int c, int n) { write(y + c, n, add(read(x + c, n), read(z + c, n))); });
  });
}

inline void scale_rows(Team& team, const ScaleRowsArgs& a) {
  each_row(team, a.tokens, a.columns, [&](int64_t row) {
    const float* z = a.z + row * a.z_stride;
    float* y = a.y + row * a.y_stride;
    const F one = set1(1.0f);
    const F gate = a.g ? div(one, add(one, exp(set1(-a.g[row * a.g_stride])))) : one;
    each_lanes(a.columns, [&](int c, int n) { write(y + c, n, fma(gate, read(z + c, n), read(y + c, n))); });
  });
}

// sum of e^(x - most) over a row padded with -infinity to whole lanes; e^(x - most) itself to y, which may be x
inline float exponentials(const float* x, int count, float most, float* y) {
  F sum = zero();
  for (int c = 0; c < count; c += kLanes) {
    const F e = exp(sub(load(x + c), set1(most)));
    store(y + c, e);
    sum = add(sum, e);
  }
  return sum_lanes(sum);
}

constexpr float kLeast = -std::numeric_limits<float>::infinity();

// the ids of the largest of x, which is overwritten: chosen ones become -infinity. `taken`: a bit a number, zeros
inline void take_largest(float* x, uint16_t* taken, int chunks, int top_k, int64_t* ids, float* values) {
  for (int k = 0; k < top_k; ++k) {
    F best = load(x);
    for (int c = 1; c < chunks; ++c) best = max(best, load(x + c * kLanes));
    values[k] = max_lanes(best);
    const F most = set1(values[k]);
    for (int c = 0; c < chunks; ++c) {
      // without `taken`, a row whose rest is all -infinity would name one expert twice
      const int equal = ~less(load(x + c * kLanes), most) & ~taken[c] & 0xffff;
      if (!equal) continue;
      const int lane = __builtin_ctz(equal);
      ids[k] = c * kLanes + lane;
      taken[c] |= 1 << lane;
      x[ids[k]] = kLeast;
      break;
    }
  }
}

// sum of e^(min(x, 0) - most) / (1 + e^-|x|), which is sigmoid(x) e^-most, over a row padded with -infinity to whole lanes;
// each to y, which may be x
inline float sigmoids(const float* x, int count, float most, float* y) {
  const F one = set1(1.0f);
  F sum = zero();
  for (int c = 0; c < count; c += kLanes) {
    const F lanes = load(x + c);
    const F s = div(exp(sub(min(lanes, zero()), set1(most))), add(one, exp(sub(zero(), abs(lanes)))));
    store(y + c, s);
    sum = add(sum, s);
  }
  return sum_lanes(sum);
}

// experts outside of the row's best groups become -infinity and count as taken; `best`: room for a number a group
inline void keep_best_groups(float* x, uint16_t* taken, const ChooseArgs& a, float* best) {
  const int size = a.experts / a.groups;
  for (int g = 0; g < a.groups; ++g) {
    float first = kLeast, second = kLeast;
    for (const float* p = x + g * size; p < x + (g + 1) * size; ++p) {
      second = std::max(second, std::min(first, *p));
      first = std::max(first, *p);
    }
    best[g] = size > 1 ? first + second : first;
  }
  for (int g = 0; g < a.groups; ++g) {
    int before = 0;
    for (int other = 0; other < a.groups; ++other)
      before += best[other] > best[g] || (best[other] == best[g] && other < g);
    if (before < a.top_groups) continue;
    for (int e = g * size; e < (g + 1) * size; ++e) {
      x[e] = kLeast;
      taken[e / kLanes] |= 1 << e % kLanes;
    }
  }
}

// a row's scores where they are not its logits: sigmoids, biased; -infinity for a NaN
inline void biased_scores(const float* logits, const ChooseArgs& a, float* x) {
  for (int c = 0; c < a.experts; c += kLanes) {
    const int n = std::min(kLanes, a.experts - c), all = (1 << n) - 1;
    F score = read(logits + c, n);
    if (a.sigmoid) score = div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), score))));
    if (a.bias) score = add(score, read(a.bias + c, n));
    store(x + c, select((uint16_t)(all & ~is_nan(score)), score, set1(kLeast)));
  }
}

// How many of a token's experts are left, in order of the choice: the fewest that have `mass` of the sum of all scores,
// `cap` at most, one at least. Scores may share a factor.
inline int left_of(const float* scores, int top_k, float mass, int64_t cap) {
  const int most = (int)std::min<int64_t>(top_k, cap);
  float total = 0, sum = scores[0];
  for (int k = 0; k < top_k; ++k) total += scores[k];
  int left = 1;
  for (; left < most && !(mass < 1 && sum >= mass * total); ++left) sum += scores[left];
  return left;
}

inline void choose(Team& team, const ChooseArgs& a) {
  const int chunks = (a.experts + kLanes - 1) / kLanes, top_chunks = (a.top_k + kLanes - 1) / kLanes;
  float* x = (float*)team.local((2 * (size_t)chunks + 2 * top_chunks) * kLanes * sizeof(float) +
                                chunks * sizeof(uint16_t));
  float *best = x + chunks * kLanes, *values = best + chunks * kLanes, *e = values + top_chunks * kLanes;
  uint16_t* taken = (uint16_t*)(e + top_chunks * kLanes);
  const bool changed = a.sigmoid || a.bias;  // scores are not logits
  each_row(team, a.tokens, a.experts * 4, [&](int64_t row) {
    const float* logits = a.logits + row * a.logits_stride;
    int64_t* ids = a.ids + row * a.top_k;
    float* gates = a.gates + row * a.top_k;
    bool spoiled = false;
    for (int c = 0; c < chunks; ++c) {
      const int n = std::min(kLanes, a.experts - c * kLanes), all = (1 << n) - 1;
      const F lanes = read(logits + c * kLanes, n);
      const int nan = is_nan(lanes);
      spoiled |= nan != 0;
      store(x + c * kLanes, select((uint16_t)(all & ~nan), lanes, set1(kLeast)));
      taken[c] = (uint16_t)~all;
    }
    float most = kLeast, total = 1.0f;
    if (!a.renormalise && !a.sigmoid) {
      for (int c = 0; c < chunks; ++c) most = std::max(most, max_lanes(load(x + c * kLanes)));
      F sum = zero();
      for (int c = 0; c < chunks; ++c) sum = add(sum, exp(sub(load(x + c * kLanes), set1(most))));
      total = sum_lanes(sum);
    }
    if (changed) biased_scores(logits, a, x);
    if (a.top_groups < a.groups) keep_best_groups(x, taken, a, best);
    std::fill(values, values + top_chunks * kLanes, kLeast);
    take_largest(x, taken, chunks, a.top_k, ids, values);
    for (int k = 0; changed && k < a.top_k; ++k) values[k] = std::isnan(logits[ids[k]]) ? kLeast : logits[ids[k]];
    const auto scores = a.sigmoid ? sigmoids : exponentials;
    const auto chosen = [&](int count) {  // the sum of the first ones' scores, up to a factor that `e` shares
      if (a.renormalise) most = changed ? *std::max_element(values, values + count) : values[0];
      if (a.sigmoid) most = a.renormalise ? std::min(most, 0.0f) : 0.0f;
      return scores(values, a.top_k, most, e);
    };
    const float sum = chosen(a.top_k);
    if (a.renormalise) total = sum;
    int left = a.top_k;
    if (a.mass) left = left_of(e, a.top_k, spoiled ? 1.0f : a.mass[row], a.cap[row]);
    if (left < a.top_k && a.rescale) {
      std::fill(values + left, values + a.top_k, kLeast);
      total = chosen(left);
    }
    for (int k = 0; k < a.top_k; ++k) {
      const float gate = spoiled ? std::numeric_limits<float>::quiet_NaN() : e[k] / total * a.scale;
      gates[k] = k < left ? gate : 0.0f;
    }
  });
}

}  // namespace tenth::TENTH_ISA
