// The gradients of a layer's experts: of their inputs and gates a block of tokens at a time, then of their matrices.
#pragma once

#include "grouped_weights.h"

namespace tenth::TENTH_ISA {

template <class T>
class Backward {
  using E = typename UnitsOf<T>::Type;

 public:
  Backward(Team& team, const ExpertBackwardArgs& args)
      : team_(team), args_(args), routes_(args.routes), width_(args.table.width), inner_(args.table.inner),
        most_(most_rows(panel_bytes<E>(std::max(width_, 2 * inner_)) / kSide + kLanes * 4)),
        blocks_(row_blocks(args.routes, most_)) {}

  void run() {
    Pieces none(nullptr);
    take_shared(none);
    Pieces shared(team_.shared(none.bytes()));
    take_shared(shared);
    Pieces counted(nullptr);
    take(counted);
    const int widest = std::max(width_, 2 * inner_);
    void* local = team_.local(std::max(counted.bytes(), WeightSums<T, RowsOf<T>, Slabs<T>>::local_bytes(widest, widest)));
    Pieces pieces(local);
    take(pieces);
    const TileScope tiles;
    for (int64_t i; (i = team_.claim(1)) < (int64_t)blocks_.size();) block(blocks_[i]);
    team_.barrier();
    weights(local);
  }

 private:
  void block(const RowBlock& block) {
    const RowsOf<T> dy{(const T*)args_.dy, width_, routes_.token};
    pack_rows<E>(left_, dy, block.first, block.count, width_);
    std::fill_n(dots_, block.count * kLanes, 0.0f);
    const RowsOf<T> w{(const T*)args_.table.w13 + (int64_t)block.expert * 2 * inner_ * width_, width_};
    for (int f = 0; f < inner_; f += kWide) inner_gradient(block, f, w);
    for (int r = 0; r < block.count; ++r)
      args_.dgates[routes_.place[block.first + r]] = sum_lanes(load(dots_ + r * kLanes));
    if (!args_.dx) return;
    const int summed = 2 * inner_;
    pack_rows<E>(left_, dgate_up_, block.first, block.count, summed);
    for (int d = 0; d < width_; d += kWide) {
      const int columns = std::min(kWide, width_ - d);
      const Panels right = pack_columns<E>(right_, w, 0, summed, d, columns);
      store_product<E>(left_, block.count, right, d, columns, summed, sums_, dx_, block.first, asker(w, summed, d + kWide, width_));
    }
  }

  // of 32 columns between SwiGLU and down: what down sends back, and what gate and up get of it
  void inner_gradient(const RowBlock& block, int f, const RowsOf<T>& w) {
    const int columns = std::min(kWide, inner_ - f);
    const RowsOf<T> down{(const T*)args_.table.w2 + (int64_t)block.expert * width_ * inner_, inner_};
    const Panels right = pack_columns<E>(right_, down, 0, width_, f, columns);
    const Asker next = f + kWide < inner_ ? asker(down, width_, f + kWide, inner_) : asker(w, 2 * inner_, 0, width_);
    times_panels<E>(left_, block.count, right, columns, width_, sums_, next, [&](int m, int here, const float* c) {
      for (int r = 0; r < here; ++r)
        for (int n = 0; n < columns; n += kLanes)
          swiglu(block.first + m + r, dots_ + (m + r) * kLanes, f + n, load(c + r * kWide + n));
    });
  }

  void swiglu(int64_t assignment, float* dots, int f, F dh) {
    const T* kind = nullptr;
    const F gate = load_numbers(kept_.at(assignment, f), kLanes);
    const F up = load_numbers(kept_.at(assignment, inner_ + f), kLanes);
    const F scale = set1(args_.gates[routes_.place[assignment]]);
    const F s = sigmoid(gate, kind), silu = mul(gate, s), h = rounded(mul(silu, up), kind);
    store(dots, fma(dh, h, load(dots)));
    store_numbers(h_.at(assignment, f), kLanes, mul(scale, h));
    dh = mul(scale, dh);
    // silu'(g) = s + silu (1 - s)
    store_numbers(dgate_up_.at(assignment, f), kLanes, mul(mul(dh, up), fma(silu, sub(set1(1.0f), s), s)));
    store_numbers(dgate_up_.at(assignment, inner_ + f), kLanes, mul(dh, silu));
  }

  void weights(void* local) {
    const RowsOf<T> x{(const T*)args_.x, args_.x_stride, routes_.token}, dy{(const T*)args_.dy, width_, routes_.token};
    const WeightSums<T, Slabs<T>, RowsOf<T>> w13(routes_, dgate_up_, 2 * inner_, x, width_, args_.dw13);
    const WeightSums<T, RowsOf<T>, Slabs<T>> w2(routes_, dy, width_, h_, inner_, args_.dw2);
    const int64_t first = w13.pieces(), all = first + w2.pieces();
    for (int64_t i; (i = team_.claim(1)) < all;) i < first ? w13.piece(i, local) : w2.piece(i - first, local);
    team_.barrier();
    if (args_.dx) combine(team_, routes_, dx_, width_, nullptr, (T*)args_.dx);
  }

  // 32 columns of a matrix of `rows` from `column` on
  static Asker asker(const RowsOf<T>& w, int rows, int column, int end) {
    return column < end ? Asker(w.at(0, column), w.stride, rows, std::min(kWide, end - column)) : Asker();
  }

  void take_shared(Pieces& pieces) {
    const int64_t rows = routes_.offsets[routes_.experts];
    dgate_up_ = {pieces.take<T>(Slabs<T>::size(rows, 2 * inner_)), rows};
    h_ = {pieces.take<T>(Slabs<T>::size(rows, inner_)), rows};
    dx_ = {pieces.take<T>(Slabs<T>::size(rows, width_)), rows};
    kept_ = {(T*)args_.gate_up, rows};
  }

  void take(Pieces& pieces) {
    left_ = pieces.take<uint8_t>(most_ / kSide * panel_bytes<E>(std::max(width_, 2 * inner_)));
    right_ = pieces.take<uint8_t>(2 * panel_bytes<E>(std::max(width_, 2 * inner_)));
    dots_ = pieces.take<float>(most_ * kLanes);
    sums_ = pieces.take<float>(most_ * kWide);
  }

  Team& team_;
  const ExpertBackwardArgs& args_;
  const Routes& routes_;
  int width_, inner_, most_;
  std::vector<RowBlock> blocks_;
  Slabs<T> dgate_up_{}, h_{}, dx_{}, kept_{};
  uint8_t *left_ = nullptr, *right_ = nullptr;
  float *dots_ = nullptr, *sums_ = nullptr;
};

inline void train_backward(Team& team, const ExpertBackwardArgs& args) {
  args.table.half ? Backward<uint16_t>(team, args).run() : Backward<float>(team, args).run();
}

}  // namespace tenth::TENTH_ISA
