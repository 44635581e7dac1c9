// Sixteen lanes of four bytes, whatever the processor: one zmm, two ymm, or plain C++ that any compiler lowers.
//
// Every kernel is written once in these words and compiled once for each instruction set, in its own namespace. An
// operation does the same arithmetic in each of them, lane for lane, so the bits of a result do not depend on the set
// (but for `dot_bf16`, whose rounding inside the processor's own instruction is not IEEE's).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(TENTH_AVX512) || defined(TENTH_AVX2)
#include <immintrin.h>
#endif

namespace tenth::TENTH_ISA {

constexpr int kLanes = 16;

#if defined(TENTH_AVX512)

struct F { __m512 v; };    // 16 float32
struct I { __m512i v; };   // 16 int32
struct B { __m512i v; };   // 64 bytes

inline F zero() { return {_mm512_setzero_ps()}; }
inline F set1(float x) { return {_mm512_set1_ps(x)}; }
inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
// the first n lanes, 0 to 16, the others zero (untouched)
inline F load_first(const float* p, int n) { return {_mm512_maskz_loadu_ps((1u << n) - 1, p)}; }
inline void store_first(float* p, int n, F a) { _mm512_mask_storeu_ps(p, (1u << n) - 1, a.v); }
inline F add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// b where a is NaN: the larger of two, as x86 has it
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I to_int(F a) { return {_mm512_cvtps_epi32(a.v)}; }  // nearest, ties to even
// the same as a float, for magnitudes under 2^22
inline F nearest(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// a times 2^n: n whole, and both a and the product normal numbers (or n NaN and a too)
inline F scale2(F a, F n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline I set1i(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I loadi(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void storei(int32_t* p, I a) { _mm512_storeu_si512(p, a.v); }
inline I addi(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline F bits_to_float(I a) { return {_mm512_castsi512_ps(a.v)}; }
inline I float_to_bits(F a) { return {_mm512_castps_si512(a.v)}; }
inline I shift_left(I a, int n) { return {_mm512_slli_epi32(a.v, n)}; }
inline I shift_in_zeros(I a, int n) { return {_mm512_srli_epi32(a.v, n)}; }  // to the right
inline I and_bits(I a, I b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I or_bits(I a, I b) { return {_mm512_or_si512(a.v, b.v)}; }
inline F load_half(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
inline I load_words(const uint16_t* p) { return {_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p))}; }
inline F load_bytes(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
inline void store_bytes(int8_t* p, I a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(a.v)); }
inline I load_ubytes(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
inline I shift_right(I a, int n) { return {_mm512_srai_epi32(a.v, n)}; }  // the sign stays
inline I subi(I a, I b) { return {_mm512_sub_epi32(a.v, b.v)}; }
// a where the bit of the lane is 1, else b
inline F select(uint16_t bits, F a, F b) { return {_mm512_mask_blend_ps(bits, b.v, a.v)}; }
inline uint16_t less(F a, F b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }  // a bit a lane
inline uint16_t is_nan(F a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q); }

inline B load_chunk(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline B low4(B a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline B high4(B a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
inline void store_chunk(void* p, B a) { _mm512_storeu_si512(p, a.v); }
// Steps s (-8 to 7) of 16 rows as `scaled4` takes them. It multiplies by s + 8, which is not negative: no product of one
// byte reaches into the next.
struct Step4 {
  __m512i words, bytes;  // s + 8 in each 16-bit half of a lane; 8 * s in each byte
};
// those of two groups, in the low and the high halves of 16 bytes
inline void load_step4(const uint8_t* p, Step4& first, Step4& second) {
  const __m512i eight = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 8, 16, 24, 32, 40, 48, 56, -64, -56, -48, -40, -32, -24, -16, -8));
  const __m512i place = _mm512_set_epi32(0x0f0f0f0f, 0x0e0e0e0e, 0x0d0d0d0d, 0x0c0c0c0c, 0x0b0b0b0b, 0x0a0a0a0a, 0x09090909,
                                         0x08080808, 0x07070707, 0x06060606, 0x05050505, 0x04040404, 0x03030303, 0x02020202,
                                         0x01010101, 0);
  const __m512i both = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p)), place);
  auto of = [&](__m512i s) -> Step4 {
    // (s & 0x00ff) ^ 8
    const __m512i words = _mm512_ternarylogic_epi32(s, _mm512_set1_epi16(0x00ff), _mm512_set1_epi16(8), 0x6a);
    return {words, _mm512_shuffle_epi8(eight, s)};
  };
  first = of(_mm512_and_si512(both, _mm512_set1_epi8(15)));
  second = of(_mm512_and_si512(_mm512_srli_epi16(both, 4), _mm512_set1_epi8(15)));
}
// bytes of 0 to 15, less 8, times a step, as signed bytes (which it must fit)
inline B scaled4(B a, const Step4& step) {
  const __m512i whole = _mm512_sub_epi8(_mm512_mullo_epi16(a.v, step.words), _mm512_slli_epi16(a.v, 3));
  return {_mm512_sub_epi8(whole, step.bytes)};
}
inline B repeat4(const void* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return {_mm512_set1_epi32(x)};
}
// acc + the dot product of each lane's four bytes: a unsigned, b signed
inline I dot(I acc, B a, B b) { return {_mm512_dpbusd_epi32(acc.v, a.v, b.v)}; }
inline I dot8(I acc, B a, B b) { return dot(acc, a, b); }
constexpr int kDot8Offset = 128;  // dot8 sees bytes as stored, 128 too large
// signed bytes as `dot_signed` takes them for a, so much larger than they are; b is at least -127
inline B load_signed(const int8_t* p) { return {_mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128))}; }
inline I dot_signed(I acc, B a, B b) { return dot(acc, a, b); }
constexpr int kSignedOffset = 128;

inline B as_bytes(I a) { return {a.v}; }
// to bfloat16, nearest even; subnormal numbers may become zero
inline void store_bf16(uint16_t* p, F a) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(a.v)); }
inline F dot_bf16(F acc, B a, B b) { return {_mm512_dpbf16_ps(acc.v, (__m512bh)a.v, (__m512bh)b.v)}; }

