// Gradients of the experts' matrices: sums over an expert's tokens, in blocks of them, in order.
#pragma once

#include "grouped.h"

namespace tenth::TENTH_ISA {

// Past the caches, where the place allows it: nobody reads a gradient soon, and its line need not be read to be written.
inline void store_past(float* p, F x) {
#if defined(TENTH_AVX512)
  if ((uintptr_t)p % 64 == 0) return _mm512_stream_ps(p, x.v);
#endif
  store(p, x);
}
// what was stored so is there for other threads
inline void end_of_stores() {
#if defined(TENTH_AVX512)
  _mm_sfence();
#endif
}

constexpr int kTokensAtOnce = 512;  // of a sum: fixed, so that its order is

// One matrix's gradient for all experts: [rows][columns] of each is left^T right over the expert's assignments.
template <class T, class Left, class Right>
class WeightSums {
  using E = typename UnitsOf<T>::Type;

 public:
  WeightSums(const Routes& routes, Left left, int rows, Right right, int columns, WeightGradient to)
      : routes_(routes), left_(left), right_(right), rows_(rows), columns_(columns), to_(to),
        // few experts: more and smaller pieces, for more threads
        part_(std::min<int>(columns, at_work(routes) < 16 ? 4 * kWide : kMost)) {}

  static int64_t local_bytes(int rows, int columns) {
    Pieces none(nullptr);
    Room(none, rows, columns);
    return none.bytes();
  }

  int64_t pieces() const { return to_.data ? (int64_t)routes_.experts * bands() * parts() : 0; }

  void piece(int64_t i, void* local) const {
    const int expert = (int)(i / parts() / bands());
    const int row = (int)(i / parts() % bands()) * kMost, column = (int)(i % parts()) * part_;
    const Piece piece{expert, row, std::min(kMost, rows_ - row), column, std::min(part_, columns_ - column)};
    Pieces pieces(local);
    const Room room(pieces, rows_, columns_);
    const int64_t at = ((int64_t)expert * rows_ + row) * columns_ + column;
    if (!to_.half) {
      sum(piece, room, (float*)to_.data + at, columns_);
      return end_of_stores();
    }
    sum(piece, room, room.sums, piece.columns);
    round_to((uint16_t*)to_.data + at, room.sums, piece);
  }

 private:
  static constexpr int kMost = 16 * kWide;  // rows and columns of a piece
  struct Piece {
    int expert, row, rows, column, columns;
  };
  struct Room {  // a thread's
    uint8_t *left, *right;
    float *block, *sums;
    Room(Pieces& pieces, int rows, int columns)
        : left(pieces.take<uint8_t>((std::min(rows, kMost) + kSide - 1) / kSide * panel_bytes<E>(kTokensAtOnce))),
          right(pieces.take<uint8_t>(2 * panel_bytes<E>(kTokensAtOnce))),
          block(pieces.take<float>(round_up(std::min(rows, kMost), kWide) * kWide)),
          sums(pieces.take<float>((int64_t)std::min(rows, kMost) * std::min(columns, kMost))) {}
  };

  static int at_work(const Routes& routes) {
    int count = 0;
    for (int e = 0; e < routes.experts; ++e) count += routes.offsets[e] < routes.offsets[e + 1];
    return count;
  }
  int64_t parts() const { return (columns_ + part_ - 1) / part_; }
  int64_t bands() const { return (rows_ + kMost - 1) / kMost; }

  void sum(const Piece& piece, const Room& room, float* to, int64_t stride) const {
    const int64_t begin = routes_.offsets[piece.expert], end = routes_.offsets[piece.expert + 1];
    if (begin == end)
      for (int r = 0; r < piece.rows; ++r) std::fill_n(to + r * stride, piece.columns, 0.0f);
    for (int64_t at = begin; at < end; at += kTokensAtOnce)
      add_block(at, (int)std::min<int64_t>(kTokensAtOnce, end - at), piece, room, to, stride, at > begin,
                !to_.half && at + kTokensAtOnce >= end);
  }

  void add_block(int64_t first, int tokens, const Piece& piece, const Room& room, float* to, int64_t stride,
                 bool add, bool last) const {
    const int64_t panel = panel_bytes<E>(tokens);
    for (int r = 0; r < piece.rows; r += kSide)
      pack_across<E, true>(room.left + r / kSide * panel, left_, first, tokens, piece.row + r,
                           std::min(kSide, piece.rows - r));
    for (int n = 0; n < piece.columns; n += kWide) {
      const int here = std::min(kWide, piece.columns - n);
      const Panels columns = pack_columns<E>(room.right, right_, first, tokens, piece.column + n, here);
      times_panels<E>(room.left, piece.rows, columns, here, tokens, room.block, {}, [&](int m, int rows, const float* c) {
        for (int r = 0; r < rows; ++r)
          for (int j = 0; j < here; j += kLanes) {
            float* out = to + (m + r) * stride + n + j;
            const F sum = load(c + r * kWide + j);
            if (last && !add && here - j >= kLanes)
              store_past(out, sum);
            else
              store_numbers(out, here - j, add ? tenth::TENTH_ISA::add(load_numbers(out, here - j), sum) : sum);
          }
      });
    }
  }

  void round_to(uint16_t* to, const float* sums, const Piece& piece) const {
    for (int r = 0; r < piece.rows; ++r)
      for (int n = 0; n < piece.columns; n += kLanes) {
        uint16_t* out = to + (int64_t)r * columns_ + n;
        const int count = piece.columns - n;
        const F sum = load_numbers(sums + (int64_t)r * piece.columns + n, count);
        store_numbers(out, count, sum);
      }
  }

  const Routes& routes_;
  Left left_;
  Right right_;
  int rows_, columns_;
  WeightGradient to_;
  int part_;
};

}  // namespace tenth::TENTH_ISA
