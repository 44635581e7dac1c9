// Products of two panels: up to two tiles of rows by two of columns, summed in float32 in one order.
#pragma once

#include <cstdint>

#include "grouped_tiles.h"

#if defined(TENTH_AMX)
#include "amx.h"
#endif

namespace tenth::TENTH_ISA {

// Which units numbers of a type become: tiles of AMX and AVX-512 multiply pairs of bfloat16. Float32 in three parts
// takes six products of AMX, which is still less time than one in float32.
template <class T>
struct UnitsOf { using Type = Singles; };
#if defined(TENTH_AVX512)
template <>
struct UnitsOf<uint16_t> { using Type = Halves; };
#endif
#if defined(TENTH_AMX)
template <>
struct UnitsOf<float> { using Type = Thirds; };
#endif

// `next`: bytes from one panel to the other
struct Panels {
  const uint8_t* data;
  int64_t next;
};

#if defined(TENTH_AMX)

using TileScope = Tiles;

// sums begin at zero, or go on from c
template <int rows, int columns>
inline __attribute__((always_inline)) void begin_tiles(const float* c, bool go_on) {
  asm volatile("" : : : "memory");  // loads of tiles do not tell the compiler that they read
  if (go_on) {
    _tile_loadd(0, c, kWide * 4);
    if constexpr (columns > 1) _tile_loadd(1, c + kSide, kWide * 4);
    if constexpr (rows > 1) _tile_loadd(2, c + kSide * kWide, kWide * 4);
    if constexpr (rows > 1 && columns > 1) _tile_loadd(3, c + kSide * kWide + kSide, kWide * 4);
  } else {
    _tile_zero(0);
    if constexpr (columns > 1) _tile_zero(1);
    if constexpr (rows > 1) _tile_zero(2);
    if constexpr (rows > 1 && columns > 1) _tile_zero(3);
  }
}
template <int rows>
inline __attribute__((always_inline)) void load_left(const Panels& a, int64_t at) {
  _tile_loadd(4, a.data + at, 64);
  if constexpr (rows > 1) _tile_loadd(5, a.data + a.next + at, 64);
}
template <int columns>
inline __attribute__((always_inline)) void load_right(const Panels& b, int64_t at) {
  _tile_loadd(6, b.data + at, 64);
  if constexpr (columns > 1) _tile_loadd(7, b.data + b.next + at, 64);
}
template <int rows, int columns>
inline __attribute__((always_inline)) void multiply_tiles() {
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (columns > 1) _tile_dpbf16ps(1, 4, 7);
  if constexpr (rows > 1) _tile_dpbf16ps(2, 5, 6);
  if constexpr (rows > 1 && columns > 1) _tile_dpbf16ps(3, 5, 7);
}
template <int rows, int columns>
inline __attribute__((always_inline)) void store_tiles(float* c) {
  _tile_stored(0, c, kWide * 4);
  if constexpr (columns > 1) _tile_stored(1, c + kSide, kWide * 4);
  if constexpr (rows > 1) _tile_stored(2, c + kSide * kWide, kWide * 4);
  if constexpr (rows > 1 && columns > 1) _tile_stored(3, c + kSide * kWide + kSide, kWide * 4);
}

template <int rows, int columns>
void multiply(Halves, const Panels& a, const Panels& b, int depth, bool go_on, float* c) {
  begin_tiles<rows, columns>(c, go_on);
  for (int64_t at = 0; at < (int64_t)depth * kTileBytes; at += kTileBytes) {
    load_left<rows>(a, at);
    load_right<columns>(b, at);
    multiply_tiles<rows, columns>();
  }
  store_tiles<rows, columns>(c);
}

// parts 1 to 3 of both sides: 1*1, 1*2, 2*2, 2*1, 3*1, 1*3; what is left out is under 2^-24 of the product
template <int rows, int columns>
void multiply(Thirds, const Panels& a, const Panels& b, int depth, bool go_on, float* c) {
  constexpr int64_t kPlane = kTileBytes;
  begin_tiles<rows, columns>(c, go_on);
  for (int64_t at = 0; at < depth * 3 * kPlane; at += 3 * kPlane) {
    load_left<rows>(a, at);
    load_right<columns>(b, at + 2 * kPlane);
    multiply_tiles<rows, columns>();
    load_right<columns>(b, at + kPlane);
    multiply_tiles<rows, columns>();
    load_left<rows>(a, at + kPlane);
    multiply_tiles<rows, columns>();
    load_right<columns>(b, at);
    multiply_tiles<rows, columns>();
    load_left<rows>(a, at + 2 * kPlane);
    multiply_tiles<rows, columns>();
    load_left<rows>(a, at);
    multiply_tiles<rows, columns>();
  }
  store_tiles<rows, columns>(c);
}

#else

struct TileScope {
  TileScope() {}
};

// rows and columns (of 16) that fit the registers
#if defined(TENTH_AVX512)
constexpr int kRowsAtOnce = 8, kColumnsAtOnce = 2;
#else
constexpr int kRowsAtOnce = 4, kColumnsAtOnce = 1;
#endif

inline F multiply_units(Singles, F sum, const int32_t* left, I right) {
  float x;
  std::memcpy(&x, left, 4);
  return fma(set1(x), bits_to_float(right), sum);
}
#if defined(TENTH_AVX512)
inline F multiply_units(Halves, F sum, const int32_t* left, I right) {
  return dot_bf16(sum, as_bytes(set1i(*left)), as_bytes(right));
}
#endif

template <class E, int columns>
void multiply_rows(const int32_t* a, const Panels& b, int depth, bool go_on, float* c) {
  F sums[kRowsAtOnce][columns];
#pragma GCC unroll 8
  for (int r = 0; r < kRowsAtOnce; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < columns; ++n) sums[r][n] = go_on ? load(c + r * kWide + n * kSide) : zero();
  const auto* right = (const int32_t*)b.data;
  const int64_t next = b.next / 4;
  for (int d = 0; d < depth; ++d, a += kSide * kSide, right += kSide * kSide)
    for (int k = 0; k < kSide; ++k) {
      I w[columns];
#pragma GCC unroll 2
      for (int n = 0; n < columns; ++n) w[n] = loadi(right + n * next + k * kSide);
#pragma GCC unroll 8
      for (int r = 0; r < kRowsAtOnce; ++r)
#pragma GCC unroll 2
        for (int n = 0; n < columns; ++n) sums[r][n] = multiply_units(E{}, sums[r][n], a + r * kSide + k, w[n]);
    }
#pragma GCC unroll 8
  for (int r = 0; r < kRowsAtOnce; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < columns; ++n) store(c + r * kWide + n * kSide, sums[r][n]);
}

template <int rows, int columns, class E>
void multiply(E, const Panels& a, const Panels& b, int depth, bool go_on, float* c) {
  constexpr int kColumns = std::min(columns, kColumnsAtOnce);
  for (int n = 0; n < columns; n += kColumns)
    for (int r = 0; r < rows * kSide; r += kRowsAtOnce) {
      const uint8_t* left = a.data + r / kSide * a.next + r % kSide * 64;
      multiply_rows<E, kColumns>((const int32_t*)left, {b.data + n * b.next, b.next}, depth, go_on, c + r * kWide + n * kSide);
    }
}

#endif

// c [rows * 16][32] of one or two panels each, so many tiles deep; added to what is there where it goes on
template <class E>
void multiply_any(int rows, int columns, const Panels& a, const Panels& b, int depth, bool go_on, float* c) {
  if (rows > 1 && columns > 1) return multiply<2, 2>(E{}, a, b, depth, go_on, c);
  if (rows > 1) return multiply<2, 1>(E{}, a, b, depth, go_on, c);
  if (columns > 1) return multiply<1, 2>(E{}, a, b, depth, go_on, c);
  multiply<1, 1>(E{}, a, b, depth, go_on, c);
}

// Tiles of a panel that are multiplied with all rows before the next ones are: two panels of so many leave the first cache
// room for the rows'.
template <class E>
constexpr int kDepthAtOnce = E::kPlanes == 1 ? 8 : 4;

}  // namespace tenth::TENTH_ISA