#elif defined(TENTH_AVX2)

struct F { __m256 a, b; };
struct I { __m256i a, b; };
struct B { __m256i a, b; };

inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline __m256i first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline F load_first(const float* p, int n) {
  if (n >= 8) return {_mm256_loadu_ps(p), _mm256_maskload_ps(p + 8, first(n - 8))};
  return {_mm256_maskload_ps(p, first(n)), _mm256_setzero_ps()};
}
inline void store_first(float* p, int n, F x) {
  _mm256_maskstore_ps(p, first(n), x.a);
  if (n > 8) _mm256_maskstore_ps(p + 8, first(n - 8), x.b);
}
inline F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F abs(F x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline F nearest(F x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
inline F scale2(F x, F n) {  // NaN converts to -2^31, which shifts to 0
  auto half = [](__m256 p, __m256 q) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_cvtps_epi32(q), 23)));
  };
  return {half(x.a, n.a), half(x.b, n.b)};
}
inline I set1i(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I loadi(const int32_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
inline void storei(int32_t* p, I x) {
  _mm256_storeu_si256((__m256i*)p, x.a);
  _mm256_storeu_si256((__m256i*)(p + 8), x.b);
}
inline I addi(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline F bits_to_float(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
inline I float_to_bits(F x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
inline I shift_left(I x, int n) { return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
inline I shift_in_zeros(I x, int n) { return {_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)}; }
inline I and_bits(I x, I y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
inline I or_bits(I x, I y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
inline F load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
inline I load_words(const uint16_t* p) {
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
inline F load_bytes(const int8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}
inline void store_bytes(int8_t* p, I x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline I load_ubytes(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)),
          _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
}
inline I shift_right(I x, int n) { return {_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)}; }
inline I subi(I x, I y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
inline F select(uint16_t bits, F x, F y) {
  const __m256i one = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  auto half = [&](int b, __m256 p, __m256 q) {
    const __m256i on = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(b), one), one);
    return _mm256_blendv_ps(q, p, _mm256_castsi256_ps(on));
  };
  return {half(bits & 255, x.a, y.a), half(bits >> 8, x.b, y.b)};
}
inline uint16_t less(F x, F y) {
  return _mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)) |
         _mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)) << 8;
}
inline uint16_t is_nan(F x) {
  return _mm256_movemask_ps(_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q)) |
         _mm256_movemask_ps(_mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)) << 8;
}

