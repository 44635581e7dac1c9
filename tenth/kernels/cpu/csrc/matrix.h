// A packed matrix as it lies in the file: tiles of 16 rows. docs/packed.md draws the format.
#pragma once

#include <cstdint>

namespace tenth {

struct Matrix {
  const uint8_t* data;
  int64_t tile_bytes;
  int64_t scales, sub_scales, minimums, sub_minimums;  // where these begin in a tile (0: there are none)
  int rows, columns;                                   // as the network has them
  int padded;                                          // columns with padding, a multiple of 32
  int bits, group;                                     // 4, 8 (group columns a scale), 16 (bfloat16), 32 (float32)
  int step_bits;                                       // 8 or 4 where groups have steps of a superblock's scale

  int tiles() const { return (rows + 15) / 16; }
  const uint8_t* tile(int i) const { return data + i * tile_bytes; }
};

struct Expert {
  Matrix gate, up, down;
};

}  // namespace tenth
