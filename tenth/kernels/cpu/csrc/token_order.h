// The order of a row's tokens and marks in it, without a sort of the vocabulary.
//
// Tokens are ordered by depth (how far the logit lies below the highest one), of equal ones the lower id first. What
// top-k, top-p and min-p keep is a beginning of this order, and a token is drawn where the running sum of e^(depth /
// temperature) passes a mark. Marks are found by histogram: the mass of each of some hundred ranges of depth, then only
// the range that the mark falls into is looked at more closely. Sums are float64 and in an order that nothing but the
// length of the row decides.
#pragma once

#include <algorithm>
#include <bit>
#include <limits>

#include "simd_double.h"

namespace tenth::TENTH_ISA {

constexpr int kBlock = 256;           // logits whose highest is kept, so that later passes may skip them
constexpr int kBins = 1024;           // ranges of depth; the last one is all the rest
constexpr double kBinsPerBit = 32;    // so the last one begins at a 4e9-th of the likeliest
constexpr int kCopies = 4;            // of the histogram: neighbours that fall into one bin do not wait for each other
constexpr int kCopyStride = kBins + 8;  // a power of two would have the processor confuse their addresses
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Item {
  uint32_t key;  // bits of the depth without its sign: the smaller, the likelier
  int32_t id;
};
inline bool before(const Item& a, const Item& b) { return a.key != b.key ? a.key < b.key : a.id < b.id; }

// where logits of plus infinity exist, they are the highest and everything else is infinitely deep
inline F depth(F x, float highest) {
  if (highest == kInfinity) return select(less(x, set1(kInfinity)), set1(-kInfinity), zero());
  return sub(x, set1(highest));
}
inline float depth(float x, float highest) {
  if (highest == kInfinity) return x < kInfinity ? -kInfinity : 0.0f;
  return x - highest;
}
inline uint32_t key_of(float depth) { return std::bit_cast<uint32_t>(depth) & 0x7fffffff; }
inline float depth_of(uint32_t key) { return -std::bit_cast<float>(key); }

// `count` logits, minus infinity in the lanes behind them
inline F load_up_to(const float* p, int count) {
  if (count >= kLanes) return load(p);
  float x[kLanes];
  for (int i = 0; i < kLanes; ++i) x[i] = i < count ? p[i] : -kInfinity;
  return load(x);
}

struct Logits {  // a row, and the highest of each block of it
  const float* x;
  const float* peaks;
  int count;
  float highest;

  int blocks() const { return (count + kBlock - 1) / kBlock; }
  // visit(first id, depths, bits of the lanes that hold a logit) for a block
  template <class Visit>
  void each_of(int block, Visit visit) const {
    const int start = block * kBlock, end = std::min(count, start + kBlock);
    int i = start;
    if (highest < kInfinity) {
      const F top = set1(highest);
      for (; i + kLanes <= end; i += kLanes) visit(i, sub(load(x + i), top), (uint16_t)0xffff);
    }
    for (; i < end; i += kLanes) {
      const uint16_t valid = (uint16_t)(end - i >= kLanes ? 0xffff : (1 << (end - i)) - 1);
      visit(i, depth(load_up_to(x + i, end - i), highest), valid);
    }
  }
  // the same for all blocks that reach up to this depth
  template <class Visit>
  void each_above(float least, Visit visit) const {
    for (int block = 0; block < blocks(); ++block)
      if (depth(peaks[block], highest) >= least) each_of(block, visit);
  }
};

template <class Use>
inline void each_bit(uint32_t bits, Use use) {
  for (; bits; bits &= bits - 1) use(std::countr_zero(bits));
}

inline uint16_t equal(F a, F b) { return (uint16_t)~(less(a, b) | less(b, a)); }  // no NaN among them

// The first k of the order, sorted; `list` has room for all. A threshold that at least k reach comes from the blocks'
// highest ones; less than k blocks lie above it, and of those that equal it the first k are enough.
inline int largest(const Logits& row, int k, Item* list) {
  k = std::min(k, row.count);
  uint32_t least = key_of(-kInfinity);
  if (k <= row.blocks()) {
    for (int b = 0; b < row.blocks(); ++b) list[b] = {key_of(depth(row.peaks[b], row.highest)), b};
    std::nth_element(list, list + k - 1, list + row.blocks(), [](Item a, Item b) { return before(a, b); });
    least = list[k - 1].key;
  }
  const float threshold = depth_of(least);
  const F edge = set1(threshold);
  Item* equals = list + row.count;
  int n = 0, same = 0;
  row.each_above(threshold, [&](int first, F d, uint16_t valid) {
    const uint32_t above = less(edge, d), at = equal(edge, d) & valid;
    if (!(above | at)) return;
    float x[kLanes];
    store(x, d);
    each_bit(above, [&](int i) { list[n++] = {key_of(x[i]), first + i}; });
    each_bit(same < k ? at : 0, [&](int i) {
      if (same < k) equals[same++] = {least, first + i};
    });
  });
  if (n > k) {
    std::nth_element(list, list + k - 1, list + n, [](Item a, Item b) { return before(a, b); });
    n = k;
  }
  for (int i = 0; n < k; ++i) list[n++] = equals[i];
  std::sort(list, list + n, [](Item a, Item b) { return before(a, b); });
  return n;
}

struct Weights {  // from depth to weight, e^(depth / temperature), and to bin
  double powers;         // of two: weight = 2^(depth * powers)
  float bins_per_depth;

