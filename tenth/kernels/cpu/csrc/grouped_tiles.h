// The operands of the training products, cut into tiles of 16 by 16 units of four bytes.
//
// A unit is what one lane multiplies at once: a float, or two bfloat16 neighbours along the summed axis. A tile of the left
// operand has 16 output rows of 16 units, one of the right operand 16 units of 16 output columns:
//   left  [16 rows][16 units]     right  [16 units][16 columns]
// A panel is a row of such tiles along the summed axis. What lies in memory is cut along its rows (a row's neighbours are
// summed) or across them (rows are summed), and turned where the operand wants it the other way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "simd.h"

namespace tenth::TENTH_ISA {

constexpr int kSide = 16, kTileBytes = 1024, kWide = 2 * kSide;  // a block of results: two tiles by two tiles

// ---- where numbers come from; `at` is good for what lies together: 32 columns from a multiple of them on

// rows of a matrix in memory, or the rows that `index` names
template <class T>
struct RowsOf {
  using Number = T;
  const T* data;
  int64_t stride;
  const int32_t* index = nullptr;
  const T* at(int64_t row, int column) const {
    return data + (index ? (int64_t)index[row] : row) * stride + column;
  }
};

// rows of a matrix to write
template <class T>
struct RowsTo {
  T* data;
  int64_t stride;
  T* at(int64_t row, int column) const { return data + row * stride + column; }
};

// 32 columns of all rows lie together, then the next 32: who computes so many columns of row after row writes in order
template <class T>
struct Slabs {
  using Number = T;
  T* data;
  int64_t rows;
  static int64_t size(int64_t rows, int columns) { return rows * ((columns + kWide - 1) / kWide) * kWide; }
  T* at(int64_t row, int column) const { return data + (column / kWide * rows + row) * kWide + column % kWide; }
};

// the first n of 16 numbers, the others zero
inline F load_numbers(const float* p, int n) { return n >= kLanes ? load(p) : load_first(p, n); }
inline F load_numbers(const uint16_t* p, int n) {
  if (n >= kLanes) return bits_to_float(shift_left(load_words(p), 16));
  uint16_t part[kLanes] = {};
  std::memcpy(part, p, n * sizeof *p);
  return bits_to_float(shift_left(load_words(part), 16));
}
inline void store_numbers(float* p, int n, F x) { n >= kLanes ? store(p, x) : store_first(p, n, x); }
inline void store_numbers(uint16_t* p, int n, F x) {
  if (n >= kLanes) return store_bf16(p, x);
  uint16_t part[kLanes];
  store_bf16(part, x);
  std::memcpy(p, part, n * sizeof *p);
}
// as a number of that type would come back from memory
inline F rounded(F x, const float*) { return x; }
inline F rounded(F x, const uint16_t*) { return bits_to_float(shift_left(to_bf16(x), 16)); }

// ---- how numbers become units; `along` takes a row's neighbours, `across` the same columns of rows that are summed

// float32 units of either type
struct Singles {
  static constexpr int kPlanes = 1, kPairs = 1;
  template <class T>
  static void along(const T* p, int n, I* out) { *out = float_to_bits(load_numbers(p, n)); }
  template <class T>
  static void across(const T* p, const T*, int n, I* out) { *out = float_to_bits(load_numbers(p, n)); }
};

#if defined(TENTH_AVX512)
// two bfloat16 a unit
struct Halves {
  static constexpr int kPlanes = 1, kPairs = 2;
  static void along(const uint16_t* p, int n, I* out) {
    *out = {n >= 32 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16((1u << n) - 1, p)};
  }
  static __m256i words(const uint16_t* p, int n) {
    if (!p) return _mm256_setzero_si256();
    return n >= kLanes ? _mm256_loadu_si256((const __m256i*)p) : _mm256_maskz_loadu_epi16((1u << n) - 1, p);
  }
  static void across(const uint16_t* p, const uint16_t* q, int n, I* out) {
    const __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20,
                                         4, 19, 3, 18, 2, 17, 1, 16, 0);
    *out = {_mm512_permutexvar_epi16(zip, _mm512_inserti64x4(_mm512_castsi256_si512(words(p, n)), words(q, n), 1))};
  }
};

// A float as the sum of three bfloat16, each to nearest of what the ones before it left: all 24 bits of it. Two planes
// more of units; of the nine products of two such sums, the six that reach into float32 are taken.
struct Thirds {
  static constexpr int kPlanes = 3, kPairs = 2;
  static F top(F x) { return {_mm512_cvtpbh_ps(_mm512_cvtneps_pbh(x.v))}; }
  static void planes(F x, F* out) {
    out[0] = top(x);
    const F rest = sub(x, out[0]);
    out[1] = top(rest);
    out[2] = sub(rest, out[1]);
  }
  static void along(const float* p, int n, I* out) {
    F first[kPlanes], second[kPlanes];
    planes(load_numbers(p, n), first);
    planes(n > kLanes ? load_numbers(p + kLanes, n - kLanes) : zero(), second);
    for (int i = 0; i < kPlanes; ++i) out[i] = {(__m512i)_mm512_cvtne2ps_pbh(second[i].v, first[i].v)};
  }
  static void across(const float* p, const float* q, int n, I* out) {
    F first[kPlanes], second[kPlanes];
    planes(load_numbers(p, n), first);
    planes(q ? load_numbers(q, n) : zero(), second);
    first[2] = top(first[2]);
    second[2] = top(second[2]);
    for (int i = 0; i < kPlanes; ++i)
      out[i] = or_bits(shift_in_zeros(float_to_bits(first[i]), 16), float_to_bits(second[i]));
  }
};
#endif

