// A few tiles of a matrix times all blocks of tokens.
#pragma once

#include <algorithm>
#include <vector>

#include "forms.h"

#if defined(TENTH_AMX)
#include "amx.h"
#endif

namespace tenth::TENTH_ISA {

constexpr int kPanelRows = kMaxTiles * kLanes;

inline int panels_of(const Matrix& w) { return (w.tiles() + kMaxTiles - 1) / kMaxTiles; }

// the bytes of a panel, to be asked for before its turn; none where there is no such panel
inline Ahead ahead_of(const Matrix& w, int64_t panel) {
  const int64_t tile = panel * kMaxTiles, count = std::min<int64_t>(kMaxTiles, w.tiles() - tile);
  return count > 0 ? Ahead(w.tile((int)tile), count * w.tile_bytes) : Ahead();
}

#if !defined(TENTH_AMX)
struct Tiles {};  // no registers to set up
#endif

// what one call of `multiply` needs for itself
inline size_t product_bytes(const Matrix& w, int tokens) {
  const size_t out = (size_t)kMaxTiles * (tokens + kMostWide) * kLanes * sizeof(float);
  if (form_of(w) != Form::kSupers) return out + TileScales::bytes(w);
  return out + (size_t)kMaxTiles * kSuper * kLanes + kMaxTiles * 256 * sizeof(int32_t);
}

// one block at a time, by the kernels of panel.h
template <class Write>
void multiply_steps(const Matrix& w, int tile, int count, const Cut* cuts, int n, const uint8_t* blocks, uint8_t* memory,
                    Ahead& ahead, const Write& write) {
  const Kind kind = kind_of(w);
  float* out = (float*)memory;
  float* scales = out + (size_t)kMaxTiles * kMaxWidth * kLanes;
  PanelArgs args{};
  args.steps = w.padded / kStep;
  args.padded = w.padded;
  args.group_shift = w.group <= 32 ? 0 : w.group == 64 ? 1 : 2;
  const size_t size = is_float(kind) ? 0 : (size_t)(w.padded / w.group) * kLanes;
  for (int t = 0; t < count && !is_float(kind); ++t)
    read_scales(w, w.tile(tile + t), scales + 2 * t * size, scales + (2 * t + 1) * size);
  for (int i = 0; i < n; ++i) {
    const Cut& c = cuts[i];
    const int width = kWidths[c.shape];
    args.x = blocks + c.offset;
    for (int t = 0; t < count;) {
      const bool whole = count - t >= kTiles[c.shape];
      const int now = whole ? kTiles[c.shape] : 1;
      for (int k = 0; k < now; ++k) {
        args.quants[k] = w.tile(tile + t + k);
        args.scales[k] = scales + 2 * (t + k) * size;
        args.minimums[k] = args.scales[k] + size;
      }
      args.ahead = ahead;
      kPanels.at[kind][c.shape][whole ? 0 : 1](args, out);
      ahead = args.ahead;
      for (int k = 0; k < now; ++k)
        for (int m = 0; m < c.count; ++m) write(c.first + m, t + k, load(out + (k * width + m) * kLanes));
      t += now;
    }
  }
}

template <int shape>
void super_panels(SuperPanelArgs& args, int tiles, float* out) {
  if constexpr (kSuperShapes[shape].lay == Lay::kSigned) {
    constexpr int width = kSuperShapes[shape].width;
    if (tiles == kSuperTiles[shape])
      super_panel<kSuperTiles[shape], width>(args, out);
    else
      super_panel<1, width>(args, out);
  }
}

template <class Write>
void multiply_few(const Matrix& w, int tile, int count, const Cut& c, const uint8_t* blocks, float* out, Ahead& ahead,
                  const Write& write) {
  const int width = kSuperShapes[c.shape].width, most = kSuperTiles[c.shape];
  SuperPanelArgs args{{}, w.scales, w.sub_scales, w.padded, blocks + c.offset, ahead};
  for (int t = 0; t < count;) {
    const int now = count - t >= most ? most : 1;
    for (int k = 0; k < now; ++k) args.tiles[k] = w.tile(tile + t + k);
    switch (c.shape) {
      case 0: super_panels<0>(args, now, out); break;
      case 1: super_panels<1>(args, now, out); break;
      default: super_panels<2>(args, now, out);
    }
    for (int k = 0; k < now; ++k)
      for (int m = 0; m < c.count; ++m) write(c.first + m, t + k, load(out + (k * width + m) * kLanes));
    t += now;
  }
  ahead = args.ahead;
}

#if defined(TENTH_AMX)
constexpr int kBlockWork = 4 * (kTilesWork + kAddWork);  // of a superblock of a block of tokens
#else
constexpr int kWideWork = 8, kBlockWork = 4 * kWideWork;

template <int T>
void wide_block(int width, const int8_t* const* w, const I* rows, const F* d, const int8_t* q, const float* scale,
                int columns, float* y, size_t tile_stride) {
#if defined(TENTH_AVX512)
  if (width == 12)
    super_wide<T, 12>(w, rows, d, q, scale, columns, y, tile_stride);
  else
    super_wide<T, 8>(w, rows, d, q, scale, columns, y, tile_stride);
#else
  super_wide<T, 4>(w, rows, d, q, scale, columns, y, tile_stride);
#endif
}
#endif

// wide blocks: a superblock of the tiles is unpacked once for all of them
template <class Write>
void multiply_wide(const Matrix& w, int tile, int count, const Cut* cuts, int n, const uint8_t* blocks, uint8_t* memory,
                   Ahead& ahead, const Write& write) {
  int8_t* unpacked = (int8_t*)memory;
  int32_t* sums = (int32_t*)(unpacked + kMaxTiles * kSuper * kLanes);
  float* y = (float*)(sums + kMaxTiles * 256);
  size_t places = 0;
  for (int i = 0; i < n; ++i) places += kSuperShapes[cuts[i].shape].width;
  const size_t tile_stride = places * kLanes;
  std::memset(y, 0, count * tile_stride * sizeof(float));
  const int8_t* at[kMaxTiles];
  for (int t = 0; t < kMaxTiles; ++t) at[t] = unpacked + std::min(t, count - 1) * kSuper * kLanes;
  ahead.pace(kSuperLines * count, kUnpackWork * 8 * count + kBlockWork * n);
  for (int s = 0; s < supers(w.padded); ++s) {
    const int first = s * kSuper, columns = std::min(kSuper, w.padded - first);
    F d[kMaxTiles];
    [[maybe_unused]] I rows[kMaxTiles];
    for (int t = 0; t < count; ++t) {
      const uint8_t* data = w.tile(tile + t);
      int8_t* to = unpacked + t * kSuper * kLanes;
#if defined(TENTH_AMX)
      unpack_super(data, w.sub_scales, first, columns, to, nullptr, ahead);
      if (columns % 64) std::memset(to + columns * kLanes, 0, 32 * kLanes);
#else
      rows[t] = set1i(0);
      unpack_super(data, w.sub_scales, first, columns, to, &rows[t], ahead);
#endif
      d[t] = load_half((const uint16_t*)(data + w.scales) + s * kLanes);
    }
    float* to = y;
    for (int i = 0; i < n; ++i) {
      const int width = kSuperShapes[cuts[i].shape].width;
      const SuperBlock x(const_cast<uint8_t*>(blocks) + cuts[i].offset, w.padded, width);
      const int8_t* q = x.q + (size_t)first * width;
      const float* scale = x.scale + (size_t)s * width;
#if defined(TENTH_AMX)
      tile_sums(at, q, (columns + 63) / 64 * 64, sums, ahead);
      for (int t = 0; t < count; ++t) {
        add_sums(sums + t * 256, d[t], scale, cuts[i].count, to + t * tile_stride);
        ahead.work(kAddWork);
      }
#else
      for (int t = 0; t < count;) {
        if (count - t >= 2 && kSuperTiles[cuts[i].shape] == 2) {
          wide_block<2>(width, at + t, rows + t, d + t, q, scale, columns, to + t * tile_stride, tile_stride);
          ahead.work(2 * kWideWork);
          t += 2;
        } else {
          wide_block<1>(width, at + t, rows + t, d + t, q, scale, columns, to + t * tile_stride, tile_stride);
          ahead.work(kWideWork);
          ++t;
        }
      }
#endif
      to += width * kLanes;
    }
  }
  const float* from = y;
  for (int i = 0; i < n; ++i) {
    for (int t = 0; t < count; ++t)
      for (int m = 0; m < cuts[i].count; ++m) write(cuts[i].first + m, t, load(from + t * tile_stride + m * kLanes));
    from += kSuperShapes[cuts[i].shape].width * kLanes;
  }
}

// `count` tiles from `tile` on, times the blocks of `n` cuts (of one list, the widest first). `write` is told a
// token, a tile (counted from `tile`) and their 16 values. `memory`: product_bytes of w and all tokens.
template <class Write>
void multiply(const Matrix& w, int tile, int count, const Cut* cuts, int n, const uint8_t* blocks, uint8_t* memory,
              Ahead ahead, const Write& write) {
  if (form_of(w) != Form::kSupers) {
    multiply_steps(w, tile, count, cuts, n, blocks, memory, ahead, write);
    return;
  }
  int wide = 0;
  while (wide < n && kSuperShapes[cuts[wide].shape].lay != Lay::kSigned) ++wide;
  if (wide) multiply_wide(w, tile, count, cuts, wide, blocks, memory, ahead, write);
  for (int i = wide; i < n; ++i) multiply_few(w, tile, count, cuts[i], blocks, (float*)memory, ahead, write);
}

}  // namespace tenth::TENTH_ISA
