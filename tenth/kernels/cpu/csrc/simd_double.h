// Sixteen lanes of float64, for the few sums that must be as exact as Python's: the words of simd.h, twice as wide.
#pragma once

#include "simd.h"

namespace tenth::TENTH_ISA {

#if defined(TENTH_AVX512)

struct D { __m512d a, b; };

inline D set1d(double x) { return {_mm512_set1_pd(x), _mm512_set1_pd(x)}; }
inline D to_double(F x) {
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(x.v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(x.v, 1))};
}
inline void store(double* p, D x) {
  _mm512_storeu_pd(p, x.a);
  _mm512_storeu_pd(p + 8, x.b);
}
inline D add(D x, D y) { return {_mm512_add_pd(x.a, y.a), _mm512_add_pd(x.b, y.b)}; }
inline D sub(D x, D y) { return {_mm512_sub_pd(x.a, y.a), _mm512_sub_pd(x.b, y.b)}; }
inline D mul(D x, D y) { return {_mm512_mul_pd(x.a, y.a), _mm512_mul_pd(x.b, y.b)}; }
inline D fma(D x, D y, D z) { return {_mm512_fmadd_pd(x.a, y.a, z.a), _mm512_fmadd_pd(x.b, y.b, z.b)}; }
inline D max(D x, D y) { return {_mm512_max_pd(x.a, y.a), _mm512_max_pd(x.b, y.b)}; }
// y where x is not below `least`, else 0
inline D not_below(D x, D least, D y) {
  auto half = [](__m512d p, __m512d q, __m512d r) {
    return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(p, q, _CMP_GE_OQ), r);
  };
  return {half(x.a, least.a, y.a), half(x.b, least.b, y.b)};
}
// x times two to the power of the whole number in the low bits of n
inline D scale_by_power(D x, D n) {
  auto half = [](__m512d p, __m512d q) {
    return _mm512_castsi512_pd(
        _mm512_add_epi64(_mm512_castpd_si512(p), _mm512_slli_epi64(_mm512_castpd_si512(q), 52)));
  };
  return {half(x.a, n.a), half(x.b, n.b)};
}

#elif defined(TENTH_AVX2)

struct D { __m256d v[4]; };

template <class Each>
inline D each_quarter(Each each) {
  return {each(0), each(1), each(2), each(3)};
}
inline D set1d(double x) {
  return each_quarter([&](int) { return _mm256_set1_pd(x); });
}
inline D to_double(F x) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(x.a)), _mm256_cvtps_pd(_mm256_extractf128_ps(x.a, 1)),
          _mm256_cvtps_pd(_mm256_castps256_ps128(x.b)), _mm256_cvtps_pd(_mm256_extractf128_ps(x.b, 1))};
}
inline void store(double* p, D x) {
  for (int i = 0; i < 4; ++i) _mm256_storeu_pd(p + 4 * i, x.v[i]);
}
inline D add(D x, D y) {
  return each_quarter([&](int i) { return _mm256_add_pd(x.v[i], y.v[i]); });
}
inline D sub(D x, D y) {
  return each_quarter([&](int i) { return _mm256_sub_pd(x.v[i], y.v[i]); });
}
inline D mul(D x, D y) {
  return each_quarter([&](int i) { return _mm256_mul_pd(x.v[i], y.v[i]); });
}
inline D fma(D x, D y, D z) {
  return each_quarter([&](int i) { return _mm256_fmadd_pd(x.v[i], y.v[i], z.v[i]); });
}
inline D max(D x, D y) {
  return each_quarter([&](int i) { return _mm256_max_pd(x.v[i], y.v[i]); });
}
inline D not_below(D x, D least, D y) {
  return each_quarter([&](int i) { return _mm256_and_pd(_mm256_cmp_pd(x.v[i], least.v[i], _CMP_GE_OQ), y.v[i]); });
}
inline D scale_by_power(D x, D n) {
  return each_quarter([&](int i) {
    const __m256i power = _mm256_slli_epi64(_mm256_castpd_si256(n.v[i]), 52);
    return _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(x.v[i]), power));
  });
}

#else  // portable

struct D { double v[kLanes]; };

template <class Each>
inline D each_lane(Each each) {
  D d;
  for (int i = 0; i < kLanes; ++i) d.v[i] = each(i);
  return d;
}
inline D set1d(double x) {
  return each_lane([&](int) { return x; });
}
inline D to_double(F x) {
  return each_lane([&](int i) { return (double)x[i]; });
}
inline void store(double* p, D x) { std::memcpy(p, x.v, sizeof x.v); }
inline D add(D x, D y) {
  return each_lane([&](int i) { return x.v[i] + y.v[i]; });
}
inline D sub(D x, D y) {
  return each_lane([&](int i) { return x.v[i] - y.v[i]; });
}
inline D mul(D x, D y) {
  return each_lane([&](int i) { return x.v[i] * y.v[i]; });
}
inline D fma(D x, D y, D z) {
  return each_lane([&](int i) { return std::fma(x.v[i], y.v[i], z.v[i]); });
}
inline D max(D x, D y) {
  return each_lane([&](int i) { return x.v[i] > y.v[i] ? x.v[i] : y.v[i]; });
}
inline D not_below(D x, D least, D y) {
  return each_lane([&](int i) { return x.v[i] >= least.v[i] ? y.v[i] : 0.0; });
}
inline D scale_by_power(D x, D n) {
  return each_lane([&](int i) {
    uint64_t bits, power;
    std::memcpy(&bits, &x.v[i], 8);
    std::memcpy(&power, &n.v[i], 8);
    bits += power << 52;
    double scaled;
    std::memcpy(&scaled, &bits, 8);
    return scaled;
  });
}

#endif

// 2^x for -1021 <= x <= 0 (below, float64 begins to lose bits), to 1.1e-12 of it and never above 1.
// x = n + r with |r| <= 1/2, and the polynomial of degree 8 in r that is 1 at 0 and else nearest in relative error
inline D exp2_within(D x) {
  const D rounder = set1d(0x1.8p52);  // adding it leaves the whole number in the low bits
  const D n = add(x, rounder);
  const D r = sub(x, sub(n, rounder));
  D p = set1d(0x1.663487d8abc81p-20);
  for (double c : {0x1.00ee071c7c030p-16, 0x1.4306c1165a375p-13, 0x1.5d872975c4ed2p-10, 0x1.3b2ab7f3b3217p-7,
                   0x1.c6b08defc25fdp-5, 0x1.ebfbdff7c5a79p-3, 0x1.62e42fef7a78bp-1, 1.0})
    p = fma(p, r, set1d(c));
  return scale_by_power(p, n);
}
// the same for all x <= 0, with 0 for what is below
inline D exp2_not_positive(D x) { return not_below(x, set1d(-1021.0), exp2_within(x)); }

}  // namespace tenth::TENTH_ISA
