// The inner product of everything: a panel of tiles (16 rows each) times a block of tokens, in registers.
//
// Integers are summed exactly within a group of 32 columns, groups in float32 in order of columns. A (row, token) pair
// has its own lane and its own chain of additions whatever T and M are: that is what makes products batch-invariant.
#pragma once

#include "ahead.h"
#include "matrix.h"
#include "pack.h"
#include "simd.h"

namespace tenth::TENTH_ISA {

enum Kind { kInt4, kInt4Min, kInt8, kInt8Min, kInt8Half, kBf16, kFp32, kKinds, kInt4Super };  // the last: superblock.h

inline Kind kind_of(const Matrix& w) {
  if (w.bits == 4) return w.step_bits == 4 ? kInt4Super : w.minimums ? kInt4Min : kInt4;
  if (w.bits == 8) return w.group == 16 ? kInt8Half : w.minimums ? kInt8Min : kInt8;
  return w.bits == 16 ? kBf16 : kFp32;
}
inline bool is_float(Kind kind) { return kind == kBf16 || kind == kFp32; }

// widths of a block of tokens, and the tiles a panel takes beside each: as many sums as there are registers for
#if defined(TENTH_AVX512)
constexpr int kWidths[] = {1, 2, 4, 8, 12};
constexpr int kTiles[] = {4, 4, 4, 2, 2};
#else
constexpr int kWidths[] = {1, 2, 4};
constexpr int kTiles[] = {4, 2, 1};
#endif
constexpr int kShapes = sizeof kWidths / sizeof *kWidths;
constexpr int kMaxTiles = 4, kMaxWidth = kWidths[kShapes - 1];

struct PanelArgs {
  const uint8_t* quants[kMaxTiles];
  const float* scales[kMaxTiles];    // [groups][16]
  const float* minimums[kMaxTiles];  // [groups][16]
  int group_shift;                   // steps of 32 columns a group, as a power of two
  int steps;
  const void* x;  // a Block of `padded` columns, or floats
  int padded;
  Ahead ahead;
};

template <int kBits, int T, int M>
inline __attribute__((always_inline)) void dot_half_step(I (&acc)[T][M], const PanelArgs& a, size_t offset,
                                                         const int8_t* q) {
  constexpr int kChunks = kBits == 4 ? 2 : 4;
#pragma GCC unroll 4
  for (int c = 0; c < kChunks; ++c) {
    B w[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) w[t] = load_chunk(a.quants[t] + offset + c * 64);
    if constexpr (kBits == 4) {
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        const B x = repeat4(q + ((2 * c) * M + m) * 4);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) acc[t][m] = dot(acc[t][m], low4(w[t]), x);
      }
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        const B x = repeat4(q + ((2 * c + 1) * M + m) * 4);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) acc[t][m] = dot(acc[t][m], high4(w[t]), x);
      }
    } else {
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        const B x = repeat4(q + (c * M + m) * 4);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) acc[t][m] = dot8(acc[t][m], w[t], x);
      }
    }
  }
}

// what the sums start from: minus the zero point times the sum of the activations
template <Kind kind>
constexpr int kZero = kind == kInt4      ? -8
                      : kind == kInt4Min ? 0
                      : kind == kInt8Min ? 128 - kDot8Offset
                                         : -kDot8Offset;

template <Kind kind, int T, int M>
void integer_panel(PanelArgs& a, float* out) {
  Ahead ahead = a.ahead;
  constexpr int kBits = kind == kInt4 || kind == kInt4Min ? 4 : 8;
  constexpr bool kMin = kind == kInt4Min || kind == kInt8Min, kHalf = kind == kInt8Half;
  constexpr size_t kHalfBytes = 16 * 16 * kBits / 8;
  const Block x(const_cast<void*>(a.x), a.padded, M);
  F y[T][M];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) y[t][m] = zero();
  for (int s = 0; s < a.steps; ++s) {
    ahead.ask<T * (kBits + 1)>();  // about what a step has
    const int8_t* q = x.q + (size_t)s * kStep * M;
    const size_t offset = (size_t)s * 2 * kHalfBytes, group = (size_t)(s >> a.group_shift) * kLanes;
    const float* scale = x.scale + (size_t)s * M;
    if constexpr (!kHalf) {
      I acc[T][M];
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        const I start = set1i(kZero<kind> * x.sum[(size_t)s * M + m]);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) acc[t][m] = start;
      }
      dot_half_step<kBits, T, M>(acc, a, offset, q);
      dot_half_step<kBits, T, M>(acc, a, offset + kHalfBytes, q + 16 * M);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const F ws = load(a.scales[t] + group);
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m) y[t][m] = fma(to_float(acc[t][m]), mul(ws, set1(scale[m])), y[t][m]);
        if constexpr (kMin) {
          const F wm = load(a.minimums[t] + group);
#pragma GCC unroll 12
          for (int m = 0; m < M; ++m) y[t][m] = fma(wm, set1(x.offset[(size_t)s * M + m]), y[t][m]);
        }
      }
    } else {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        I acc[T][M];
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m) {
          const size_t at = (size_t)s * M + m;
          const I start = set1i(kZero<kind> * (half ? x.sum[at] - x.sum_low[at] : x.sum_low[at]));
#pragma GCC unroll 4
          for (int t = 0; t < T; ++t) acc[t][m] = start;
        }
        dot_half_step<kBits, T, M>(acc, a, offset + half * kHalfBytes, q + half * 16 * M);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
          const F ws = load(a.scales[t] + (size_t)(2 * s + half) * kLanes);
