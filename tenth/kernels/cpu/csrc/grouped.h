// The experts of a layer while it trains, forward: each expert's tokens times its matrices, a block of them at a time.
//
// A block of an expert's tokens is packed once and stays in the second cache; 32 columns of the weights at a time are packed
// beside it and used for all of its rows. What a number becomes does not depend on the blocks: every product of a row is
// summed over its whole axis in one go.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "grouped_products.h"
#include "ops.h"

namespace tenth::TENTH_ISA {

// ---- SwiGLU

#if defined(TENTH_AVX512)
inline F quick_inverse(F x) { return {_mm512_rcp14_ps(x.v)}; }
#else
inline F quick_inverse(F x) { return div(set1(1.0f), x); }
#endif

inline F sigmoid(F x, const float*) { return div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), x)))); }
// to 4e-5, for results that are rounded to bfloat16
inline F sigmoid(F x, const uint16_t*) {
  const F turned = min(set1(125.0f), max(set1(-125.0f), mul(x, set1(-1.44269504f))));
  const F n = nearest(turned), r = sub(turned, n);
  F p = set1(9.6181291e-3f);
  p = fma(p, r, set1(5.5504109e-2f));
  p = fma(p, r, set1(2.4022651e-1f));
  p = fma(p, r, set1(6.9314718e-1f));
  p = fma(p, r, set1(1.0f));
  return quick_inverse(add(set1(1.0f), scale2(p, n)));
}

// ---- blocks of an expert's assignments

struct RowBlock {
  int expert, count;
  int64_t first;  // assignment
};

// bytes of packed rows that should stay in the second cache
#if defined(TENTH_AMX)
constexpr int64_t kRowsCache = 6 << 18;
#else
constexpr int64_t kRowsCache = 1 << 19;
#endif

inline int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

inline int most_rows(int64_t row_bytes) {
  return (int)std::clamp<int64_t>(kRowsCache / row_bytes / kWide * kWide, 2 * kWide, 32 * kWide);
}

// an expert's assignments in blocks of like size
inline std::vector<RowBlock> row_blocks(const Routes& routes, int most) {
  std::vector<RowBlock> blocks;
  for (int e = 0; e < routes.experts; ++e) {
    const int64_t first = routes.offsets[e], count = routes.offsets[e + 1] - first;
    if (!count) continue;
    const int64_t parts = (count + most - 1) / most, size = round_up((count + parts - 1) / parts, kWide);
    for (int64_t at = 0; at < count; at += size)
      blocks.push_back({e, (int)std::min(size, count - at), first + at});
  }
  return blocks;
}

// memory in pieces that begin at cache lines; without memory it counts what they take
class Pieces {
 public:
  explicit Pieces(void* data) : data_((uint8_t*)data) {}
  template <class T>
  T* take(int64_t count) {
    T* piece = data_ ? (T*)(data_ + bytes_) : nullptr;
    bytes_ += round_up(count * (int64_t)sizeof(T), 64);
    return piece;
  }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* data_;
  int64_t bytes_ = 0;
};

// rows packed as left operands: a panel for each 16
template <class E, class Rows>
void pack_rows(uint8_t* to, const Rows& rows, int64_t first, int count, int summed) {
  for (int r = 0; r < count; r += kSide, to += panel_bytes<E>(summed))
    pack_along<E, false>(to, rows, first + r, std::min(count - r, kSide), summed);
}

// two panels of right operands, turned: 32 rows of a matrix (`count` of them there) whose neighbours are summed
template <class E, class Rows>
Panels pack_turned(uint8_t* to, const Rows& rows, int64_t first, int count, int summed) {
  const int64_t next = panel_bytes<E>(summed);
  for (int half = 0; half < std::min(count, kWide); half += kSide)
    pack_along<E, true>(to + half / kSide * next, rows, first + half, std::min(count - half, kSide), summed);
  return {to, next};
}

// the same of 32 columns of rows that are summed
template <class E, class Rows>
Panels pack_columns(uint8_t* to, const Rows& rows, int64_t first, int summed, int column, int count) {
  const int64_t next = panel_bytes<E>(summed);
  for (int half = 0; half < std::min(count, kWide); half += kSide)
    pack_across<E, false>(to + half / kSide * next, rows, first, summed, column + half, std::min(count - half, kSide));
  return {to, next};
}

inline int tiles_of(int count) { return count > kSide ? 2 : 1; }  // of at most 32