inline B load_chunk(const uint8_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
inline B low4(B x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
inline B high4(B x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(x.a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(x.b, 4), mask)};
}
inline void store_chunk(void* p, B x) {
  _mm256_storeu_si256((__m256i*)p, x.a);
  _mm256_storeu_si256((__m256i*)p + 1, x.b);
}
struct Step4 {
  B words, bytes;
};
inline void load_step4(const uint8_t* p, Step4& first, Step4& second) {
  const __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p));
  const __m256i place = _mm256_set_epi32(0x07070707, 0x06060606, 0x05050505, 0x04040404, 0x03030303, 0x02020202, 0x01010101, 0);
  const __m256i eight = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 8, 16, 24, 32, 40, 48, 56, -64, -56, -48, -40, -32, -24, -16, -8));
  const __m256i low = _mm256_set1_epi8(15);
  auto words = [](__m256i s) {
    return _mm256_xor_si256(_mm256_and_si256(s, _mm256_set1_epi16(0x00ff)), _mm256_set1_epi16(8));
  };
  auto of = [&](__m256i a, __m256i b) -> Step4 {
    return {{words(a), words(b)}, {_mm256_shuffle_epi8(eight, a), _mm256_shuffle_epi8(eight, b)}};
  };
  const __m256i a = _mm256_shuffle_epi8(bytes, place);
  const __m256i b = _mm256_shuffle_epi8(bytes, _mm256_add_epi8(place, _mm256_set1_epi8(8)));
  first = of(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
  second = of(_mm256_and_si256(_mm256_srli_epi16(a, 4), low), _mm256_and_si256(_mm256_srli_epi16(b, 4), low));
}
inline B scaled4(B x, const Step4& step) {
  auto half = [](__m256i v, __m256i words, __m256i bytes) {
    return _mm256_sub_epi8(_mm256_sub_epi8(_mm256_mullo_epi16(v, words), _mm256_slli_epi16(v, 3)), bytes);
  };
  return {half(x.a, step.words.a, step.bytes.a), half(x.b, step.words.b, step.bytes.b)};
}
inline B repeat4(const void* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
#if defined(TENTH_AVXVNNI)
inline I dot(I acc, B x, B y) {
  return {_mm256_dpbusd_avx_epi32(acc.a, x.a, y.a), _mm256_dpbusd_avx_epi32(acc.b, x.b, y.b)};
}
inline I dot8(I acc, B x, B y) { return dot(acc, x, y); }
constexpr int kDot8Offset = 128;
inline B load_signed(const int8_t* p) {
  const B x = load_chunk((const uint8_t*)p);
  return {_mm256_xor_si256(x.a, _mm256_set1_epi8(-128)), _mm256_xor_si256(x.b, _mm256_set1_epi8(-128))};
}
inline I dot_signed(I acc, B x, B y) { return dot(acc, x, y); }
constexpr int kSignedOffset = 128;
#else
inline __m256i dot_half(__m256i acc, __m256i x, __m256i y) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), _mm256_set1_epi16(1)));
}
// the sum of two products is kept in 16 bits: right for x up to 127, it would saturate for larger ones
inline I dot(I acc, B x, B y) { return {dot_half(acc.a, x.a, y.a), dot_half(acc.b, x.b, y.b)}; }
// whole bytes: the weight's sign moves to the activation, so that |weight| <= 128 times 127 twice fits 16 bits
inline I dot_signed(I acc, B x, B y) {
  auto half = [](__m256i s, __m256i w, __m256i v) {
    return dot_half(s, _mm256_abs_epi8(w), _mm256_sign_epi8(v, w));
  };
  return {half(acc.a, x.a, y.a), half(acc.b, x.b, y.b)};
}
inline B load_signed(const int8_t* p) { return load_chunk((const uint8_t*)p); }
constexpr int kSignedOffset = 0;
inline I dot8(I acc, B x, B y) {
  const __m256i offset = _mm256_set1_epi8(-128);
  return dot_signed(acc, {_mm256_xor_si256(x.a, offset), _mm256_xor_si256(x.b, offset)}, y);
}
constexpr int kDot8Offset = 0;  // dot8 has removed the offset of stored bytes itself
#endif

