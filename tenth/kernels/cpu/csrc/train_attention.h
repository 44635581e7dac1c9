// Causal attention within documents while it trains, forward and backward, without the scores in memory.
//
// A piece of work is a block of a document's rows and one head of keys: its own rows are packed once, those of the other
// side come in blocks that stay in the second cache, and all query heads that share the keys use them. What a row's numbers
// become does not depend on which thread has them: every sum goes over blocks from the document's beginning.
//   forward   s = scale q k', y = softmax(s) v, and each row's logarithm of its sum of exponentials, to base 2 as all here
//   dq        p = 2^(s - log sum), ds = p (dy v' - dy.y), dq = scale ds k
//   dk, dv    the same from the keys' side, turned: dv = p' dy, dk = scale ds' q
#pragma once

#include "grouped.h"

namespace tenth::TENTH_ISA {

constexpr int kOwn = 4 * kWide, kOther = 8 * kWide;  // rows of a piece; rows of the other side at once

// [32 columns][rows][32]: what products write, 32 columns at a time
inline float* block_at(float* sums, int rows, int row, int column) {
  return sums + ((int64_t)(column / kWide) * rows + row) * kWide;
}

template <class T>
class Attention {
  using E = typename UnitsOf<T>::Type;

 public:
  Attention(Team& team, const TrainAttentionArgs& args)
      : team_(team), args_(args), size_(args.size), group_(args.heads / args.kv_heads), wide_(round_up(size_, kWide)),
        to_log2_(args.scale * 1.44269504f) {
    for (int s = 0; s < args.documents; ++s)
      for (int64_t at = args.bounds[s]; at < args.bounds[s + 1]; at += kOwn)
        blocks_.push_back({args.bounds[s], at, args.bounds[s + 1], (int)std::min<int64_t>(kOwn, args.bounds[s + 1] - at)});
  }

  void forward() {
    each([](const Block& b) { return b.at - b.begin; }, [&](const Block& block, int kv) { forward(block, kv); });
  }

  void backward() {
    products_of_rows();
    each([](const Block& b) { return b.at - b.begin; }, [&](const Block& block, int kv) { queries(block, kv); });
    each([](const Block& b) { return b.end - b.at; }, [&](const Block& block, int kv) { keys(block, kv); });
  }

 private:
  // rows `at` on of the document `begin` to `end`
  struct Block {
    int64_t begin, at, end;
    int count;
  };

  // the heaviest first: late queries see the most keys, early keys are seen by the most queries
  template <class Weight, class Work>
  void each(const Weight& weight, const Work& work) {
    std::vector<Block> blocks = blocks_;
    std::stable_sort(blocks.begin(), blocks.end(), [&](const Block& a, const Block& b) { return weight(a) > weight(b); });
    Pieces none(nullptr);
    take(none);
    Pieces local(team_.local(none.bytes()));
    take(local);
    {
      const TileScope tiles;
      const int64_t all = (int64_t)blocks.size() * args_.kv_heads;
      for (int64_t i; (i = team_.claim(1)) < all;) work(blocks[i / args_.kv_heads], (int)(i % args_.kv_heads));
    }
    team_.barrier();
  }

  RowsOf<T> rows(const void* x, int heads, int head) const {
    return {(const T*)x + (int64_t)head * size_, (int64_t)heads * size_};
  }
  RowsOf<T> of_queries(const void* x, int head) const { return rows(x, args_.heads, head); }
  RowsOf<T> of_keys(const void* x, int kv) const { return rows(x, args_.kv_heads, kv); }

  // dy.y of every row, which the gradient of a softmax takes off
  void products_of_rows() {
    const int64_t rows = args_.bounds[args_.documents], parts = (rows + kOwn - 1) / kOwn;
    for (int64_t i; (i = team_.claim(1)) < parts * args_.heads;) {
      const int head = (int)(i % args_.heads);
      const auto y = of_queries(args_.y, head), dy = of_queries(args_.dy, head);
      for (int64_t t = i / args_.heads * kOwn; t < std::min(rows, (i / args_.heads + 1) * kOwn); ++t) {
        F sum = zero();
        for (int c = 0; c < size_; c += kLanes)
          sum = fma(load_numbers(y.at(t, c), size_ - c), load_numbers(dy.at(t, c), size_ - c), sum);
        args_.product[head * rows + t] = sum_lanes(sum);
      }
    }
    team_.barrier();
  }

  // ---- forward

