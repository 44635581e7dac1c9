// Products with the format int4-g16-s4: groups of 16 columns with an integer step, superblocks of 256 with a float
// scale. Within a superblock everything is an exact integer sum, so there is freedom in how it is formed: for a few
// tokens the sum of a group is multiplied by its step, for many the steps are multiplied into the weights first, and
// the tiles of AMX take those bytes as they are. All give the same bits.
#pragma once

#include <algorithm>

#include "ahead.h"
#include "matrix.h"
#include "pack.h"
#include "simd.h"

namespace tenth::TENTH_ISA {

constexpr int kSuper = 256;

inline int supers(int padded) { return (padded + kSuper - 1) / kSuper; }

// ---- activations: INT8 by token and superblock

// how a block of tokens lies: four columns of each token in turn, as signed bytes, or with 128 added; or 64 columns of
// each token in turn, which is a tile of AMX
enum class Lay { kSigned, kUnsigned, kTile };

struct SuperBlock {
  int8_t* q;        // [padded / 4][width][4] or [padded / 64][width][64]
  float* scale;     // [supers][width]
  int32_t* minus8;  // [padded / 16][width]: -8 times the sum of a group of 16 columns; read where q is kSigned

  static size_t bytes(int padded, int width) {
    const size_t columns = (size_t)(padded + 63) / 64 * 64;
    return (columns * width + ((size_t)supers(padded) + padded / 16) * width * 4 + 63) / 64 * 64;
  }
  SuperBlock(void* memory, int padded, int width) {
    q = (int8_t*)memory;
    scale = (float*)(q + (size_t)((padded + 63) / 64 * 64) * width);
    minus8 = (int32_t*)(scale + (size_t)supers(padded) * width);
  }
};

inline F largest_of(const float* x, int count, F& odd) {
  F largest = zero();
  for (int i = 0; i < count; i += kLanes) {
    const F a = load(x + i);
    odd = add(odd, sub(a, a));  // 0 but for infinity and NaN
    largest = max(abs(a), largest);
  }
  return largest;
}

// up to 256 columns (a multiple of 32) to signed bytes; returns the scale
inline float quantise_super(const float* x, int8_t* q, int count) {
  F odd = zero();
  const float found = max_lanes(largest_of(x, count, odd)), largest = found + sum_lanes(odd);
  if (!(largest > 0x1p-100f)) {
    std::memset(q, 0, count);
    return largest != largest ? largest : 0.0f;
  }
  const F inverse = set1(127.0f / largest);
  for (int i = 0; i < count; i += kLanes) store_bytes(q + i, to_int(mul(load(x + i), inverse)));
  return largest / 127.0f;
}

// a quantised row (null: zeros) as token m of a block
inline void place_super(const SuperBlock& block, Lay lay, int width, int m, const int8_t* q, const float* scale,
                        int padded) {
  for (int s = 0; s < supers(padded); ++s) block.scale[(size_t)s * width + m] = q ? scale[s] : 0.0f;
  const int columns = (padded + 63) / 64 * 64;
  if (lay == Lay::kTile) {
    for (int c = 0; c < columns; c += 64) {
      int8_t* to = block.q + (size_t)c * width + m * 64;
      const int count = q ? std::min(64, padded - c) : 0;
      if (count) std::memcpy(to, q + c, count);
      std::memset(to + count, 0, 64 - count);
    }
    return;
  }
  const uint32_t offset = lay == Lay::kUnsigned ? 0x80808080u : 0;
  for (int c = 0; c < padded; c += 4) {
    uint32_t four = 0;
    if (q) std::memcpy(&four, q + c, 4);
    four ^= offset;
    std::memcpy(block.q + ((size_t)c * width + m * 4), &four, 4);
  }
  if (lay == Lay::kUnsigned) return;
  for (int g = 0; g < padded / 16; ++g) {
    int sum = 0;
    if (q)
      for (int i = 0; i < 16; ++i) sum += q[g * 16 + i];
    block.minus8[(size_t)g * width + m] = -8 * sum;
  }
}

// ---- few tokens: T tiles times M tokens, in registers

// the steps of two groups for the 16 rows of a tile, as integers
inline void load_steps(const uint8_t* p, I& first, I& second) {
  const I both = load_ubytes(p);
  first = shift_right(shift_left(both, 28), 28);
  second = shift_right(shift_left(both, 24), 28);
}

struct SuperPanelArgs {
  const uint8_t* tiles[4];
  int64_t scales, steps;  // where they begin in a tile
  int padded;
  const void* x;  // a SuperBlock, kSigned
  Ahead ahead;
};

template <int T, int M>
void super_panel(SuperPanelArgs& a, float* out) {
  Ahead ahead = a.ahead;
  const SuperBlock x(const_cast<void*>(a.x), a.padded, M);
  F y[T][M];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) y[t][m] = zero();
  for (int s = 0; s * kSuper < a.padded; ++s) {
    const int end = std::min(a.padded, (s + 1) * kSuper);
    F sum[T][M];  // whole numbers below 2^24: exact
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) sum[t][m] = zero();
    ahead.ask<T * 3>();  // and three of a superblock's scales and steps
    for (int c = s * kSuper; c < end; c += 32) {
      I step[T][2];
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) load_steps(a.tiles[t] + a.steps + c / 2, step[t][0], step[t][1]);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int at = c + half * 16;
        ahead.ask<T * 2>();  // a tile has two lines of 16 columns
        const int8_t* q = x.q + (size_t)at * M;
        I acc[T][M];
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
          const I start = set1i(x.minus8[(size_t)(at / 16) * M + m]);
#pragma GCC unroll 4
          for (int t = 0; t < T; ++t) acc[t][m] = start;
        }