inline B as_bytes(I x) { return {x.a, x.b}; }
inline I to_bf16(F x);
inline void store_bf16(uint16_t* p, F x) {
  const I bits = to_bf16(x);
  _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(_mm256_packus_epi32(bits.a, bits.b), 0xd8));
}
inline F dot_bf16(F acc, B x, B y) {
  auto low = [](__m256i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)); };
  auto high = [](__m256i v) { return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(0xffff0000))); };
  auto half = [&](__m256 s, __m256i p, __m256i q) {
    return _mm256_fmadd_ps(low(p), low(q), _mm256_fmadd_ps(high(p), high(q), s));
  };
  return {half(acc.a, x.a, y.a), half(acc.b, x.b, y.b)};
}

#else  // portable

typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint8_t B __attribute__((vector_size(64)));

#define TENTH_EACH for (int i = 0; i < kLanes; ++i)

inline F zero() { return F{}; }
inline F set1(float x) { return x - F{}; }
inline F load(const float* p) {
  F a;
  std::memcpy(&a, p, 64);
  return a;
}
inline void store(float* p, F a) { std::memcpy(p, &a, 64); }
inline F load_first(const float* p, int n) {
  F a{};
  std::memcpy(&a, p, n * sizeof(float));
  return a;
}
inline void store_first(float* p, int n, F a) { std::memcpy(p, &a, n * sizeof(float)); }
inline F add(F a, F b) { return a + b; }
inline F sub(F a, F b) { return a - b; }
inline F mul(F a, F b) { return a * b; }
inline F div(F a, F b) { return a / b; }
inline F fma(F a, F b, F c) {
  TENTH_EACH c[i] = std::fma(a[i], b[i], c[i]);
  return c;
}
inline F max(F a, F b) { return a > b ? a : b; }
inline F min(F a, F b) { return a < b ? a : b; }
inline I float_to_bits(F a) { return (I)a; }
inline F bits_to_float(I a) { return (F)a; }
inline I set1i(int32_t x) { return x - I{}; }
inline I and_bits(I a, I b) { return a & b; }
inline I or_bits(I a, I b) { return a | b; }
inline F abs(F a) { return (F)((I)a & 0x7fffffff); }
inline F to_float(I a) { return __builtin_convertvector(a, F); }
inline I to_int(F a) {
  I r;
  TENTH_EACH r[i] = a[i] >= -2147483648.0f && a[i] < 2147483648.0f ? (int32_t)std::nearbyint(a[i]) : INT32_MIN;
  return r;
}
inline I loadi(const int32_t* p) {
  I a;
  std::memcpy(&a, p, 64);
  return a;
}
inline void storei(int32_t* p, I a) { std::memcpy(p, &a, 64); }
inline I addi(I a, I b) { return a + b; }
typedef uint32_t Unsigned __attribute__((vector_size(64)));
inline I shift_left(I a, int n) { return (I)((Unsigned)a << n); }
inline I shift_in_zeros(I a, int n) { return (I)((Unsigned)a >> n); }
inline F nearest(F a) { return (a + 12582912.0f) - 12582912.0f; }  // 3 * 2^22: no room for a fraction
inline F scale2(F a, F n) { return (F)((I)a + shift_left(to_int(n), 23)); }
// float16 by hand: subnormals by a multiplication, infinities and NaN by their exponent
inline float half_to_float(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
  float f;
  uint32_t bits;
  if (rest >= 0x7c00) {
    bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
  } else {
    bits = rest << 13;
    std::memcpy(&f, &bits, 4);
    f *= 0x1p112f;
    std::memcpy(&bits, &f, 4);
    bits |= sign;
  }
  std::memcpy(&f, &bits, 4);
  return f;
}
inline F load_half(const uint16_t* p) {
  F a;
  TENTH_EACH a[i] = half_to_float(p[i]);
  return a;
}
inline I load_words(const uint16_t* p) {
  I a;
  TENTH_EACH a[i] = p[i];
  return a;
}
inline F load_bytes(const int8_t* p) {
  F a;
  TENTH_EACH a[i] = p[i];
  return a;
}
inline void store_bytes(int8_t* p, I a) {
  TENTH_EACH p[i] = (int8_t)(a[i] > 127 ? 127 : a[i] < -128 ? -128 : a[i]);
}
inline I load_ubytes(const uint8_t* p) {
  I a;
  TENTH_EACH a[i] = p[i];
  return a;
}
inline I shift_right(I a, int n) { return a >> n; }
inline I subi(I a, I b) { return a - b; }
inline F select(uint16_t bits, F a, F b) {
  TENTH_EACH if (!(bits >> i & 1)) a[i] = b[i];
  return a;
}
inline uint16_t less(F a, F b) {
  uint16_t bits = 0;
  TENTH_EACH bits |= (uint16_t)(a[i] < b[i]) << i;
  return bits;
}
inline uint16_t is_nan(F a) {
  uint16_t bits = 0;
  TENTH_EACH bits |= (uint16_t)(a[i] != a[i]) << i;
  return bits;
}
inline B load_chunk(const uint8_t* p) {
  B a;
  std::memcpy(&a, p, 64);
  return a;
}
inline B low4(B a) { return a & 15; }
inline B high4(B a) { return a >> 4; }
inline void store_chunk(void* p, B a) { std::memcpy(p, &a, 64); }
struct Step4 {
  B bytes;  // wrap around, so the step's low byte in every place does
};
inline void load_step4(const uint8_t* p, Step4& first, Step4& second) {
  auto of = [](I step) -> Step4 {
    const I low = step & 0xff;
    return {(B)(low | low << 8 | low << 16 | low << 24)};
  };
  const I both = load_ubytes(p);
  first = of(both << 28 >> 28);
  second = of(both << 24 >> 28);
}
inline B scaled4(B a, const Step4& step) { return (a - 8) * step.bytes; }
inline B repeat4(const void* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return (B)set1i(x);
}
inline I dot(I acc, B a, B b) {
  TENTH_EACH acc[i] += a[4 * i] * (int8_t)b[4 * i] + a[4 * i + 1] * (int8_t)b[4 * i + 1] +
                       a[4 * i + 2] * (int8_t)b[4 * i + 2] + a[4 * i + 3] * (int8_t)b[4 * i + 3];
  return acc;
}
inline I dot8(I acc, B a, B b) { return dot(acc, a, b); }
constexpr int kDot8Offset = 128;
inline B load_signed(const int8_t* p) { return load_chunk((const uint8_t*)p) ^ 128; }
inline I dot_signed(I acc, B a, B b) { return dot(acc, a, b); }
constexpr int kSignedOffset = 128;
inline B as_bytes(I a) { return (B)a; }
inline I to_bf16(F a);
inline void store_bf16(uint16_t* p, F a) {
  const I bits = to_bf16(a);
  TENTH_EACH p[i] = (uint16_t)bits[i];
}
inline F dot_bf16(F acc, B a, B b) {
  const I x = (I)a, y = (I)b;
  const I top = set1i((int32_t)0xffff0000);
  acc = fma((F)(x & top), (F)(y & top), acc);
  return fma((F)shift_left(x, 16), (F)shift_left(y, 16), acc);
}

