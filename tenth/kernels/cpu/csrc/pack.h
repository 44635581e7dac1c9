// Activations on their way into a product: quantised to INT8 by token and group of 32, laid out in blocks.
//
// A block holds up to M tokens side by side: four columns of each token in turn, so that a kernel walks it with one
// pointer. The scale of a group is its largest magnitude / 127; a group with NaN or infinity has the scale NaN, so a
// token that holds one gets NaN in every output, and no other token does. Magnitudes under 2^-100 count as zero.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd.h"

namespace tenth::TENTH_ISA {

constexpr int kStep = 32;  // columns that share an activation scale

// a block of `width` tokens of `columns` columns, in one piece of memory
struct Block {
  int8_t* q;         // [columns / 4][width][4]
  float* scale;      // [columns / 32][width]
  int32_t* sum;      // [columns / 32][width]: of q
  int32_t* sum_low;  // [columns / 32][width]: of q of the first 16 of the 32 columns
  float* offset;     // [columns / 32][width]: scale * sum

  static size_t bytes(int columns, int width) { return ((size_t)columns * width * 3 / 2 + 63) / 64 * 64; }
  Block(void* memory, int columns, int width) {
    const size_t groups = (size_t)columns / kStep * width;
    q = (int8_t*)memory;
    scale = (float*)(q + (size_t)columns * width);
    sum = (int32_t*)(scale + groups);
    sum_low = sum + groups;
    offset = (float*)(sum_low + groups);
  }
};

// 32 floats to 32 signed bytes; returns the scale
inline float quantise32(const float* x, int8_t* q) {
  const F a = load(x), b = load(x + 16);
  // x - x is 0 but for infinity and NaN
  const F odd = add(sub(a, a), sub(b, b));
  const float largest = max_lanes(max(abs(a), abs(b))) + sum_lanes(odd);
  if (!(largest > 0x1p-100f)) {
    std::memset(q, 0, 32);
    return largest != largest ? largest : 0.0f;
  }
  const float scale = largest / 127.0f;
  const F inverse = set1(127.0f / largest);
  store_bytes(q, to_int(mul(a, inverse)));
  store_bytes(q + 16, to_int(mul(b, inverse)));
  return scale;
}

// place 32 quantised columns, those of group g, as token m of the block
inline void place32(const Block& block, int width, int m, int g, const int8_t* q, float scale) {
  int low = 0, high = 0;
  for (int i = 0; i < 16; ++i) low += q[i];
  for (int i = 16; i < 32; ++i) high += q[i];
  for (int c = 0; c < 8; ++c) std::memcpy(block.q + ((size_t)(g * 8 + c) * width + m) * 4, q + c * 4, 4);
  const size_t at = (size_t)g * width + m;
  block.scale[at] = scale;
  block.sum[at] = low + high;
  block.sum_low[at] = low;
  block.offset[at] = scale * (float)(low + high);
}

// float blocks, for bfloat16 and float32 weights: [padded][width]
inline void place_floats(float* block, int width, int m, const float* x, int columns, int padded) {
  for (int c = 0; c < padded; ++c) block[(size_t)c * width + m] = x && c < columns ? x[c] : 0.0f;
}

}  // namespace tenth::TENTH_ISA