  explicit Weights(double temperature)  // the smallest temperatures may not make 0 * infinity of a depth of 0
      : powers(std::min(0x1.71547652b82fep0 / temperature, 1e300)),
        bins_per_depth((float)std::min(kBinsPerBit * powers, 1e30)) {}
  D weight(F depth) const { return exp2_not_positive(mul(to_double(depth), set1d(powers))); }
  // what is as good as nothing weighs 2^-1020, which a sum that has the likeliest in it does not notice
  D weight_in_sum(F depth) const { return exp2_within(max(mul(to_double(depth), set1d(powers)), set1d(-1020.0))); }
  double weight(uint32_t key) const {
    double w[kLanes];
    store(w, weight(set1(depth_of(key))));
    return w[0];
  }
  F bin(F depth) const { return min(mul(depth, set1(-bins_per_depth)), set1(kBins - 1)); }  // before rounding
  int bin(uint32_t key) const {
    int32_t b[kLanes];
    storei(b, to_int(bin(set1(depth_of(key)))));
    return b[0];
  }

  // the least key of which `beyond` is true; it must be so of minus infinity, and of all behind one of which it is
  template <class Beyond>
  static uint32_t first(Beyond beyond) {
    uint32_t low = 0, high = key_of(-kInfinity);
    while (low < high) {
      const uint32_t middle = low + (high - low) / 2;
      if (beyond(middle))
        high = middle;
      else
        low = middle + 1;
    }
    return low;
  }
};

// adds the weights of the blocks to the histogram of kCopies x kCopyStride
inline void weigh(const Logits& row, int first_block, int end_block, const Weights& weights, double* histogram) {
  alignas(64) double weight[kBlock];
  alignas(64) int32_t bins[kBlock];
  D rest = set1d(0);  // of the last bin
  for (int block = first_block; block < end_block; ++block) {
    if (depth(row.peaks[block], row.highest) * weights.powers < -1021) continue;
    int n = 0;
    row.each_of(block, [&](int, F d, uint16_t) {
      const D w = weights.weight_in_sum(d);
      const F bin = weights.bin(d);
      if (!less(bin, set1(kBins - 1))) {
        rest = add(rest, w);
        return;
      }
      store(weight + n, w);
      storei(bins + n, to_int(bin));
      n += kLanes;
    });
    for (int i = 0; i < n; i += kCopies)
      for (int c = 0; c < kCopies; ++c) histogram[c * kCopyStride + (size_t)(uint32_t)bins[i + c]] += weight[i + c];
  }
  double x[kLanes];
  store(x, rest);
  for (int i = 0; i < kLanes; ++i) histogram[i % kCopies * kCopyStride + kBins - 1] += x[i];
}

// e^x for x <= 0 to 1e-7, never 0: e^-86 at the least. For log-probabilities, which come out as float32
inline F rough_exp(F x) {
  const F rounder = set1(0x1.8p23f);  // adding it leaves the whole number in the low bits
  x = max(x, set1(-86.0f));
  const F n = fma(x, set1(1.44269504f), rounder);
  const F r = fma(sub(n, rounder), set1(-0.693147182f), x);
  F p = set1(0x1.709b64p-10f);  // nearest to e^r in relative error
  for (float c : {0x1.12903ep-7f, 0x1.55515ep-5f, 0x1.5553c2p-3f, 0x1.000002p-1f, 1.0f, 1.0f}) p = fma(p, r, set1(c));
  return bits_to_float(addi(float_to_bits(p), shift_left(float_to_bits(n), 23)));
}

struct Mark {
  Item item;
  double end;  // the mass up to and with the item
};

// A mass, or a depth, and where in the order it lies.
class Finder {
 public:
  Finder(const Logits& row, const Weights& weights, const double* mass, Item* list, double* weight)
      : row_(row), weights_(weights), mass_(mass), list_(list), weight_(weight) {}

