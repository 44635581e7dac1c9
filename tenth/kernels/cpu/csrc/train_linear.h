// A linear layer while it trains: its output, and the gradients of its inputs and of its matrix.
#pragma once

#include "grouped_weights.h"

namespace tenth::TENTH_ISA {

// [rows][summed] times a matrix, forward turned ([columns][summed]) or as it lies ([summed][columns]), to y [rows][columns]
template <class T, bool turned>
class LinearProduct {
  using E = typename UnitsOf<T>::Type;

 public:
  LinearProduct(Team& team, int64_t rows, int summed, int columns, RowsOf<T> x, RowsOf<T> w, RowsTo<T> y)
      : team_(team), rows_(rows), summed_(summed), columns_(columns), x_(x), w_(w), y_(y),
        most_((int)std::min<int64_t>(most_rows(panel_bytes<E>(summed) / kSide), round_up(std::max<int64_t>(rows, 1), kWide))) {}

  void run() {
    Pieces none(nullptr);
    take(none);
    Pieces local(team_.local(none.bytes()));
    take(local);
    const TileScope tiles;
    const int64_t blocks = (rows_ + most_ - 1) / most_, parts = (columns_ + kPart - 1) / kPart;
    for (int64_t i; (i = team_.claim(1)) < blocks * parts;) part(i / parts * most_, (int)(i % parts) * kPart);
    team_.barrier();
  }

 private:
  static constexpr int kPart = 16 * kWide;

  void part(int64_t first, int column) {
    const int count = (int)std::min<int64_t>(most_, rows_ - first);
    pack_rows<E>(left_, x_, first, count, summed_);
    for (int n = column; n < std::min(columns_, column + kPart); n += kWide) {
      const int here = std::min(kWide, columns_ - n);
      Panels right;
      if constexpr (turned)
        right = pack_turned<E>(right_, w_, n, here, summed_);
      else
        right = pack_columns<E>(right_, w_, 0, summed_, n, here);
      store_product<E>(left_, count, right, n, here, summed_, sums_, y_, first);
    }
  }

  void take(Pieces& pieces) {
    left_ = pieces.take<uint8_t>(most_ / kSide * panel_bytes<E>(summed_));
    right_ = pieces.take<uint8_t>(2 * panel_bytes<E>(summed_));
    sums_ = pieces.take<float>(most_ * kWide);
  }

  Team& team_;
  int64_t rows_;
  int summed_, columns_;
  RowsOf<T> x_, w_;
  RowsTo<T> y_;
  int most_;
  uint8_t *left_ = nullptr, *right_ = nullptr;
  float* sums_ = nullptr;
};

template <class T>
void weight_gradient(Team& team, const TrainLinearArgs& args) {
  const int64_t offsets[] = {0, args.rows};
  const Routes all{args.rows, 1, 1, offsets, nullptr, nullptr, nullptr};
  const RowsOf<T> x{(const T*)args.x, args.x_stride}, dy{(const T*)args.dy, args.outputs};
  const WeightSums<T, RowsOf<T>, RowsOf<T>> sums(all, dy, args.outputs, x, args.inputs, args.dw);
  void* local = team.local(sums.local_bytes(args.outputs, args.inputs));
  const TileScope tiles;
  for (int64_t i; (i = team.claim(1)) < sums.pieces();) sums.piece(i, local);
  team.barrier();
}

template <class T>
void train_linear_as(Team& team, const TrainLinearArgs& args) {
  const RowsOf<T> x{(const T*)args.x, args.x_stride}, w{(const T*)args.w, args.inputs}, dy{(const T*)args.dy, args.outputs};
  if (args.kind == TrainLinearArgs::kForward)
    LinearProduct<T, true>(team, args.rows, args.inputs, args.outputs, x, w, {(T*)args.y, args.outputs}).run();
  else if (args.kind == TrainLinearArgs::kInput)
    LinearProduct<T, false>(team, args.rows, args.outputs, args.inputs, dy, w, {(T*)args.y, args.inputs}).run();
  else
    weight_gradient<T>(team, args);
}

inline void train_linear(Team& team, const TrainLinearArgs& args) {
  args.half ? train_linear_as<uint16_t>(team, args) : train_linear_as<float>(team, args);
}

}  // namespace tenth::TENTH_ISA