#pragma GCC unroll 12
          for (int m = 0; m < M; ++m) y[t][m] = fma(to_float(acc[t][m]), mul(ws, set1(scale[m])), y[t][m]);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) store(out + (t * M + m) * kLanes, y[t][m]);
  a.ahead = ahead;
}

template <Kind kind, int T, int M>
void float_panel(PanelArgs& a, float* out) {
  Ahead ahead = a.ahead;
  const float* x = (const float*)a.x;
  F y[T][M];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) y[t][m] = zero();
  constexpr int kColumns = kind == kBf16 ? 2 : 1;
  for (int c = 0; c < a.padded / kColumns; ++c) {
    ahead.ask<T>();
#pragma GCC unroll 2
    for (int half = 0; half < kColumns; ++half) {
      F w[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const I lanes = loadi((const int32_t*)(a.quants[t] + (size_t)c * 64));
        w[t] = kind == kFp32 ? bits_to_float(lanes) : half ? pair_high(lanes) : pair_low(lanes);
      }
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        const F xm = set1(x[((size_t)c * kColumns + half) * M + m]);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) y[t][m] = fma(w[t], xm, y[t][m]);
      }
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) store(out + (t * M + m) * kLanes, y[t][m]);
  a.ahead = ahead;
}

using PanelFn = void (*)(PanelArgs&, float* out);

template <Kind kind, int T, int M>
constexpr PanelFn panel_fn() {
  if constexpr (kind == kBf16 || kind == kFp32)
    return float_panel<kind, T, M>;
  else
    return integer_panel<kind, T, M>;
}

// [shape][0: kTiles tiles, 1: one tile]
struct PanelTable { PanelFn at[kKinds][kShapes][2]; };

template <Kind kind, int shape>
constexpr void fill_shape(PanelTable& table) {
  table.at[kind][shape][0] = panel_fn<kind, kTiles[shape], kWidths[shape]>();
  table.at[kind][shape][1] = panel_fn<kind, 1, kWidths[shape]>();
  if constexpr (shape + 1 < kShapes) fill_shape<kind, shape + 1>(table);
}
template <int kind>
constexpr void fill_kind(PanelTable& table) {
  fill_shape<(Kind)kind, 0>(table);
  if constexpr (kind + 1 < kKinds) fill_kind<kind + 1>(table);
}
constexpr PanelTable make_panels() {
  PanelTable table{};
  fill_kind<0>(table);
  return table;
}
inline constexpr PanelTable kPanels = make_panels();

// the scales of `count` tiles as float32: [count][groups][16], and the minimums behind them
struct TileScales {
  static size_t bytes(const Matrix& w) {
    return is_float(kind_of(w)) ? 0 : (size_t)kMaxTiles * 2 * (w.padded / w.group) * kLanes * sizeof(float);
  }
};

// the 4-bit steps of a group: two groups share 16 bytes, the first has the low halves
inline F nibble_steps(const uint8_t* steps, int group) {
  const I both = load_ubytes(steps + group / 2 * kLanes);
  return to_float(shift_right(shift_left(both, group % 2 ? 24 : 28), 28));
}

inline void read_scales(const Matrix& w, const uint8_t* tile, float* scales, float* minimums) {
  const int groups = w.padded / w.group;
  const uint16_t* half = (const uint16_t*)(tile + w.scales);
  const uint16_t* least = (const uint16_t*)(tile + w.minimums);
  if (!w.sub_scales) {
    for (int g = 0; g < groups; ++g) store(scales + g * kLanes, load_half(half + g * kLanes));
    if (w.minimums)
      for (int g = 0; g < groups; ++g) store(minimums + g * kLanes, load_half(least + g * kLanes));
    return;
  }
  const int8_t* steps = (const int8_t*)(tile + w.sub_scales);
  const int8_t* sub_least = (const int8_t*)(tile + w.sub_minimums);
  for (int g = 0; g < groups; ++g) {
    const int block = g * w.group / 256;
    const F step = w.step_bits == 4 ? nibble_steps((const uint8_t*)steps, g) : load_bytes(steps + g * kLanes);
    store(scales + g * kLanes, mul(load_half(half + block * kLanes), step));
    if (w.minimums) {
      const F m = mul(load_half(least + block * kLanes), load_bytes(sub_least + g * kLanes));
      store(minimums + g * kLanes, sub(zero(), m));
    }
  }
}

}  // namespace tenth::TENTH_ISA