  void forward(const Block& block, int kv) {
    const int64_t last = block.at + block.count;
    pack_queries(block, kv, args_.q, own_);
    std::fill_n(sums_, group_ * kOwn * wide_, 0.0f);
    std::fill_n(top_, group_ * kOwn, -INFINITY);
    std::fill_n(total_, group_ * kOwn, 0.0f);
    for (int64_t key = block.begin; key < last; key += kOther) {
      const int count = (int)std::min<int64_t>(kOther, last - key);
      pack_turned_rows(of_keys(args_.k, kv), key, count, first_);
      pack_across_rows(of_keys(args_.v, kv), key, count, second_);
      for_tiles(block, [&](int g, int m, int here) {
        const int sees = (int)std::min<int64_t>(count, block.at + m + here - key);
        if (sees <= 0) return;
        scores(own_, g, m, here, first_, sees, scores_);
        soften(block, g, m, here, key, sees);
        add_product(weights_, here, sees, second_, count, sums_ + (int64_t)g * kOwn * wide_, m);
      });
    }
    for_tiles(block, [&](int g, int m, int here) { finish(block, kv * group_ + g, g, m, here); });
  }

  // scores [32 columns][32 rows][32] to weights in `weights_`, sums so far shrunk to a new maximum
  void soften(const Block& block, int g, int m, int here, int64_t key, int sees) {
    for (int r = 0; r < here; ++r) {
      const int mine = (int)std::min<int64_t>(sees, block.at + m + r + 1 - key);  // keys that this row sees
      T* out = weights_ + (int64_t)r * kOther;
      const int at = g * kOwn + m + r;
      if (mine <= 0) {
        std::fill_n(out, round_up(sees, kWide), (T)0);
        continue;
      }
      F most = set1(-INFINITY);
      for (int n = 0; n < mine; n += kLanes) {
        float* s = block_at(scores_, kWide, r, n) + n % kWide;
        const F x = mul(load(s), set1(to_log2_));
        store(s, n + kLanes <= mine ? x : select(first_lanes(mine - n), x, set1(-INFINITY)));
        most = max(most, load(s));
      }
      const float highest = std::max(top_[at], max_lanes(most)), shrink = std::exp2(top_[at] - highest);
      F total = zero();
      for (int n = 0; n < round_up(sees, kWide); n += kLanes) {
        F p = zero();
        if (n < mine) p = exp2_falling(sub(load(block_at(scores_, kWide, r, n) + n % kWide), set1(highest)));
        if (n + kLanes > mine) p = select(first_lanes(mine - n), p, zero());
        total = add(total, p);
        store_numbers(out + n, kLanes, p);
      }
      top_[at] = highest;
      total_[at] = total_[at] * shrink + sum_lanes(total);
      if (shrink != 1.0f) shrink_row(sums_ + (int64_t)g * kOwn * wide_, m + r, shrink);
    }
    for (int r = here; r < kWide; ++r) std::fill_n(weights_ + (int64_t)r * kOther, round_up(sees, kWide), (T)0);
  }

  void shrink_row(float* sums, int row, float by) {
    for (int c = 0; c < size_; c += kWide)
      for (int n = 0; n < kWide; n += kLanes) {
        float* x = block_at(sums, kOwn, row, c) + n;
        store(x, mul(load(x), set1(by)));
      }
  }

  void finish(const Block& block, int head, int g, int m, int here) {
    for (int r = 0; r < here; ++r) {
      const int at = g * kOwn + m + r;
      store_row(args_.y, args_.heads, head, block.at + m + r, sums_ + (int64_t)g * kOwn * wide_, m + r, 1 / total_[at]);
      args_.log_sum[head * args_.bounds[args_.documents] + block.at + m + r] = top_[at] + std::log2(total_[at]);
    }
  }

  // ---- gradients

  void queries(const Block& block, int kv) {
    const int64_t last = block.at + block.count;
    pack_queries(block, kv, args_.q, own_);
    pack_queries(block, kv, args_.dy, own_too_);
    std::fill_n(sums_, group_ * kOwn * wide_, 0.0f);
    for (int64_t key = block.begin; key < last; key += kOther) {
      const int count = (int)std::min<int64_t>(kOther, last - key);
      pack_turned_rows(of_keys(args_.k, kv), key, count, first_);
      pack_turned_rows(of_keys(args_.v, kv), key, count, second_);
      pack_across_rows(of_keys(args_.k, kv), key, count, third_);
      for_tiles(block, [&](int g, int m, int here) {
        const int sees = (int)std::min<int64_t>(count, block.at + m + here - key);
        if (sees <= 0) return;
        scores(own_, g, m, here, first_, sees, scores_);
        scores(own_too_, g, m, here, second_, sees, slopes_);
        const int64_t row = (int64_t)(kv * group_ + g) * args_.bounds[args_.documents] + block.at + m;
        for (int r = 0; r < kWide; ++r) {
          const int mine = r < here ? (int)std::min<int64_t>(sees, block.at + m + r + 1 - key) : 0;
          const F log_sum = set1(r < here ? args_.log_sum[row + r] : 0), product = set1(r < here ? args_.product[row + r] : 0);
          for (int n = 0; n < round_up(sees, kWide); n += kLanes)
            slope(r, n, mine - n, log_sum, product, nullptr);
        }
        add_product(slopes_t_, here, sees, third_, count, sums_ + (int64_t)g * kOwn * wide_, m);
      });
    }
    for_tiles(block, [&](int g, int m, int here) {
      for (int r = 0; r < here; ++r)
        store_row(args_.dq, args_.heads, kv * group_ + g, block.at + m + r, sums_ + (int64_t)g * kOwn * wide_, m + r, args_.scale);
    });
  }

