// Tiles of AMX for superblocks: 16 tokens times 16 rows times 64 columns in one instruction.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "ahead.h"
#include "simd.h"

namespace tenth::TENTH_ISA {

// the tile registers of this thread: all 16 rows of 64 bytes. They are given back at the end: what is not in use need
// not be saved when the system switches threads.
class Tiles {
 public:
  Tiles() {
    // a constant in memory: the compiler takes the instruction to read 8 bytes and leaves out stores to the others
    static constexpr struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

constexpr int kTilesWork = 12, kAddWork = 5;  // of 64 columns of four tiles; of a tile's sums

// Sums of 16 tokens (q: [columns / 64][16][64]) times four tiles of unpacked weights ([columns / 4][64] each):
// [tile][token][16].
inline void tile_sums(const int8_t* const* w, const int8_t* q, int columns, int32_t* sums, Ahead& ahead) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int c = 0; c < columns / 64; ++c) {
    const size_t at = (size_t)c * 1024;
    ahead.work(kTilesWork);
    _tile_loadd(4, q + at, 64);
    _tile_loadd(5, w[0] + at, 64);
    _tile_dpbssd(0, 4, 5);
    _tile_loadd(6, w[1] + at, 64);
    _tile_dpbssd(1, 4, 6);
    _tile_loadd(7, w[2] + at, 64);
    _tile_dpbssd(2, 4, 7);
    _tile_loadd(5, w[3] + at, 64);
    _tile_dpbssd(3, 4, 5);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
}

// y += sums of one tile with the scales of its rows and of the tokens
inline void add_sums(const int32_t* sums, F d, const float* scale, int tokens, float* y) {
#pragma GCC unroll 4
  for (int m = 0; m < tokens; ++m) {
    float* to = y + m * kLanes;
    store(to, fma(to_float(loadi(sums + m * kLanes)), mul(d, set1(scale[m])), load(to)));
  }
}

}  // namespace tenth::TENTH_ISA
