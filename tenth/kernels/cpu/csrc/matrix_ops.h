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

inline int panels_of(const Matrix& w) { return (w.tiles() + kMaxTiles - 1) / kMaxTiles; }

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

  for (int64_t unit; (unit = team.claim(1)) < units;) {
    int i = 0;
    for (int here; unit >= (here = panels_of(*a.out[i].w)); ++i) unit -= here;
    const LinearArgs::Out& o = a.out[i];
    const Matrix& w = *o.w;
    const std::vector<Cut>& cuts = lists[(int)form_of(w)].cuts;
    const int tile = (int)unit * kMaxTiles, count = std::min(kMaxTiles, w.tiles() - tile);
    multiply(w, tile, count, cuts.data(), (int)cuts.size(), memory, own, [&](int token, int t, F value) {
      const int row = (tile + t) * kLanes;
      write_tile(o.y + token * o.y_stride + row, value, o.bias ? o.bias + row : nullptr, w.rows - row);
    });
  }
  team.barrier();
}

// The experts of a batch. An assignment is a (token, k) pair; those of one expert lie together, in order of tokens.
struct Work {
  struct Group {
    int expert, first, count;  // assignments first ... first + count - 1 of the sorted list
    int x_cut, x_cuts;         // its blocks of inputs
    int h_cut, h_cuts;         // its blocks of hidden values
  };
  std::vector<int> assignment;  // sorted: token * top_k + k
  std::vector<Group> groups;
  std::vector<Cut> x, h;  // `first` counts within the group
  size_t bytes = 0;       // of all blocks

  void plan(const ExpertArgs& a) {
    const int total = a.tokens * a.top_k;
    next_.assign(a.num_experts + 1, 0);
    for (int i = 0; i < total; ++i) ++next_[a.experts[i] + 1];
    for (int e = 0; e < a.num_experts; ++e) next_[e + 1] += next_[e];
    x.clear(), h.clear(), groups.clear();
    bytes = 0;
    for (int e = 0; e < a.num_experts; ++e) {
      const int count = next_[e + 1] - next_[e];
      if (!count) continue;
      const Matrix &gate = a.table[e].gate, &down = a.table[e].down;
      Group group{e, next_[e], count, (int)x.size(), 0, (int)h.size(), 0};
      bytes = cut(x, form_of(gate), gate.padded, count, bytes);
      bytes = cut(h, form_of(down), down.padded, count, bytes);
      group.x_cuts = (int)x.size() - group.x_cut, group.h_cuts = (int)h.size() - group.h_cut;
      groups.push_back(group);
    }
    assignment.resize(total);
    for (int i = 0; i < total; ++i) assignment[next_[a.experts[i]]++] = i;
  }

 private:
  std::vector<int> next_;
};

inline F load_some(const float* p, int count) {
  float lanes[kLanes] = {};
  std::memcpy(lanes, p, count * sizeof(float));
  return load(lanes);
}