  void keys(const Block& block, int kv) {
    pack_rows<E>(own_, of_keys(args_.k, kv), block.at, block.count, size_);
    pack_rows<E>(own_too_, of_keys(args_.v, kv), block.at, block.count, size_);
    std::fill_n(sums_, 2 * kOwn * wide_, 0.0f);
    float* dv = sums_ + kOwn * wide_;
    for (int g = 0; g < group_; ++g)
      for (int64_t query = block.at; query < block.end; query += kOther) {
        const int head = kv * group_ + g, count = (int)std::min<int64_t>(kOther, block.end - query);
        pack_turned_rows(of_queries(args_.q, head), query, count, first_);
        pack_turned_rows(of_queries(args_.dy, head), query, count, second_);
        pack_across_rows(of_queries(args_.q, head), query, count, third_);
        pack_across_rows(of_queries(args_.dy, head), query, count, fourth_);
        const int64_t row = (int64_t)head * args_.bounds[args_.documents] + query;
        for (int m = 0; m < block.count; m += kWide) {
          const int here = std::min(kWide, block.count - m);
          scores(own_, 0, m, here, first_, count, scores_);
          scores(own_too_, 0, m, here, second_, count, slopes_);
          for (int r = 0; r < kWide; ++r) {
            const int64_t key = block.at + m + r;
            for (int n = 0; n < round_up(count, kWide); n += kLanes) {
              const int left = count - n, unseen = r < here ? (int)std::clamp<int64_t>(key - (query + n), 0, kLanes) : kLanes;
              const F log_sum = left > 0 ? load_numbers(args_.log_sum + row + n, left) : zero();
              const F product = left > 0 ? load_numbers(args_.product + row + n, left) : zero();
              slope(r, n, left, log_sum, product, weights_, unseen);
            }
          }
          add_product(weights_, here, count, fourth_, count, dv, m);
          add_product(slopes_t_, here, count, third_, count, sums_, m);
        }
      }
    for (int r = 0; r < block.count; ++r) {
      store_row(args_.dk, args_.kv_heads, kv, block.at + r, sums_, r, args_.scale);
      store_row(args_.dv, args_.kv_heads, kv, block.at + r, dv, r, 1);
    }
  }

  // 16 of p (dp - product) into `slopes_t_`, and of p into `weights`: 0 from the `mine`-th on and before the `unseen`-th
  void slope(int r, int n, int mine, F log_sum, F product, T* weights, int unseen = 0) {
    const int64_t to = (int64_t)r * kOther + n;
    F p = zero(), ds = zero();
    if (mine > 0 && unseen < kLanes) {
      p = exp2_falling(sub(mul(load(block_at(scores_, kWide, r, n) + n % kWide), set1(to_log2_)), log_sum));
      const uint16_t seen = first_lanes(mine) & ~first_lanes(unseen);
      p = select(seen, p, zero());
      ds = mul(p, sub(load(block_at(slopes_, kWide, r, n) + n % kWide), product));
      ds = select(seen, ds, zero());
    }
    if (weights) store_numbers(weights + to, kLanes, p);
    store_numbers(slopes_t_ + to, kLanes, ds);
  }

  // ---- parts

  template <class Work>
  void for_tiles(const Block& block, const Work& work) {
    for (int g = 0; g < group_; ++g)
      for (int m = 0; m < block.count; m += kWide) work(g, m, std::min(kWide, block.count - m));
  }