#undef TENTH_EACH
#endif

// always inlined: gcc takes a function that only asks for bytes for one without effect, and leaves out its calls
__attribute__((always_inline)) inline void prefetch(const void* p) { __builtin_prefetch(p); }
__attribute__((always_inline)) inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

// bf16 pairs of a chunk as float: the lanes' low halves, the lanes' high halves
inline F pair_low(I a) { return bits_to_float(shift_left(a, 16)); }
inline F pair_high(I a) { return bits_to_float(and_bits(a, set1i((int32_t)0xffff0000))); }

// a float32 as bfloat16, to nearest, ties to even, NaN as NaN: in the low half of the lane
inline I to_bf16(F a) {
  const I bits = float_to_bits(select(is_nan(a), bits_to_float(set1i(0x7fc00000)), a));
  const I odd = and_bits(shift_in_zeros(bits, 16), set1i(1));
  return shift_in_zeros(addi(bits, addi(odd, set1i(0x7fff))), 16);
}

// the sum (the largest) of all lanes, always in the same order: halves onto halves
#if defined(TENTH_AVX512) || defined(TENTH_AVX2)
inline __m256 low_half(F a) {
#if defined(TENTH_AVX512)
  return _mm512_castps512_ps256(a.v);
#else
  return a.a;
#endif
}
inline __m256 high_half(F a) {
#if defined(TENTH_AVX512)
  return _mm512_extractf32x8_ps(a.v, 1);
#else
  return a.b;
#endif
}
inline float sum_lanes(F a) {
  const __m256 x = _mm256_add_ps(low_half(a), high_half(a));
  const __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 z = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}
