// Attention to keys and values that are signed bytes: bytes meet bytes, and every sum of their products is exact.
//
// A row's query becomes whole numbers 254 h + l (16 bits), its weights of a block, times the scales of the values,
// become 128 h + l (14 bits); h and l are bytes, which a kernel takes for two rows. Whole sums have no order, so all
// kernels here give the same bits, and zeros stand for what a row does not see.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "attention_panels.h"

namespace tenth::TENTH_ISA {

constexpr float kMostByte = 127.0f, kMostQuery = 127.0f * 254.0f, kMostWeight = 127.0f * 128.0f + 127.0f;

// In place of a row of scores, as weights: 64 h, 64 l, and what a weight of 1 is worth.
constexpr int kLowBytes = kKeys, kWorth = 2 * kKeys / 4;  // where l begins (bytes), and the worth (floats)

// the largest magnitude; NaN where one is NaN or infinite
inline float largest_magnitude(const float* x, int size) {
  F most = zero(), odd = zero();  // x - x is 0 but for infinity and NaN
  for (int c = 0; c < size; c += kLanes) {
    const F part = load(x + c);
    most = max(most, abs(part));
    odd = add(odd, sub(part, part));
  }
  return max_lanes(most) + sum_lanes(odd);
}

// numbers up to `largest` as whole ones up to `most`: what they are multiplied with, and what a whole one is worth
struct Whole {
  float inverse, worth;

  Whole(float largest, float most) {
    const bool some = largest > 0x1p-100f;  // less counts as zero
    inverse = some ? most / largest : 0.0f;
    worth = some ? largest / most : largest != largest ? largest : 0.0f;
  }
  I of(F x) const { return inverse == 0.0f ? set1i(0) : to_int(mul(x, set1(inverse))); }
};

inline I times254_plus(I high, I low) { return addi(subi(shift_left(high, 8), shift_left(high, 1)), low); }
inline I times128_plus(I high, I low) { return addi(shift_left(high, 7), low); }

// x times `scale` as whole numbers; put(c, h, l) takes those of 16 channels. Returns what 1 is worth.
template <class Put>
inline float split_query(const float* x, float scale, int size, const Put& put) {
  const Whole whole(largest_magnitude(x, size), kMostQuery);
  for (int c = 0; c < size; c += kLanes) {
    const I q = whole.of(load(x + c)), high = to_int(mul(to_float(q), set1(1.0f / 254.0f)));
    put(c, high, subi(q, times254_plus(high, set1i(0))));
  }
  return whole.worth * scale;
}

// q: bytes [size / 4][W][h, l][4], then of each row the worth of 1, then twice what the sums of h and l begin with
template <int W>
void place_byte_row(const float* x, float scale, int size, int w, float* q) {
  float* worth = q + (size_t)size * W / 2;
  int32_t sum[2] = {};
  worth[w] = split_query(x, scale, size, [&](int c, I high, I low) {
    alignas(64) int8_t part[2][kLanes];
    store_bytes(part[0], high);
    store_bytes(part[1], low);
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < kLanes; i += 4) {
        std::memcpy((int8_t*)q + ((size_t)(c + i) / 4 * W + w) * 8 + half * 4, part[half] + i, 4);
        for (int b = 0; b < 4; ++b) sum[half] += part[half][i + b];
      }
  });
  for (int half = 0; half < 2; ++half) ((int32_t*)(worth + W))[w * 2 + half] = -kSignedOffset * sum[half];
}

// W rows times G runs of 16 keys: s [W][kKeys]
template <int W, int G>
void byte_score_panel(const int8_t* keys, const int8_t* next, const float* scales, const float* q, int size, float* s) {
  const float* worth = q + (size_t)size * W / 2;
  const int32_t* begin = (const int32_t*)(worth + W);
  I sum[2 * W][G];
#pragma GCC unroll 16
  for (int r = 0; r < 2 * W; ++r)
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) sum[r][g] = set1i(begin[r]);
  for (int chunk = 0; chunk < size / 4; ++chunk) {
    B k[G];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const size_t at = (size_t)g * size * kLanes + chunk * 64;
      k[g] = load_signed(keys + at);
      prefetch(next + at);
    }
#pragma GCC unroll 16
    for (int r = 0; r < 2 * W; ++r) {
      const B x = repeat4((const int8_t*)q + (chunk * 2 * W + r) * 4);
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) sum[r][g] = dot_signed(sum[r][g], k[g], x);
    }
  }
#pragma GCC unroll 8
  for (int w = 0; w < W; ++w)
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const F whole = to_float(times254_plus(sum[2 * w][g], sum[2 * w + 1][g]));
      store(s + w * kKeys + g * kLanes, mul(mul(whole, set1(worth[w])), load(scales + g * kLanes)));
    }
}

// A block lies in one page: its first run is all of it, and the scales of its 64 keys lie behind their bytes.
inline const float* scales_of(const uint8_t* block, int size) { return (const float*)(block + (size_t)kKeys * size); }

inline void prefetch_scales(const uint8_t* next, int size) {
  for (int g = 0; g < kRuns; ++g) prefetch(scales_of(next, size) + g * kLanes);
}

