// The arguments of the operations that train. Rows of numbers are float32, or bfloat16 where `half`; sums are float32.
#pragma once

#include <cstdint>

namespace tenth {

// which rows go to which expert: assignments sorted by expert, those of one in order of their tokens
struct Routes {
  int64_t tokens;
  int top_k, experts;
  const int64_t* offsets;  // [experts + 1]: where each expert's assignments begin
  const int32_t* token;    // [assignments]
  const int32_t* place;    // [assignments]: token * top_k + k
  const int32_t* row;      // [tokens][top_k]: the assignment, or -1 where it is left out
};

struct TrainedExperts {
  bool half;
  int width, inner;      // inner: a multiple of 16
  const void *w13, *w2;  // [E][2 F][D], [E][D][F]
};

struct ExpertForwardArgs {
  Routes routes;
  TrainedExperts table;
  const void* x;
  int64_t x_stride;
  const float* gates;  // [tokens][top_k]
  void* gate_up;       // [2 F / 32][assignments][32], kept for the gradient; or null
  void* y;             // [tokens][D]
};

struct WeightGradient {  // null data: not wanted
  void* data;
  bool half;  // its type
};

struct ExpertBackwardArgs {
  Routes routes;
  TrainedExperts table;
  const void* x;
  int64_t x_stride;
  const float* gates;
  const void* gate_up;
  const void* dy;     // [tokens][D]
  void* dx;           // [tokens][D], or null
  float* dgates;      // [tokens][top_k]
  WeightGradient dw13, dw2;
};

struct TrainLinearArgs {  // one matrix
  enum Kind { kForward, kInput, kWeight } kind;
  bool half;
  int64_t rows;
  int inputs, outputs;
  const void* x;  // [rows][I]: forward and weight
  int64_t x_stride;
  const void* w;  // [O][I]: forward and input
  const void* dy;  // [rows][O]: input and weight
  void* y;         // forward: [rows][O], input: dx [rows][I]
  WeightGradient dw;
};

// Causal attention within documents: document s is rows bounds[s] to bounds[s + 1]. Forward where dy is null.
struct TrainAttentionArgs {
  bool half;
  int heads, kv_heads, size, documents;
  const int64_t* bounds;
  float scale;
  const void *q, *k, *v;  // [T][heads][size], [T][kv_heads][size] twice
  void* y;                // [T][heads][size]; read where there is dy
  float* log_sum;         // [heads][T], to base 2; the same
  const void* dy;         // [T][heads][size]
  float* product;         // [heads][T]: room
  void *dq, *dk, *dv;
};

// Rows normalised where there is a weight, and turned to their positions where there are cosines: `heads` rows a token.
struct TrainRowsArgs {
  bool half;
  int64_t rows;
  int heads, width;
  const void* x;
  const void* plus;  // or null: added first
  void* sum;         // x + plus, where there is `plus`
  const float* weight;  // or null
  float eps;
  const float *cos, *sin;  // [rows / heads][width / 2], or null
  void* y;
};

struct TrainRowsBackwardArgs {
  bool half;
  int64_t rows;
  int heads, width;
  const void* x;  // what was normalised
  const float* weight;
  float eps;
  const float *cos, *sin;
  const void* dy;
  const void* dsum;  // or null: the gradient of the sum, added to dx
  void* dx;
  float* dweight;  // or null
};

}  // namespace tenth