  void pack_queries(const Block& block, int kv, const void* x, uint8_t* to) {
    for (int g = 0; g < group_; ++g)
      pack_rows<E>(to + (int64_t)g * kOwn / kSide * panel_bytes<E>(size_), of_queries(x, kv * group_ + g), block.at,
                   block.count, size_);
  }
  // right operands of the other side: 32 rows of them are 32 columns
  void pack_turned_rows(const RowsOf<T>& x, int64_t first, int count, uint8_t* to) {
    for (int n = 0; n < count; n += kWide)
      pack_turned<E>(to + n / kSide * panel_bytes<E>(size_), x, first + n, std::min(kWide, count - n), size_);
  }
  // and summed over them: 32 channels are 32 columns
  void pack_across_rows(const RowsOf<T>& x, int64_t first, int count, uint8_t* to) {
    for (int c = 0; c < size_; c += kWide)
      pack_columns<E>(to + c / kSide * panel_bytes<E>(kOther), x, first, count, c, std::min(kWide, size_ - c));
  }

  // products of `here` own rows and the first `columns` of the other side, [32 columns][32 rows][32]
  void scores(const uint8_t* own, int g, int m, int here, const uint8_t* other, int columns, float* to) {
    const int64_t next = panel_bytes<E>(size_);
    const int depth = (int)(next / (E::kPlanes * kTileBytes));
    const Panels left{own + (int64_t)(g * kOwn + m) / kSide * next, next};
    for (int n = 0; n < columns; n += kWide)
      multiply_any<E>(tiles_of(here), tiles_of(columns - n), left, {other + n / kSide * next, next}, depth, false,
                      block_at(to, kWide, 0, n));
  }

  // sums [32 channels][rows][32] of rows m on += weights of the first `summed` of `packed` rows times their channels
  void add_product(const T* weights, int here, int summed, const uint8_t* other, int packed, float* sums, int m) {
    const int64_t next = panel_bytes<E>(summed), step = panel_bytes<E>(kOther);
    for (int half = 0; half < here; half += kSide)
      pack_along<E, false>(left_ + half / kSide * next, RowsOf<T>{weights, kOther}, half, kSide, summed);
    const int depth = (int)(next / (E::kPlanes * kTileBytes));
    for (int c = 0; c < size_; c += kWide)
      multiply_any<E>(tiles_of(here), tiles_of(size_ - c), {left_, next}, {other + c / kSide * step, panel_bytes<E>(packed)}, depth, true,
                      block_at(sums, kOwn, m, c));
  }

  void store_row(void* to, int heads, int head, int64_t row, float* sums, int at, float scale) {
    T* out = (T*)to + (row * heads + head) * size_;
    for (int c = 0; c < size_; c += kLanes)
      store_numbers(out + c, size_ - c, mul(load(block_at(sums, kOwn, at, c) + c % kWide), set1(scale)));
  }

  static uint16_t first_lanes(int count) { return (uint16_t)(count >= kLanes ? 0xffff : (1 << std::max(count, 0)) - 1); }

  void take(Pieces& pieces) {
    const int64_t own = (int64_t)group_ * kOwn / kSide * panel_bytes<E>(size_);
    const int64_t other = std::max(kOther / kSide * panel_bytes<E>(size_), wide_ / kSide * panel_bytes<E>(kOther));
    own_ = pieces.take<uint8_t>(own);
    own_too_ = pieces.take<uint8_t>(own);
    for (uint8_t** part : {&first_, &second_, &third_, &fourth_}) *part = pieces.take<uint8_t>(other);
    left_ = pieces.take<uint8_t>(2 * panel_bytes<E>(kOther));
    scores_ = pieces.take<float>(kOther * kWide);
    slopes_ = pieces.take<float>(kOther * kWide);
    weights_ = pieces.take<T>(kOther * kWide);
    slopes_t_ = pieces.take<T>(kOther * kWide);
    sums_ = pieces.take<float>(std::max(group_, 2) * kOwn * wide_);
    top_ = pieces.take<float>(group_ * kOwn);
    total_ = pieces.take<float>(group_ * kOwn);
  }

  Team& team_;
  const TrainAttentionArgs& args_;
  int size_, group_;
  int64_t wide_;
  float to_log2_;
  std::vector<Block> blocks_;
  uint8_t *own_ = nullptr, *own_too_ = nullptr, *first_ = nullptr, *second_ = nullptr, *third_ = nullptr, *fourth_ = nullptr;
  uint8_t* left_ = nullptr;
  float *scores_ = nullptr, *slopes_ = nullptr, *sums_ = nullptr, *top_ = nullptr, *total_ = nullptr;
  T *weights_ = nullptr, *slopes_t_ = nullptr;
};

template <class T>
void train_attention_as(Team& team, const TrainAttentionArgs& args) {
  Attention<T> attention(team, args);
  args.dy ? attention.backward() : attention.forward();
}

inline void train_attention(Team& team, const TrainAttentionArgs& args) {
  args.half ? train_attention_as<uint16_t>(team, args) : train_attention_as<float>(team, args);
}

}  // namespace tenth::TENTH_ISA
