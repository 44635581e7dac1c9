// Rows of activations in the three forms that products take: floats, INT8 by groups of 32, INT8 by superblocks of 256.
//
// Rows are quantised once, then placed in blocks: a block is some tokens side by side in the order that a kernel walks.
#pragma once

#include <vector>

#include "pack.h"
#include "panel.h"
#include "superblock.h"

namespace tenth::TENTH_ISA {

enum class Form { kFloats, kSteps, kSupers };

inline Form form_of(const Matrix& w) {
  const Kind kind = kind_of(w);
  return is_float(kind) ? Form::kFloats : kind == kInt4Super ? Form::kSupers : Form::kSteps;
}

// blocks of a form: how many tokens are side by side, and for superblocks in which order
struct Shape {
  int width;
  Lay lay = Lay::kSigned;
};
#if defined(TENTH_AMX)
constexpr Shape kSuperShapes[] = {{1}, {2}, {4}, {16, Lay::kTile}};
constexpr int kSuperTiles[] = {4, 4, 2, 4};
#elif defined(TENTH_AVX512)
constexpr Shape kSuperShapes[] = {{1}, {2}, {4}, {8, Lay::kUnsigned}, {12, Lay::kUnsigned}};
constexpr int kSuperTiles[] = {4, 4, 2, 2, 2};
#else
constexpr Shape kSuperShapes[] = {{1}, {2}, {4, Lay::kUnsigned}};
constexpr int kSuperTiles[] = {2, 1, 1};
#endif
constexpr int kNumSuperShapes = sizeof kSuperShapes / sizeof *kSuperShapes;
constexpr int kMostWide = 16;

inline int count_of_shapes(Form form) { return form == Form::kSupers ? kNumSuperShapes : kShapes; }
inline Shape shape_at(Form form, int i) { return form == Form::kSupers ? kSuperShapes[i] : Shape{kWidths[i]}; }

// some tokens of a list, in one block
struct Cut {
  int first, count, shape;
  size_t offset;  // of the block's memory
};

inline size_t line(size_t bytes) { return (bytes + 63) / 64 * 64; }

inline size_t block_bytes(Form form, int padded, int width) {
  if (form == Form::kFloats) return line((size_t)padded * width * sizeof(float));
  return line(form == Form::kSupers ? SuperBlock::bytes(padded, width) : Block::bytes(padded, width));
}

// The widest block that is filled, or nearly: one with a quarter of its places empty costs less than two. A tile of AMX
// costs the same however few tokens it has: most is the unpacking of the weights, once for all tiles.
inline int shape_for(Form form, int tokens, bool unpacked) {
  constexpr int kLeastInTile = 5, kLeastInNext = 2;
  int best = 0;
  for (int i = 0; i < count_of_shapes(form); ++i) {
    const auto [width, lay] = shape_at(form, i);
    const int least = lay != Lay::kTile ? (width * 3 + 3) / 4 : unpacked ? kLeastInNext : kLeastInTile;
    if (tokens >= least) best = i;
  }
  return best;
}

// appends the cuts of `tokens` tokens, the widest first; returns where memory behind their blocks begins
inline size_t cut(std::vector<Cut>& cuts, Form form, int padded, int tokens, size_t offset) {
  int first = 0;
  for (bool unpacked = false; tokens > 0; unpacked = true) {
    const int shape = shape_for(form, tokens, unpacked), width = shape_at(form, shape).width, count = std::min(tokens, width);
    cuts.push_back({first, count, shape, offset});
    offset += block_bytes(form, padded, width);
    first += count;
    tokens -= count;
  }
  return offset;
}

// ---- a quantised row: bytes, then the scales of its groups or superblocks. Float rows stay where they are.

inline size_t row_bytes(Form form, int padded) {
  const int scales = form == Form::kSupers ? supers(padded) : padded / kStep;
  return form == Form::kFloats ? 0 : line((size_t)padded + scales * sizeof(float));
}

inline void quantise_row(Form form, const float* x, int columns, int padded, void* memory) {
  int8_t* q = (int8_t*)memory;
  float* scale = (float*)(q + padded);
  const int size = form == Form::kSupers ? kSuper : kStep;
  alignas(64) float tail[kSuper];
  for (int c = 0; c < padded; c += size) {
    const int count = std::min(size, padded - c);
    const float* from = x + c;
    if (c + count > columns) {
      std::memset(tail, 0, sizeof tail);
      std::memcpy(tail, from, (columns - c) * sizeof(float));
      from = tail;
    }
    *scale++ = form == Form::kSupers ? quantise_super(from, q + c, count) : quantise32(from, q + c);
  }
}

// token m of a block: a quantised row, or floats; null: zeros
inline void place(Form form, int shape, void* block, int m, const void* row, int columns, int padded) {
  const Shape s = shape_at(form, shape);
  if (form == Form::kFloats) {
    place_floats((float*)block, s.width, m, (const float*)row, columns, padded);
    return;
  }
  const int8_t* q = (const int8_t*)row;
  const float* scale = (const float*)(q + padded);
  if (form == Form::kSupers) {
    place_super(SuperBlock(block, padded, s.width), s.lay, s.width, m, q, scale, padded);
    return;
  }
  static constexpr int8_t kNothing[kStep] = {};
  for (int g = 0; g < padded / kStep; ++g)
    place32(Block(block, padded, s.width), s.width, m, g, q ? q + g * kStep : kNothing, q ? scale[g] : 0.0f);
}

}  // namespace tenth::TENTH_ISA
