// Loops for a processor's limits, to hold speeds against: reading without computing, computing without reading.
#pragma once

#include <cstdint>

#include "ops.h"
#include "panel.h"

#if defined(TENTH_AMX)
#include "amx.h"
#endif

namespace tenth::TENTH_ISA {

// every line of some bytes, side by side in as many streams as a product reads tiles; the sum is there to be asked for
inline uint32_t read_lines(const uint8_t* p, int64_t bytes) {
  constexpr int kLine = 64, kAhead = 16 * kLine;
  const int64_t part = bytes / (kMaxTiles * kLine) * kLine;
  I sums[kMaxTiles];
  for (int t = 0; t < kMaxTiles; ++t) sums[t] = set1i(0);
  for (int64_t i = 0; i < part; i += kLine)
#pragma GCC unroll 4
    for (int t = 0; t < kMaxTiles; ++t) {
      const uint8_t* line = p + t * part + i;
      prefetch(line + kAhead);
      sums[t] = addi(sums[t], loadi((const int32_t*)line));
    }
  int32_t lanes[kLanes];
  for (int t = 1; t < kMaxTiles; ++t) sums[0] = addi(sums[0], sums[t]);
  storei(lanes, sums[0]);
  uint32_t all = 0;
  for (int32_t lane : lanes) all += (uint32_t)lane;
  for (int64_t i = part * kMaxTiles; i < bytes; ++i) all += p[i];
  return all;
}

// ---- products: sums that do not wait for each other, in registers, until the rounds are over. What is multiplied comes
// from memory once a round, behind the compiler's back: it would work out the sums of constants.

#if defined(TENTH_AVX512)
constexpr int kSums = 12;
#elif defined(TENTH_AVX2)
constexpr int kSums = 5;  // of two registers each
#else
constexpr int kSums = 2;
#endif

struct Operands {
  alignas(64) uint8_t a[64] = {}, b[64] = {};
};

inline void behind_the_back(void* p) { asm volatile("" : : "r"(p) : "memory"); }

// sets each sum to `step(sum, operands)`, so many times
template <class Sum, class Step>
void repeat(int64_t rounds, Sum start, const Step& step) {
  Operands operands;
  Sum sums[kSums], out[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) sums[i] = start;
  for (int64_t round = 0; round < rounds; ++round) {
    behind_the_back(&operands);
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sums[i] = step(sums[i], operands);
  }
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) out[i] = sums[i];
  behind_the_back(out);
}

#if defined(TENTH_AMX)

enum class Product { kInt8, kBfloat16 };

template <Product product>
int64_t tile_products(int64_t rounds) {
  const Tiles tiles;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t round = 0; round < rounds; ++round) {
    if constexpr (product == Product::kInt8) {
      _tile_dpbssd(0, 6, 7);
      _tile_dpbssd(1, 6, 7);
      _tile_dpbssd(2, 6, 7);
      _tile_dpbssd(3, 6, 7);
    } else {
      _tile_dpbf16ps(0, 6, 7);
      _tile_dpbf16ps(1, 6, 7);
      _tile_dpbf16ps(2, 6, 7);
      _tile_dpbf16ps(3, 6, 7);
    }
  }
  constexpr int kColumns = product == Product::kInt8 ? 64 : 32;
  return rounds * 4 * 16 * 16 * kColumns * 2;
}

inline int64_t int8_products(int64_t rounds) { return tile_products<Product::kInt8>(rounds); }
inline int64_t bfloat16_products(int64_t rounds) { return tile_products<Product::kBfloat16>(rounds); }

#else

inline int64_t int8_products(int64_t rounds) {
#if defined(TENTH_AVX2) && !defined(TENTH_AVXVNNI)
  // without VNNI the pairs of products alone: what adds them up takes other units of the processor
  repeat(rounds, as_bytes(set1i(0)), [](B sum, const Operands& x) {
    const B a = load_chunk(x.a);
    return B{_mm256_maddubs_epi16(sum.a, a.a), _mm256_maddubs_epi16(sum.b, a.b)};
  });
#else
  repeat(rounds, set1i(0), [](I sum, const Operands& x) { return dot(sum, load_chunk(x.a), load_chunk(x.b)); });
#endif
  return rounds * kSums * kLanes * 4 * 2;
}

inline int64_t bfloat16_products(int64_t rounds) {
  repeat(rounds, zero(), [](F sum, const Operands& x) { return dot_bf16(sum, load_chunk(x.a), load_chunk(x.b)); });
  return rounds * kSums * kLanes * 2 * 2;
}

#endif

inline int64_t float32_products(int64_t rounds) {
  repeat(rounds, zero(), [](F sum, const Operands& x) { return fma(load((const float*)x.a), load((const float*)x.b), sum); });
  return rounds * kSums * kLanes * 2;
}

constexpr Limits kLimits{kMaxTiles, read_lines, int8_products, bfloat16_products, float32_products};

}  // namespace tenth::TENTH_ISA