template <int W, int G>
void byte_scores(const Run* runs, const float* q, int size, int count, float* s) {
  const float* scales = scales_of(runs[0].keys, size);
  auto panel = [&](auto kernel, int i) {
    const size_t at = (size_t)i * size * kLanes;
    kernel((const int8_t*)runs[0].keys + at, (const int8_t*)runs[0].next_keys + at, scales + i * kLanes, q, size,
           s + i * kLanes);
  };
  int i = 0;
  for (; i + G <= count; i += G) panel(byte_score_panel<W, G>, i);
  for (; i < count; ++i) panel(byte_score_panel<W, 1>, i);
  prefetch_scales(runs[0].next_keys, size);
}

// W rows of weights s times the first `fours` times 4 values, 16 G channels of them from `channel` on
template <int W, int G>
void byte_value_panel(const Run* runs, const float* s, int fours, int channel, int size, const float* shrink, float* y) {
  I sum[2 * W][G];
#pragma GCC unroll 16
  for (int r = 0; r < 2 * W; ++r)
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) sum[r][g] = set1i(0);
  for (int i = 0; i < fours; ++i) {
    B v[G];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const size_t at = ((size_t)i * size + channel + g * kLanes) * 4;
      v[g] = load_chunk(runs[0].values + at);
      prefetch(runs[0].next_values + at);
    }
#pragma GCC unroll 16
    for (int r = 0; r < 2 * W; ++r) {
      const B x = repeat4((const int8_t*)(s + r / 2 * kKeys) + r % 2 * kLowBytes + i * 4);
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) sum[r][g] = dot(sum[r][g], x, v[g]);
    }
  }
#pragma GCC unroll 8
  for (int w = 0; w < W; ++w)
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      float* to = y + (size_t)w * size + channel + g * kLanes;
      const F whole = to_float(times128_plus(sum[2 * w][g], sum[2 * w + 1][g]));
      store(to, fma(whole, set1(s[w * kKeys + kWorth]), mul(load(to), set1(shrink[w]))));
    }
}

template <int W, int G>
void byte_values(const Run* runs, const float* s, const int* sees, int rows, int size, const float* shrink, float* y) {
  const int fours = (sees[rows - 1] + 3) / 4;
  int c = 0;
  for (; c + G * kLanes <= size; c += G * kLanes) byte_value_panel<W, G>(runs, s, fours, c, size, shrink, y);
  for (; c < size; c += kLanes) byte_value_panel<W, 1>(runs, s, fours, c, size, shrink, y);
  prefetch_scales(runs[0].next_values, size);
}

template <int W, int G>
constexpr RowKernels byte_kernels() {
  return {W, place_byte_row<W>, byte_scores<W, G>, byte_values<W, G>};
}

inline constexpr RowKernels kByteKernels[] = {
#if defined(TENTH_AVX512)
    byte_kernels<1, 4>(), byte_kernels<2, 4>(), byte_kernels<4, 2>(), byte_kernels<8, 1>(),
#else
    byte_kernels<1, 2>(), byte_kernels<2, 1>(),
#endif
};

// one row of scores to whole weights times the values' scales, zero where it does not see; returns the sum of the
// weights as they were, by lanes, added to `total`
template <bool sees_all>
inline __attribute__((always_inline)) F weigh_bytes(float* x, int sees, const float* scales, F top, F total) {
  F weight[kRuns], most = zero(), all = zero();
#pragma GCC unroll 4
  for (int g = 0; g < kRuns; ++g) {
    weight[g] = zero();
    const int left = sees_all ? kLanes : sees - g * kLanes;
    if (left <= 0) continue;
    const F p = exp2_falling(sub(load(x + g * kLanes), top));
    total = add(total, p);
    weight[g] = mul(p, load(scales + g * kLanes));
    if (left < kLanes) weight[g] = select((uint16_t)((1 << left) - 1), weight[g], zero());
    most = max(most, weight[g]);
    all = add(all, weight[g]);
  }
  // what is no number counts for the whole row
  const Whole whole(is_nan(all) ? std::numeric_limits<float>::quiet_NaN() : max_lanes(most), kMostWeight);
  int8_t* bytes = (int8_t*)x;
#pragma GCC unroll 4
  for (int g = 0; g < kRuns; ++g) {
    const I p = whole.of(weight[g]);
    store_bytes(bytes + g * kLanes, shift_right(p, 7));
    store_bytes(bytes + kLowBytes + g * kLanes, and_bits(p, set1i(127)));
  }
  x[kWorth] = whole.worth;
  return total;
}

// `soften` for values that are bytes
inline void soften_bytes(float* s, const int* sees, int rows, const float* scales, float* best, float* sum,
                         float* shrink) {
  soften_rows(s, sees, rows, best, sum, shrink, [&](float* x, int sees, F top, F total) {
    return sees == kKeys ? weigh_bytes<true>(x, kKeys, scales, top, total)
                         : weigh_bytes<false>(x, sees, scales, top, total);
  });
}

}  // namespace tenth::TENTH_ISA