  // the first item with which the mass reaches the target, or passes it
  Mark reach(double target) { return find([=](double end) { return end >= target; }); }
  Mark pass(double target) { return find([=](double end) { return end > target; }); }

  // all that weigh at least so much
  Mark cut_below(double least) {
    const uint32_t key = deepest(least);
    const int bin = weights_.bin(key);
    double end = 0;
    for (int b = 0; b < bin; ++b) end += mass_[b];
    const int n = collect(bin);
    for (int i = 0; i < n; ++i)
      if (list_[i].key <= key) end += weight_[i];
    return {{key, std::numeric_limits<int32_t>::max()}, end};
  }

  // the largest key that weighs so much, and more than nothing
  uint32_t deepest(double least) const {
    return Weights::first([&](uint32_t key) {
      const double w = weights_.weight(key);
      return !(w > 0 && w >= least);
    }) - 1;
  }

 private:
  template <class There>
  Mark find(There there) {
    double start = 0;
    int bin = 0;
    for (; bin < kBins - 1 && !there(start + mass_[bin]); ++bin) start += mass_[bin];
    int n = collect(bin);
    if (!n) return {{key_of(-kInfinity), 0}, start};  // rounding has lost the last bit of the mass
    while (n > 32 && narrow(n, start, there)) {}
    sort(n);
    for (int i = 0;; ++i) {
      start += weight_[i];
      if (i == n - 1 || there(start)) return {list_[i], start};
    }
  }

  int collect(int bin) {
    const F highest = set1(depth_of(Weights::first([&](uint32_t key) { return weights_.bin(key) >= bin; })));
    const float least = depth_of(Weights::first([&](uint32_t key) { return weights_.bin(key) > bin; }) - 1);
    int n = 0;
    row_.each_above(least, [&](int first, F d, uint16_t valid) {
      const uint32_t bits = ~(less(highest, d) | less(d, set1(least))) & valid;
      if (!bits) return;
      float x[kLanes];
      store(x, d);
      each_bit(bits, [&](int i) { list_[n++] = {key_of(x[i]), first + i}; });
    });
    for (int i = 0; i < n; i += kLanes) {
      float x[kLanes];
      double w[kLanes];
      for (int j = 0; j < kLanes; ++j) x[j] = depth_of(list_[std::min(i + j, n - 1)].key);
      store(w, weights_.weight(load(x)));
      std::copy(w, w + std::min(kLanes, n - i), weight_ + i);
    }
    return n;
  }

  // keeps the part of the list that the mark falls into; false where all are equal, which their ids have sorted
  template <class There>
  bool narrow(int& n, double& start, There there) {
    uint32_t low = list_[0].key, high = low;
    for (int i = 1; i < n; ++i) low = std::min(low, list_[i].key), high = std::max(high, list_[i].key);
    if (low == high) return false;
    const int shift = std::max(0, (int)std::bit_width(high - low) - 8);
    double mass[256] = {};
    for (int i = 0; i < n; ++i) mass[(list_[i].key - low) >> shift] += weight_[i];
    uint32_t part = 0;
    const uint32_t last = (high - low) >> shift;
    for (; part < last && !there(start + mass[part]); ++part) start += mass[part];
    int kept = 0;
    for (int i = 0; i < n; ++i)
      if ((list_[i].key - low) >> shift == part) {
        list_[kept] = list_[i];
        weight_[kept++] = weight_[i];
      }
    n = kept;
    return true;
  }

  void sort(int n) {  // a few, or many that are in order
    for (int i = 1; i < n; ++i)
      for (int j = i; j && before(list_[j], list_[j - 1]); --j) {
        std::swap(list_[j].key, list_[j - 1].key);
        std::swap(list_[j].id, list_[j - 1].id);
        std::swap(weight_[j], weight_[j - 1]);
      }
  }

  const Logits& row_;
  const Weights& weights_;
  const double* mass_;
  Item* list_;
  double* weight_;
};

}  // namespace tenth::TENTH_ISA