#pragma GCC unroll 2
        for (int chunk = 0; chunk < 2; ++chunk) {
          B w[T];
#pragma GCC unroll 4
          for (int t = 0; t < T; ++t) w[t] = load_chunk(a.tiles[t] + (size_t)(at / 8 + chunk) * 64);
#pragma GCC unroll 4
          for (int m = 0; m < M; ++m) {
            const B low = repeat4(q + (2 * chunk * M + m) * 4), high = repeat4(q + ((2 * chunk + 1) * M + m) * 4);
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) acc[t][m] = dot(dot(acc[t][m], low4(w[t]), low), high4(w[t]), high);
          }
        }
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
          const F factor = to_float(step[t][half]);
#pragma GCC unroll 4
          for (int m = 0; m < M; ++m) sum[t][m] = fma(to_float(acc[t][m]), factor, sum[t][m]);
        }
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const F d = load_half((const uint16_t*)(a.tiles[t] + a.scales) + s * kLanes);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) y[t][m] = fma(sum[t][m], mul(d, set1(x.scale[(size_t)s * M + m])), y[t][m]);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) store(out + (t * M + m) * kLanes, y[t][m]);
  a.ahead = ahead;
}

// ---- many tokens: the steps are multiplied into the weights of a superblock once, for all blocks of tokens

constexpr int kSuperLines = 35;  // of a tile: the bytes of a superblock
constexpr int kUnpackWork = 2;   // of 32 columns of a tile; measured, as are the other works

// `columns` columns of a superblock as signed bytes: [columns / 4][16][4]; adds up each row where `rows` is given
inline void unpack_super(const uint8_t* tile, int64_t steps, int first, int columns, int8_t* out, I* rows,
                         Ahead& ahead) {
  for (int c = first; c < first + columns; c += 32) {
    Step4 step[2];
    load_step4(tile + steps + c / 2, step[0], step[1]);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 2
      for (int chunk = 0; chunk < 2; ++chunk) {
        const B w = load_chunk(tile + (size_t)((c + half * 16) / 8 + chunk) * 64);
        const B low = scaled4(low4(w), step[half]), high = scaled4(high4(w), step[half]);
        store_chunk(out, low);
        store_chunk(out + 64, high);
        if (rows) {
          const int32_t ones = 0x01010101;
          *rows = dot(dot(*rows, repeat4(&ones), low), repeat4(&ones), high);
        }
        out += 128;
      }
    }
    ahead.work(kUnpackWork);
  }
}

template <int T, int M>
void super_wide(const int8_t* const* w, const I* rows, const F* d, const int8_t* q, const float* scale, int columns,
                float* y, size_t tile_stride) {
  I acc[T][M];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    const I start = subi(set1i(0), shift_left(rows[t], 7));  // the 128 that were added to q
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) acc[t][m] = start;
  }
  for (int c = 0; c < columns / 4; ++c) {
    B b[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) b[t] = load_chunk((const uint8_t*)w[t] + (size_t)c * 64);
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      const B x = repeat4(q + ((size_t)c * M + m) * 4);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) acc[t][m] = dot(acc[t][m], x, b[t]);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      float* to = y + t * tile_stride + m * kLanes;
      store(to, fma(to_float(acc[t][m]), mul(d[t], set1(scale[m])), load(to)));
    }
}

}  // namespace tenth::TENTH_ISA