inline float max_lanes(F a) {
  const __m256 x = _mm256_max_ps(low_half(a), high_half(a));
  const __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 z = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}
#else
inline float sum_lanes(F a) {
  float x[kLanes];
  store(x, a);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) x[i] += x[i + width];
  return x[0];
}
inline float max_lanes(F a) {
  float x[kLanes];
  store(x, a);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) x[i] = x[i] > x[i + width] ? x[i] : x[i + width];
  return x[0];
}
#endif

// e^x to 2 units in the last place; 0 below -87.3, infinity above 88.7, NaN for NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2, and Cephes' minimax polynomial in r
inline F exp(F x) {
  const F least = set1(-87.33654f);
  // x is the second operand of max and min, which is the one that comes back where either is NaN
  const F clamped = min(set1(89.0f), max(least, x));
  const F n = to_float(to_int(mul(clamped, set1(1.44269504f))));
  F r = fma(n, set1(-0.693359375f), clamped);
  r = fma(n, set1(2.12194440e-4f), r);
  F p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, mul(r, r), add(r, set1(1.0f)));
  // 2^n in two steps: n may be 128
  const I half = to_int(mul(n, set1(0.5f)));
  const I rest = to_int(sub(n, to_float(half)));
  const F a = bits_to_float(shift_left(addi(half, set1i(127)), 23));
  const F b = bits_to_float(shift_left(addi(rest, set1i(127)), 23));
  return select(less(x, least), zero(), mul(mul(p, a), b));
}

// 2^x of x up to 0, to 2 units in the last place; 2^-125 for all below -125, NaN for NaN.
// x = n + r with |r| <= 1/2, and the minimax polynomial of 2^r with error 9.1e-8
inline F exp2_falling(F x) {
  const F clamped = max(set1(-125.0f), x);
  const F n = nearest(clamped), r = sub(clamped, n);
  F p = set1(1.3264727e-3f);
  p = fma(p, r, set1(9.6715127e-3f));
  p = fma(p, r, set1(5.5507337e-2f));
  p = fma(p, r, set1(2.4022242e-1f));
  p = fma(p, r, set1(6.9314698e-1f));
  p = fma(p, r, set1(1.0f));
  return scale2(p, n);
}

// x * sigmoid(x)
inline F silu(F x) { return div(x, add(set1(1.0f), exp(sub(zero(), x)))); }

}  // namespace tenth::TENTH_ISA