// Lines that the next panels are packed from, asked for while something else is multiplied: `rows` runs of `lines` lines.
class Asker {
 public:
  Asker() = default;
  template <class T>
  Asker(const T* first, int64_t stride, int rows, int64_t numbers)
      : at_((const uint8_t*)first), stride_(stride * (int64_t)sizeof(T)), rows_(rows),
        lines_((numbers * (int64_t)sizeof(T) + 63) / 64) {}
  int64_t lines() const { return rows_ * lines_; }
  void ask(int64_t count) {
    for (; count > 0 && rows_ > 0; --count) {
      prefetch_far(at_ + 64 * line_);
      if (++line_ < lines_) continue;
      line_ = 0;
      at_ += stride_;
      --rows_;
    }
  }

 private:
  const uint8_t* at_ = nullptr;
  int64_t stride_ = 0;
  int rows_ = 0;
  int64_t lines_ = 0, line_ = 0;
};

// each 32 of `count` packed rows times two panels of `columns`: done(row, rows, c) with c [32][32], which lies in
// sums [count to 32][32]
template <class E, class Done>
void times_panels(const uint8_t* rows, int count, const Panels& right, int columns, int summed, float* sums, Asker next_panels,
                  const Done& done) {
  const int64_t next = panel_bytes<E>(summed);
  const int depth = (int)(next / (E::kPlanes * kTileBytes));
  const int64_t times = (int64_t)((count + kWide - 1) / kWide) * ((depth + kDepthAtOnce<E> - 1) / kDepthAtOnce<E>);
  const int64_t asked = (next_panels.lines() + times - 1) / std::max<int64_t>(times, 1);
  for (int at = 0; at < depth; at += kDepthAtOnce<E>)
    for (int m = 0; m < count; m += kWide) {
      const int here = std::min(kWide, count - m), deep = std::min(kDepthAtOnce<E>, depth - at);
      const int64_t from = (int64_t)at * E::kPlanes * kTileBytes;
      const Panels left{rows + m / kSide * next + from, next}, part{right.data + from, right.next};
      next_panels.ask(asked);
      multiply_any<E>(tiles_of(here), tiles_of(columns), left, part, deep, at > 0, sums + m * kWide);
      if (at + deep == depth) done(m, here, sums + m * kWide);
    }
}

// 32 columns of a product, `column` on, as numbers of their type: rows `first` on of `y`
template <class E, class To>
void store_product(const uint8_t* rows, int count, const Panels& right, int column, int columns, int summed, float* sums,
                   const To& y, int64_t first, const Asker& next_panels = {}) {
  times_panels<E>(rows, count, right, columns, summed, sums, next_panels, [&](int m, int here, const float* c) {
    for (int r = 0; r < here; ++r)
      for (int n = 0; n < columns; n += kLanes)
        store_numbers(y.at(first + m + r, column + n), columns - n, load(c + r * kWide + n));
  });
}

// y[token] = sum over k of scale * rows[assignment], in order of k
template <class T>
void combine(Team& team, const Routes& routes, const Slabs<T>& rows, int width, const float* scales, T* y) {
  constexpr int64_t kTokens = 512;
  const int64_t parts = (routes.tokens + kTokens - 1) / kTokens, all = parts * ((width + kWide - 1) / kWide);
  for (int64_t i; (i = team.claim(1)) < all;) {
    const int from = (int)(i / parts) * kWide, to = std::min(width, from + kWide);
    for (int64_t t = i % parts * kTokens; t < std::min(routes.tokens, (i % parts + 1) * kTokens); ++t)
      for (int n = from; n < to; n += kLanes) {
        F sum = zero();
        for (int64_t a = t * routes.top_k; a < (t + 1) * routes.top_k; ++a)
          if (routes.row[a] >= 0) {
            const F x = load_numbers(rows.at(routes.row[a], n), kLanes);
            sum = scales ? fma(set1(scales[a]), x, sum) : add(sum, x);
          }
        store_numbers(y + t * width + n, width - n, sum);
      }
  }
  team.barrier();
}

// ---- forward

template <class T>
class Forward {
  using E = typename UnitsOf<T>::Type;

 public:
  Forward(Team& team, const ExpertForwardArgs& args)
      : team_(team), args_(args), width_(args.table.width), inner_(args.table.inner),
        most_(most_rows(panel_bytes<E>(std::max(width_, inner_)) / kSide + inner_ * sizeof(T))),
        blocks_(row_blocks(args.routes, most_)) {}

