// The same for AMX: 16 rows beside 16 keys, or 16 channels, in one instruction that takes 32 products each.
//
// Keys and values lie in the cache as the tiles want them. A tile of weights takes 32 keys. Rows that see the same keys
// go together, and where they see fewer than 32 the rest are zeros: so a row's sums are the same beside any others.
#pragma once

#include <algorithm>
#include <cstring>

#include "amx.h"
#include "attention_panels.h"

namespace tenth::TENTH_ISA {

constexpr int kTileRows = 16, kTileKeys = 32;    // rows, and keys or channels, of a tile of the left factor
constexpr int kTileFloats = kTileRows * kLanes;  // the size of every tile: 1 KB
constexpr int kMostSize = 256;                   // of a head

// heads that fill tiles; pages always do
inline bool fits_tiles(const KvView& kv) { return kv.head_size % kTileKeys == 0 && kv.head_size <= kMostSize; }

// asks for the 16 lines of a tile; stride: bytes
inline void prefetch_tile(const void* tile, size_t stride) {
  const uint8_t* p = (const uint8_t*)tile;
  for (int i = 0; i < kTileRows; ++i) prefetch(p + i * stride);
}

// q [size / 32][16 rows][32 channels]
inline void place_tile_row(const float* x, float scale, int size, int w, float* q) {
  for (int c = 0; c < size; c += kLanes)
    store_bf16((uint16_t*)(q + c / kTileKeys * kTileFloats + w * kLanes) + c % kTileKeys,
               mul(load(x + c), set1(scale)));
}

// s [16 rows][kKeys] of G runs
template <int G>
void tile_scores(const Run* runs, const float* q, int size, float* s) {
  const bool ahead = runs[0].keys != runs[0].next_keys;
  _tile_zero(0);
  if constexpr (G > 1) _tile_zero(1);
  if constexpr (G > 2) _tile_zero(2);
  if constexpr (G > 3) _tile_zero(3);
  for (int i = 0; i < size / kTileKeys; ++i) {
    const size_t at = (size_t)i * 4 * kTileFloats;
    _tile_loadd(4, q + i * kTileFloats, 64);
    _tile_loadd(5, runs[0].keys + at, 64);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (G > 1) {
      _tile_loadd(6, runs[1].keys + at, 64);
      _tile_dpbf16ps(1, 4, 6);
    }
    if constexpr (G > 2) {
      _tile_loadd(7, runs[2].keys + at, 64);
      _tile_dpbf16ps(2, 4, 7);
    }
    if constexpr (G > 3) {
      _tile_loadd(5, runs[3].keys + at, 64);
      _tile_dpbf16ps(3, 4, 5);
    }
    if (ahead)
      for (int g = 0; g < G; ++g) prefetch_tile(runs[g].next_keys + at, 4 * kLanes);
  }
  _tile_stored(0, s, kKeys * 4);
  if constexpr (G > 1) _tile_stored(1, s + kLanes, kKeys * 4);
  if constexpr (G > 2) _tile_stored(2, s + 2 * kLanes, kKeys * 4);
  if constexpr (G > 3) _tile_stored(3, s + 3 * kLanes, kKeys * 4);
}

inline void all_tile_scores(const Run* runs, const float* q, int size, int count, float* s) {
  constexpr decltype(&tile_scores<1>) kOf[] = {tile_scores<1>, tile_scores<2>, tile_scores<3>, tile_scores<4>};
  kOf[count - 1](runs, q, size, s);
}

// y [16 rows][size] plus weights p times values: G (1 or 2) groups of 32 keys, pairs of keys with `size` channels each
template <int G>
void tile_values(const float* p, const uint16_t* const* values, const uint16_t* const* next, int size, float* y) {
  const size_t row = (size_t)size * 4;
  const bool ahead = values[0] != next[0];
  _tile_loadd(6, p, kKeys * 4);
  if constexpr (G > 1) _tile_loadd(7, p + kTileKeys / 2, kKeys * 4);
  for (int c = 0; c < size; c += 2 * kLanes) {
    _tile_loadd(0, y + c, row);
    _tile_loadd(2, values[0] + c * 2, row);
    _tile_dpbf16ps(0, 6, 2);
    _tile_loadd(1, y + c + kLanes, row);
    _tile_loadd(3, values[0] + c * 2 + 2 * kLanes, row);
    _tile_dpbf16ps(1, 6, 3);
    if constexpr (G > 1) {
      _tile_loadd(4, values[1] + c * 2, row);
      _tile_dpbf16ps(0, 7, 4);
      _tile_loadd(5, values[1] + c * 2 + 2 * kLanes, row);
      _tile_dpbf16ps(1, 7, 5);
    }
    _tile_stored(0, y + c, row);
    _tile_stored(1, y + c + kLanes, row);
    if (ahead)
      for (int g = 0; g < G; ++g) {
        prefetch_tile(next[g] + c * 2, row);
        prefetch_tile(next[g] + c * 2 + 2 * kLanes, row);
      }
  }
}

// The values of the first `keys` of 32 and zeros: what lies behind them may be anything.
inline void cut_off(const uint16_t* values, int keys, int size, uint16_t* to) {
  const size_t pair = (size_t)size * 2, whole = keys / 2 * pair;
  std::memcpy(to, values, whole * 2);
  std::memset(to + whole, 0, (kTileKeys / 2 * pair - whole) * 2);
  if (keys % 2)
    for (size_t c = 0; c < pair; c += 2) to[whole + c] = values[whole + c];
}

// all 16 rows, which see the same keys
inline void tile_rows(const Run* runs, const float* s, int sees, int size, float* y) {
  alignas(64) uint16_t last[kTileKeys * kMostSize];
  const uint16_t* values[] = {(const uint16_t*)runs[0].values, (const uint16_t*)runs[2].values};
  const uint16_t* next[] = {(const uint16_t*)runs[0].next_values, (const uint16_t*)runs[2].next_values};
  const int groups = (sees + kTileKeys - 1) / kTileKeys;
  if (sees % kTileKeys) {
    cut_off(values[groups - 1], sees % kTileKeys, size, last);
    values[groups - 1] = next[groups - 1] = last;
  }
  (groups == 1 ? tile_values<1> : tile_values<2>)(s, values, next, size, y);
}

inline void all_tile_values(const Run* runs, const float* s, const int* sees, int rows, int size, const float* shrink,
                            float* y) {
  for (int r = 0; r < rows; ++r) {
    if (shrink[r] == 1.0f) continue;
    const F keep = set1(shrink[r]);
    for (int c = 0; c < size; c += kLanes) store(y + (size_t)r * size + c, mul(load(y + (size_t)r * size + c), keep));
  }
  if (sees[0] == sees[rows - 1]) return tile_rows(runs, s, sees[0], size, y);
  // on the diagonal: all rows as those that see as much, of which these are kept
  alignas(64) float all[kTileRows * kMostSize];
  for (int row = 0; row < rows;) {
    int end = row;
    while (end < rows && sees[end] == sees[row]) ++end;
    if (sees[row]) {
      const size_t from = (size_t)row * size, count = (size_t)(end - row) * size * sizeof(float);
      std::memcpy(all + from, y + from, count);
      tile_rows(runs, s, sees[row], size, all);
      std::memcpy(y + from, all + from, count);
    }
    row = end;
  }
}

inline constexpr RowKernels kTileKernels[] = {{kTileRows, place_tile_row, all_tile_scores, all_tile_values}};

}  // namespace tenth::TENTH_ISA
