// Products with packed matrices: linear layers, the experts, embedding rows.
#pragma once

#include <algorithm>
#include <vector>

#include "ops.h"
#include "products.h"

namespace tenth::TENTH_ISA {

constexpr int kRedundant = 2;  // up to so many tokens each thread quantises for itself: cheaper than to wait

// 16 values of a tile's rows to y, as many as there are; plus the bias
inline void write_tile(float* y, F value, const float* bias, int rows) {
  if (rows >= kLanes) {
    store(y, bias ? add(value, load(bias)) : value);
    return;
  }
  float lanes[kLanes];
  store(lanes, value);
  for (int i = 0; i < rows; ++i) y[i] = bias ? lanes[i] + bias[i] : lanes[i];
}

// Rows that are cut into blocks of one form; an operation on several matrices may need more than one such list.
struct Blocks {
  Form form;
  int columns, padded;
  std::vector<Cut> cuts;
  size_t begin = 0;  // of the quantised rows in the operation's memory; the blocks lie behind them

  size_t row(int i) const { return begin + i * row_bytes(form, padded); }
};

inline void linear(Team& team, const LinearArgs& a) {
  [[maybe_unused]] const Tiles tiles;
  static thread_local Blocks lists[3];
  bool used[3] = {};
  int units = 0;
  size_t product = 0, bytes = 0;
  for (int i = 0; i < a.count; ++i) {
    const Matrix& w = *a.out[i].w;
    units += panels_of(w);
    product = std::max(product, product_bytes(w, a.tokens));
    const int f = (int)form_of(w);
    if (used[f]) continue;
    used[f] = true;
    Blocks& list = lists[f];
    list.form = form_of(w), list.columns = w.columns, list.padded = w.padded, list.begin = bytes;
    list.cuts.clear();
    bytes = cut(list.cuts, list.form, w.padded, a.tokens, list.row(a.tokens));
  }
  const bool alone = a.tokens <= kRedundant || team.size == 1;
  uint8_t* own = (uint8_t*)team.local(product + (alone ? bytes : 0));
  uint8_t* memory = alone ? own + product : (uint8_t*)team.shared(bytes);

  auto fill = [&](const Blocks& list, const Cut& c) {
    for (int m = 0; m < shape_at(list.form, c.shape).width; ++m) {
      const float* x = a.x + (c.first + m) * a.x_stride;
      const void* row = m < c.count ? x : nullptr;
      if (row && list.form != Form::kFloats) {
        row = memory + list.row(c.first + m);
        quantise_row(list.form, x, list.columns, list.padded, (void*)row);
      }
      place(list.form, c.shape, memory + c.offset, m, row, list.columns, list.padded);
    }
  };
  for (int f = 0; f < 3; ++f) {
    if (!used[f]) continue;
    const int64_t total = lists[f].cuts.size();
    if (alone) {
      for (const Cut& c : lists[f].cuts) fill(lists[f], c);
    } else {
      for (int64_t i; (i = team.claim(1)) < total;) fill(lists[f], lists[f].cuts[i]);
      team.barrier();
    }
  }

  auto find = [&](int64_t unit, int& panel) {  // the matrix that a unit of work is a panel of
    int i = 0;
    for (int here; i < a.count && unit >= (here = panels_of(*a.out[i].w)); ++i) unit -= here;
    panel = (int)unit;
    return i;
  };
  for (int64_t unit; (unit = team.claim(1)) < units;) {
    int panel, next_panel;
    const LinearArgs::Out& o = a.out[find(unit, panel)];
    const int next = find(unit + team.size, next_panel);
    const Ahead ahead = next < a.count ? ahead_of(*a.out[next].w, next_panel) : Ahead();
    const Matrix& w = *o.w;
    const std::vector<Cut>& cuts = lists[(int)form_of(w)].cuts;
    const int tile = panel * kMaxTiles, count = std::min(kMaxTiles, w.tiles() - tile);
    multiply(w, tile, count, cuts.data(), (int)cuts.size(), memory, own, ahead, [&](int token, int t, F value) {
      const int row = (tile + t) * kLanes;
      write_tile(o.y + token * o.y_stride + row, value, o.bias ? o.bias + row : nullptr, w.rows - row);
    });
  }
  team.barrier();
}

// one row of a tile, dense
inline void gather_row(const Matrix& w, int64_t row, float* y, float* scratch) {
  const uint8_t* tile = w.tile((int)(row / kLanes));
  const int lane = (int)(row % kLanes);
  const Kind kind = kind_of(w);
  if (is_float(kind)) {
    for (int c = 0; c < w.columns; ++c) {
      uint32_t bits;
      if (kind == kFp32) {
        std::memcpy(&bits, tile + ((size_t)c * kLanes + lane) * 4, 4);
      } else {
        std::memcpy(&bits, tile + ((size_t)(c / 2) * kLanes + lane) * 4, 4);
        bits = c % 2 ? bits & 0xffff0000 : bits << 16;
      }
      std::memcpy(y + c, &bits, 4);
    }
    return;
  }
  const size_t size = (size_t)(w.padded / w.group) * kLanes;
  read_scales(w, tile, scratch, scratch + size);
  for (int c = 0; c < w.columns; ++c) {
    int q;
    if (w.bits == 4) {
      const uint8_t byte = tile[(size_t)(c / 8) * 64 + 4 * lane + c % 4];
      q = c % 8 < 4 ? byte & 15 : byte >> 4;
    } else {
      q = tile[(size_t)(c / 4) * 64 + 4 * lane + c % 4];
    }
    const size_t at = (size_t)(c / w.group) * kLanes + lane;
    const float scale = scratch[at];
    y[c] = w.minimums ? scale * (float)q + scratch[size + at] : scale * (float)(q - (w.bits == 4 ? 8 : 128));
  }
}

inline void gather(Team& team, const GatherArgs& a) {
  float* scratch = a.w ? (float*)team.local(TileScales::bytes(*a.w) + 64) : nullptr;
  for (int64_t i; (i = team.claim(1)) < a.tokens;) {
    float* y = a.y + i * a.y_stride;
    if (a.w)
      gather_row(*a.w, a.ids[i], y, scratch);
    else
      std::memcpy(y, a.table + a.ids[i] * a.table_stride, a.columns * sizeof(float));
  }
  team.barrier();
}

}  // namespace tenth::TENTH_ISA