// ---- tiles

#if defined(TENTH_AVX512)
// four rows, four apart, a quarter of a line each; what follows are shuffles within quarters
inline __m512i quarters(const int32_t* p) {
  __m512i v = _mm512_castsi128_si512(_mm_load_si128((const __m128i*)p));
  v = _mm512_inserti32x4(v, _mm_load_si128((const __m128i*)(p + 4 * kSide)), 1);
  v = _mm512_inserti32x4(v, _mm_load_si128((const __m128i*)(p + 8 * kSide)), 2);
  return _mm512_inserti32x4(v, _mm_load_si128((const __m128i*)(p + 12 * kSide)), 3);
}
inline void turn(const int32_t* in, int32_t* out) {
#pragma GCC unroll 4
  for (int c = 0; c < kSide; c += 4) {
    const __m512i a = quarters(in + c), b = quarters(in + kSide + c), d = quarters(in + 2 * kSide + c),
                  e = quarters(in + 3 * kSide + c);
    const __m512i ab = _mm512_unpacklo_epi32(a, b), de = _mm512_unpacklo_epi32(d, e);
    const __m512i ab2 = _mm512_unpackhi_epi32(a, b), de2 = _mm512_unpackhi_epi32(d, e);
    _mm512_store_si512(out + c * kSide, _mm512_unpacklo_epi64(ab, de));
    _mm512_store_si512(out + (c + 1) * kSide, _mm512_unpackhi_epi64(ab, de));
    _mm512_store_si512(out + (c + 2) * kSide, _mm512_unpacklo_epi64(ab2, de2));
    _mm512_store_si512(out + (c + 3) * kSide, _mm512_unpackhi_epi64(ab2, de2));
  }
}
#else
inline void turn(const int32_t* in, int32_t* out) {
  for (int i = 0; i < kSide; ++i)
    for (int j = 0; j < kSide; ++j) out[j * kSide + i] = in[i * kSide + j];
}
#endif

template <class E>
constexpr int kDepth = kSide * E::kPairs;  // numbers of the summed axis in a tile

template <class E>
constexpr int64_t panel_bytes(int64_t summed) {
  return (summed + kDepth<E> - 1) / kDepth<E> * E::kPlanes * kTileBytes;
}

// stores line `i` of a tile's planes, or of planes that are still to be turned
template <class E>
void put(const I* line, int32_t (*tile)[kSide * kSide], int i) {
  for (int p = 0; p < E::kPlanes; ++p) storei(tile[p] + i * kSide, line[p]);
}

template <class E, bool turned, class Fill>
void make_tile(uint8_t* to, const Fill& fill) {
  auto* tile = (int32_t(*)[kSide * kSide])to;
  if constexpr (!turned) {
    fill(tile);
  } else {
    alignas(64) int32_t raw[E::kPlanes][kSide * kSide];
    fill(raw);
    for (int p = 0; p < E::kPlanes; ++p) turn(raw[p], tile[p]);
  }
}

// A panel of 16 rows (`count` of them there) whose neighbours are summed: left, or right where it is turned.
template <class E, bool turned, class Rows>
void pack_along(uint8_t* to, const Rows& rows, int64_t first, int count, int summed) {
  for (int k = 0; k < summed; k += kDepth<E>, to += E::kPlanes * kTileBytes)
    make_tile<E, turned>(to, [&](auto* tile) {
      I line[E::kPlanes];
      for (int r = 0; r < std::min(count, kSide); ++r) {
        E::along(rows.at(first + r, k), summed - k, line);
        put<E>(line, tile, r);
      }
      for (int p = 0; p < E::kPlanes; ++p) line[p] = set1i(0);
      for (int r = std::max(count, 0); r < kSide; ++r) put<E>(line, tile, r);
    });
}

// A panel of 16 columns (`count` of them there) of rows that are summed: right, or left where it is turned.
template <class E, bool turned, class Rows>
void pack_across(uint8_t* to, const Rows& rows, int64_t first, int summed, int column, int count) {
  for (int k = 0; k < summed; k += kDepth<E>, to += E::kPlanes * kTileBytes)
    make_tile<E, turned>(to, [&](auto* tile) {
      I line[E::kPlanes];
      for (int j = 0; j < kSide; ++j) {
        const int r = k + j * E::kPairs;
        if (r < summed && count > 0) {
          const bool pair = E::kPairs == 2 && r + 1 < summed;
          E::across(rows.at(first + r, column), pair ? rows.at(first + r + 1, column) : nullptr, count, line);
        } else {
          for (int p = 0; p < E::kPlanes; ++p) line[p] = set1i(0);
        }
        put<E>(line, tile, j);
      }
    });
}

}  // namespace tenth::TENTH_ISA