  void run() {
    const int64_t rows = args_.routes.offsets[args_.routes.experts];
    const Slabs<T> y{(T*)team_.shared(Slabs<T>::size(rows, width_) * sizeof(T)), rows};
    kept_ = {(T*)args_.gate_up, rows};
    Pieces none(nullptr);
    take(none);
    Pieces local(team_.local(none.bytes()));
    take(local);
    {
      const TileScope tiles;
      for (int64_t i; (i = team_.claim(1)) < (int64_t)blocks_.size();) block(blocks_[i], y);
    }
    team_.barrier();
    combine(team_, args_.routes, y, width_, args_.gates, (T*)args_.y);
  }

 private:
  void block(const RowBlock& block, const Slabs<T>& y) {
    const RowsOf<T> x{(const T*)args_.x, args_.x_stride, args_.routes.token};
    pack_rows<E>(left_, x, block.first, block.count, width_);
    const RowsOf<T> down{(const T*)args_.table.w2 + (int64_t)block.expert * width_ * inner_, inner_};
    for (int f = 0; f < inner_; f += kWide) gate_up(block, f, down);
    pack_rows<E>(left_, rows_, 0, block.count, inner_);
    for (int d = 0; d < width_; d += kWide) {
      const int columns = std::min(kWide, width_ - d);
      const Panels right = pack_turned<E>(right_, down, d, columns, inner_);
      store_product<E>(left_, block.count, right, d, columns, inner_, sums_, y, block.first, asker(down, d + kWide, width_));
    }
  }

  // 32 columns of gate and up, and of what SwiGLU makes of them
  void gate_up(const RowBlock& block, int f, const RowsOf<T>& down) {
    const int columns = std::min(kWide, inner_ - f);
    const RowsOf<T> w{(const T*)args_.table.w13 + (int64_t)block.expert * 2 * inner_ * width_, width_};
    const Panels gate = pack_turned<E>(right_, w, f, columns, width_);
    times_panels<E>(left_, block.count, gate, columns, width_, gate_, asker(w, inner_ + f, 2 * inner_),
                    [](int, int, const float*) {});
    const Panels up = pack_turned<E>(right_, w, inner_ + f, columns, width_);
    const Asker next = f + kWide < inner_ ? asker(w, f + kWide, inner_) : asker(down, 0, width_);
    times_panels<E>(left_, block.count, up, columns, width_, sums_, next, [&](int m, int here, const float* c) {
      const float* g = gate_ + m * kWide;
      for (int r = 0; r < here; ++r)
        for (int n = 0; n < columns; n += kLanes)
          swiglu(block.first + m + r, m + r, f + n, load(g + r * kWide + n), load(c + r * kWide + n));
    });
  }

  void swiglu(int64_t assignment, int row, int f, F gate, F up) {
    const T* kind = nullptr;
    gate = rounded(gate, kind);
    up = rounded(up, kind);
    if (kept_.data) {
      store_numbers(kept_.at(assignment, f), kLanes, gate);
      store_numbers(kept_.at(assignment, inner_ + f), kLanes, up);
    }
    store_numbers(rows_.at(row, f), kLanes, mul(mul(gate, sigmoid(gate, kind)), up));
  }

  // the 32 rows of a matrix from `first` on
  static Asker asker(const RowsOf<T>& rows, int first, int end) {
    return Asker(rows.at(first, 0), rows.stride, std::max(std::min(kWide, end - first), 0), rows.stride);
  }

  void take(Pieces& pieces) {
    left_ = pieces.take<uint8_t>(most_ / kSide * panel_bytes<E>(std::max(width_, inner_)));
    right_ = pieces.take<uint8_t>(2 * panel_bytes<E>(std::max(width_, inner_)));
    rows_ = {pieces.take<T>(Slabs<T>::size(most_, inner_)), most_};
    sums_ = pieces.take<float>(most_ * kWide);
    gate_ = pieces.take<float>(most_ * kWide);
  }

  Team& team_;
  const ExpertForwardArgs& args_;
  int width_, inner_, most_;
  std::vector<RowBlock> blocks_;
  uint8_t *left_ = nullptr, *right_ = nullptr;
  Slabs<T> rows_{}, kept_{};
  float *sums_ = nullptr, *gate_ = nullptr;
};

inline void train_forward(Team& team, const ExpertForwardArgs& args) {
  args.table.half ? Forward<uint16_t>(team, args).run() : Forward<float>(team, args).run();
}

}  // namespace tenth::TENTH_ISA