inline void expert_ffn(Team& team, const ExpertArgs& a) {
  [[maybe_unused]] const Tiles tiles;
  static thread_local Work work;
  work.plan(a);
  const Matrix &gate = a.table[0].gate, &down = a.table[0].down;
  const int inner = gate.rows, groups = (int)work.groups.size(), total = a.tokens * a.top_k;
  const bool alone = a.tokens <= kRedundant || team.size == 1, fused = a.tokens == 1 && a.top_k <= 64;
  size_t product = 0;
  for (const Work::Group& group : work.groups) {
    const Expert& w = a.table[group.expert];
    for (const Matrix* part : {&w.gate, &w.up, &w.down}) product = std::max(product, product_bytes(*part, group.count));
  }
  // this thread's: a product's memory, gates beside their ups, a quantised row of hidden values
  const size_t h_row = row_bytes(Form::kSteps, down.padded), up_bytes = sizeof(float) * kPanelRows * (total + 1);
  // shared: hidden values, each expert's outputs, quantised inputs, all blocks
  const size_t h_bytes = line(sizeof(float) * total * inner), y_bytes = fused ? 0 : line(sizeof(float) * total * a.width);
  const size_t x_row = row_bytes(Form::kSteps, gate.padded), x_bytes = x_row * a.tokens;
  uint8_t* own = (uint8_t*)team.local(line(product) + line(up_bytes) + h_row + (alone ? x_bytes + work.bytes : 0));
  float* gates = (float*)(own + line(product));
  uint8_t* own_row = (uint8_t*)gates + line(up_bytes);
  float* h = (float*)team.shared(h_bytes + y_bytes + (alone ? 0 : x_bytes + work.bytes));
  float* parts = (float*)((uint8_t*)h + h_bytes);  // [assignment][width]
  uint8_t* rows = alone ? own_row + h_row : (uint8_t*)parts + y_bytes;
  uint8_t* blocks = rows + x_bytes;

  auto each = [&](int64_t count, auto&& run) {  // a phase: alone each thread does all of it for itself
    if (alone) {
      for (int64_t i = 0; i < count; ++i) run((int)i);
      return;
    }
    for (int64_t i; (i = team.claim(1)) < count;) run((int)i);
    team.barrier();
  };
  if (form_of(gate) != Form::kFloats)
    each(a.tokens, [&](int token) {
      quantise_row(form_of(gate), a.x + token * a.x_stride, gate.columns, gate.padded, rows + token * x_row);
    });
  each(groups, [&](int i) {
    const Work::Group& group = work.groups[i];
    const Matrix& w = a.table[group.expert].gate;
    for (int j = group.x_cut; j < group.x_cut + group.x_cuts; ++j) {
      const Cut& c = work.x[j];
      for (int m = 0; m < shape_at(form_of(w), c.shape).width; ++m) {
        const int token = m < c.count ? work.assignment[group.first + c.first + m] / a.top_k : -1;
        const void* row = token < 0                        ? nullptr
                          : form_of(w) == Form::kFloats ? (const void*)(a.x + token * a.x_stride)
                                                           : rows + token * x_row;
        place(form_of(w), c.shape, blocks + c.offset, m, row, w.columns, w.padded);
      }
    }
  });

  const int up_panels = panels_of(gate), down_panels = panels_of(down);
  for (int64_t unit; (unit = team.claim(1)) < (int64_t)groups * up_panels;) {
    const Work::Group& group = work.groups[unit / up_panels];
    const Expert& w = a.table[group.expert];
    const int tile = (int)(unit % up_panels) * kMaxTiles, count = std::min(kMaxTiles, w.gate.tiles() - tile);
    const Cut* cuts = &work.x[group.x_cut];
    multiply(w.gate, tile, count, cuts, group.x_cuts, blocks, own, [&](int i, int t, F value) {
      store(gates + ((size_t)i * kMaxTiles + t) * kLanes, value);
    });
    multiply(w.up, tile, count, cuts, group.x_cuts, blocks, own, [&](int i, int t, F value) {
      const F gate = load(gates + ((size_t)i * kMaxTiles + t) * kLanes);
      const int row = (tile + t) * kLanes;
      write_tile(h + (size_t)(group.first + i) * inner + row, mul(silu(gate), value), nullptr, inner - row);
    });
  }
  team.barrier();

  each(groups, [&](int i) {
    const Work::Group& group = work.groups[i];
    const Matrix& w = a.table[group.expert].down;
    const Form form = form_of(w);
    for (int j = group.h_cut; j < group.h_cut + group.h_cuts; ++j) {
      const Cut& c = work.h[j];
      for (int m = 0; m < shape_at(form, c.shape).width; ++m) {
        const float* x = h + (size_t)(group.first + c.first + m) * inner;
        const void* row = m < c.count ? x : nullptr;
        if (row && form != Form::kFloats) {
          quantise_row(form, x, w.columns, w.padded, own_row);
          row = own_row;
        }
        place(form, c.shape, blocks + c.offset, m, row, w.columns, w.padded);
      }
    }
  });

  // a token's output is summed in order of k: what a batch or a cut of the prompt cannot change
  if (fused) {
    for (int64_t unit; (unit = team.claim(1)) < down_panels;) {
      const int tile = (int)unit * kMaxTiles, count = std::min(kMaxTiles, down.tiles() - tile);
      F part[64][kMaxTiles];
      for (const Work::Group& group : work.groups)
        multiply(a.table[group.expert].down, tile, count, &work.h[group.h_cut], group.h_cuts, blocks, own,
                 [&](int, int t, F value) { part[work.assignment[group.first]][t] = value; });
      for (int t = 0; t < count; ++t) {
        F y = zero();
        for (int k = 0; k < a.top_k; ++k) y = fma(set1(a.gates[k]), part[k][t], y);
        const int row = (tile + t) * kLanes;
        write_tile(a.y + row, y, nullptr, a.width - row);
      }
    }
    team.barrier();
    return;
  }
  for (int64_t unit; (unit = team.claim(1)) < (int64_t)groups * down_panels;) {
    const Work::Group& group = work.groups[unit / down_panels];
    const int tile = (int)(unit % down_panels) * kMaxTiles, count = std::min(kMaxTiles, down.tiles() - tile);
    multiply(a.table[group.expert].down, tile, count, &work.h[group.h_cut], group.h_cuts, blocks, own,
             [&](int i, int t, F value) {
               const int row = (tile + t) * kLanes;
               write_tile(parts + (size_t)work.assignment[group.first + i] * a.width + row, value, nullptr, a.width - row);
             });
  }
  team.barrier();
  for (int64_t token; (token = team.claim(1)) < a.tokens;) {
    float* y = a.y + token * a.y_stride;
    const float *weights = a.gates + token * a.top_k, *from = parts + (size_t)token * a.top_k * a.width;
    for (int row = 0; row < a.width; row += kLanes) {
      const int count = std::min(kLanes, a.width - row);
      F sum = zero();
      for (int k = 0; k < a.top_k; ++k) {
        const float* part = from + (size_t)k * a.width + row;
        sum = fma(set1(weights[k]), count == kLanes ? load(part) : load_some(part, count), sum);
      }
      write_tile(y + row, sum, nullptr, count);
    }
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
