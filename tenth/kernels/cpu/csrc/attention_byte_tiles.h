// The same by tiles of AMX: 16 rows beside 16 keys and 64 channels, or beside 64 keys and 16 channels, in an instruction.
#pragma once

#include "amx.h"
#include "attention_bytes.h"
#include "attention_tiles.h"

namespace tenth::TENTH_ISA {

constexpr int kByteTile = 1024;

// heads that fill tiles of bytes
inline bool fits_byte_tiles(const KvView& kv) { return kv.head_size % 64 == 0; }

// q: bytes [size / 64][h, l][16 rows][64], then of each row the worth of 1
inline void place_byte_tile_row(const float* x, float scale, int size, int w, float* q) {
  q[(size_t)size * kTileRows / 2 + w] = split_query(x, scale, size, [&](int c, I high, I low) {
    int8_t* to = (int8_t*)q + c / 64 * 2 * kByteTile + w * 64 + c % 64;
    store_bytes(to, high);
    store_bytes(to + kByteTile, low);
  });
}

// s [16 rows][kKeys] of one run or two
template <int G>
void byte_tile_scores(const int8_t* keys, const int8_t* next, const float* scales, const float* q, int size, float* s) {
  alignas(64) int32_t sums[G][2][kTileFloats];
  const int8_t* bytes = (const int8_t*)q;
  const size_t run = (size_t)size * kLanes;
  const bool ahead = keys != next;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (G > 1) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int i = 0; i < size / 64; ++i) {
    const size_t at = (size_t)i * kByteTile;
    _tile_loadd(4, bytes + 2 * at, 64);
    _tile_loadd(5, bytes + 2 * at + kByteTile, 64);
    _tile_loadd(6, keys + at, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 5, 6);
    if constexpr (G > 1) {
      _tile_loadd(7, keys + run + at, 64);
      _tile_dpbssd(2, 4, 7);
      _tile_dpbssd(3, 5, 7);
    }
    if (ahead)
      for (int g = 0; g < G; ++g) prefetch_tile(next + g * run + at, 64);
  }
  _tile_stored(0, sums[0][0], 64);
  _tile_stored(1, sums[0][1], 64);
  if constexpr (G > 1) {
    _tile_stored(2, sums[1][0], 64);
    _tile_stored(3, sums[1][1], 64);
  }
  const float* worth = q + (size_t)size * kTileRows / 2;
  for (int g = 0; g < G; ++g) {
    const F scale = load(scales + g * kLanes);
    for (int r = 0; r < kTileRows; ++r) {
      const F whole = to_float(times254_plus(loadi(sums[g][0] + r * kLanes), loadi(sums[g][1] + r * kLanes)));
      store(s + r * kKeys + g * kLanes, mul(mul(whole, set1(worth[r])), scale));
    }
  }
}

inline void all_byte_tile_scores(const Run* runs, const float* q, int size, int count, float* s) {
  const float* scales = scales_of(runs[0].keys, size);
  for (int i = 0; i < count; i += 2) {
    const size_t at = (size_t)i * size * kLanes;
    (count - i > 1 ? byte_tile_scores<2> : byte_tile_scores<1>)((const int8_t*)runs[0].keys + at,
                                                                (const int8_t*)runs[0].next_keys + at,
                                                                scales + i * kLanes, q, size, s + i * kLanes);
  }
  prefetch_scales(runs[0].next_keys, size);
}

inline void all_byte_tile_values(const Run* runs, const float* s, const int*, int rows, int size, const float* shrink,
                                 float* y) {
  alignas(64) int32_t sums[2][2][kTileFloats];
  const size_t row = (size_t)size * 4;
  const bool ahead = runs[0].values != runs[0].next_values;
  _tile_loadd(4, s, kKeys * 4);
  _tile_loadd(5, (const int8_t*)s + kLowBytes, kKeys * 4);
  for (int c = 0; c < size; c += 2 * kLanes) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(6, runs[0].values + c * 4, row);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 5, 6);
    _tile_loadd(7, runs[0].values + (c + kLanes) * 4, row);
    _tile_dpbssd(2, 4, 7);
    _tile_dpbssd(3, 5, 7);
    _tile_stored(0, sums[0][0], 64);
    _tile_stored(1, sums[0][1], 64);
    _tile_stored(2, sums[1][0], 64);
    _tile_stored(3, sums[1][1], 64);
    if (ahead) {
      prefetch_tile(runs[0].next_values + c * 4, row);
      prefetch_tile(runs[0].next_values + (c + kLanes) * 4, row);
    }
    for (int r = 0; r < rows; ++r)
      for (int g = 0; g < 2; ++g) {
        float* to = y + (size_t)r * size + c + g * kLanes;
        const F whole = to_float(times128_plus(loadi(sums[g][0] + r * kLanes), loadi(sums[g][1] + r * kLanes)));
        store(to, fma(whole, set1(s[r * kKeys + kWorth]), mul(load(to), set1(shrink[r]))));
      }
  }
  prefetch_scales(runs[0].next_values, size);
}

inline constexpr RowKernels kByteTileKernels[] = {
    {kTileRows, place_byte_tile_row, all_byte_tile_scores, all_byte_tile_values}};

}  // namespace tenth::TENTH_ISA
