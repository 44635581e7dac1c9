// From logits to tokens: penalties, temperature, top-k, top-p, min-p and a draw, as tenth/engine/sampler.py has it.
//
// A row is worked on in four steps. `scan` masks the logits and notes the highest of each block, `edit` has the
// penalties, `weigh` the histogram of e^(depth / temperature), `choose` the marks. Where there are rows for all
// threads, each takes whole rows, which then stay in its cache; else they share the segments of a row, if it is long.
#pragma once

#include "ops.h"
#include "token_order.h"

namespace tenth::TENTH_ISA {

constexpr int kSegments = 4;
constexpr int kLong = 1 << 14;  // shorter rows take less time than the threads' waiting for each other
constexpr int kAhead = 1024;    // logits are asked from memory this early

class RowSampler {
 public:
  static size_t slot_bytes(int vocabulary) {
    const size_t blocks = (vocabulary + kBlock - 1) / kBlock;
    return sizeof(Shared) + (blocks * (kBlock + 3) * sizeof(float) + blocks + 63) / 64 * 64;
  }
  static size_t local_bytes(int vocabulary) {
    return kCopies * kCopyStride * sizeof(double) + (size_t)vocabulary * (sizeof(double) + 2 * sizeof(Item));
  }

  RowSampler(const SampleArgs& args, int row, void* slot)
      : args_(args),
        options_(args.row[row]),
        raw_(args.logits + row * args.logits_stride),
        row_(row),
        blocks_((args.vocabulary + kBlock - 1) / kBlock),
        shared_(*(Shared*)slot),
        copy_((float*)(&shared_ + 1)),
        raw_peaks_(copy_ + (size_t)blocks_ * kBlock),
        copy_peaks_(raw_peaks_ + blocks_),
        raw_weights_(copy_peaks_ + blocks_),
        touched_((uint8_t*)(raw_weights_ + blocks_)) {}

  void scan(int segment) {
    bool nan = false;
    for (int block = first(segment); block < first(segment + 1); ++block) {
      F peak = set1(-kInfinity), copy_peak = peak;
      each(block, [&](int i, F x) {
        __builtin_prefetch(raw_ + i + kAhead);
        nan |= is_nan(x) != 0;
        peak = max(peak, x);
      });
      raw_peaks_[block] = max_lanes(peak);
      if (args_.logprobs) raw_weights_[block] = weight_below_peak(block);
      if (!edited()) continue;
      each(block, [&](int i, F x) {
        if (options_.allowed) x = select((uint16_t)(options_.allowed[i / 32] >> i % 32), x, set1(-kInfinity));
        copy_peak = max(copy_peak, x);
        store(copy_ + i, x);
      });
      copy_peaks_[block] = max_lanes(copy_peak);
    }
    shared_.nan[segment] = nan;
  }

  void edit() {
    if (edited()) {
      std::memset(touched_, 0, blocks_);
      for (int i = 0; i < options_.seen; ++i) {
        const int id = options_.ids[i];
        copy_[id] = penalised(copy_[id], options_.counts[i]);
        touched_[id / kBlock] = 1;
      }
      for (int block = 0; block < blocks_; ++block)
        if (touched_[block])
          copy_peaks_[block] = highest(copy_ + block * kBlock, std::min(kBlock, args_.vocabulary - block * kBlock));
    }
    shared_.raw_highest = highest(raw_peaks_, blocks_);
    shared_.highest = highest(edited() ? copy_peaks_ : raw_peaks_, blocks_);
  }

  void weigh(int segment, void* local) {
    if (status() != Sampled::kDrawn || !by_mass()) return;
    double* histogram = (double*)local;
    std::fill_n(histogram, kCopies * kCopyStride, 0.0);
    TENTH_ISA::weigh(logits(), first(segment), first(segment + 1), Weights(options_.temperature), histogram);
    double* mass = shared_.mass[segment];
    std::fill_n(mass, kBins, 0.0);
    for (int c = 0; c < kCopies; ++c)
      for (int b = 0; b < kBins; ++b) mass[b] += histogram[c * kCopyStride + b];
  }

  void choose(void* local) {
    weight_ = (double*)local + kCopies * kCopyStride;
    list_ = (Item*)(weight_ + args_.vocabulary);
    Sampled out{status(), -1, 0, NAN};
    if (out.status == Sampled::kDrawn) {
      if (options_.temperature == 0)
        out.token = likeliest(), out.kept = 1;
      else if (by_mass())
        draw_by_mass(out);
      else
        draw_by_rank(out);
    }
    if (args_.logprobs) logprobs(out);
    args_.out[row_] = out;
  }

 private:
  struct alignas(64) Shared {  // what one step leaves for the next
    double mass[kSegments][kBins];
    bool nan[kSegments];
    float raw_highest, highest;
  };

  int first(int segment) const { return (int)((int64_t)blocks_ * segment / kSegments); }
  bool edited() const { return options_.allowed || options_.seen; }
  bool by_mass() const {
    return options_.temperature != 0 && (options_.top_k == 0 || options_.top_k >= args_.vocabulary);
  }
  Logits raw_logits() const { return {raw_, raw_peaks_, args_.vocabulary, shared_.raw_highest}; }
  Logits logits() const {
    if (!edited()) return raw_logits();
    return {copy_, copy_peaks_, args_.vocabulary, shared_.highest};
  }

  Sampled::Status status() const {
    for (bool nan : shared_.nan)
      if (nan) return Sampled::kNotNumbers;
    return shared_.highest > -kInfinity ? Sampled::kDrawn : Sampled::kNothingLeft;
  }

  // use(first id, logits) for a block of the row as it came, minus infinity behind its end
  template <class Use>
  void each(int block, Use use) const {
    const int end = std::min(args_.vocabulary, (block + 1) * kBlock);
    int i = block * kBlock;
    for (; i + kLanes <= end; i += kLanes) use(i, load(raw_ + i));
    if (i < end) use(i, load_up_to(raw_ + i, end - i));
  }

  float weight_below_peak(int block) const {
    F sum = zero();
    const float peak = raw_peaks_[block];
    if (peak == -kInfinity) return 0;
    each(block, [&](int, F x) { sum = add(sum, rough_exp(depth(x, peak))); });
    return sum_lanes(sum);
  }

  double raw_weight() const {
    double total = 0;
    for (int b = 0; b < blocks_; b += kLanes) {
      float x[kLanes];
      store(x, rough_exp(depth(load_up_to(raw_peaks_ + b, blocks_ - b), shared_.raw_highest)));
      for (int i = 0; i < std::min(kLanes, blocks_ - b); ++i) total += (double)x[i] * raw_weights_[b + i];
    }
    return total;
  }

  float penalised(float x, float count) const {
    if (options_.repetition != 1) x = x > 0 ? x / options_.repetition : x * options_.repetition;
    return x - (options_.presence * (float)(count > 0) + options_.frequency * count);
  }

  static float highest(const float* x, int count) {
    F most = set1(-kInfinity);
    for (int i = 0; i < count; i += kLanes) most = max(most, load_up_to(x + i, count - i));
    return max_lanes(most);
  }

  int likeliest() const {
    int id = -1;
    logits().each_above(0, [&](int first, F d, uint16_t) {
      const uint16_t at = equal(d, zero());
      if (id < 0 && at) id = first + std::countr_zero(at);
    });
    return id;
  }

  void draw_by_rank(Sampled& out) {
    const Weights weights(options_.temperature);
    const int n = largest(logits(), (int)options_.top_k, list_);
    double total = 0, mass = 0;
    for (int i = 0; i < n; ++i) total += weight_[i] = weights.weight(list_[i].key);
    while (out.kept < n) {
      const double w = weight_[out.kept];
      if (out.kept && (w == 0 || w < options_.min_p)) break;
      if (out.kept && options_.top_p < 1 && mass >= options_.top_p * total) break;
      mass += w;
      ++out.kept;
    }
    const double target = options_.uniform * mass;
    int chosen = 0;
    for (double end = weight_[0]; end <= target && chosen < out.kept - 1;) end += weight_[++chosen];
    out.token = list_[chosen].id;
  }

  void draw_by_mass(Sampled& out) {
    double mass[kBins] = {}, total = 0;
    for (const auto& segment : shared_.mass)
      for (int b = 0; b < kBins; ++b) mass[b] += segment[b];
    for (double m : mass) total += m;
    const Logits row = logits();
    const Weights weights(options_.temperature);
    Finder finder(row, weights, mass, list_, weight_);
    Mark cut{{key_of(-kInfinity), -1}, total};  // nothing behind it is kept
    if (options_.top_p < 1) cut = finder.reach(options_.top_p * total);
    if (options_.min_p > 0) {
      const Mark other = finder.cut_below(options_.min_p);
      if (before(other.item, cut.item)) cut = other;
    }
    const Item drawn = finder.pass(options_.uniform * cut.end).item;
    // a sum in another order may end a last bit lower, and the mark then lies behind the cut
    out.token = drawn.key == key_of(-kInfinity) || before(cut.item, drawn) ? likeliest() : drawn.id;
    if (args_.count_kept) out.kept = count(row, cut.item, finder.deepest(0));
  }

  // tokens up to the cut that weigh anything
  int count(const Logits& row, Item cut, uint32_t deepest) const {
    const Item last{deepest, std::numeric_limits<int32_t>::max()};
    if (before(last, cut)) cut = last;
    const float edge = depth_of(cut.key);
    int n = 0;
    row.each_above(edge, [&](int first, F d, uint16_t valid) {
      n += std::popcount(less(set1(edge), d));
      each_bit(equal(d, set1(edge)) & valid, [&](int i) { n += first + i <= cut.id; });
    });
    return n;
  }

  void logprobs(Sampled& out) {
    int32_t* ids = args_.top_ids + (int64_t)row_ * args_.top;
    float* values = args_.top_logprobs + (int64_t)row_ * args_.top;
    std::fill_n(ids, args_.top, -1);
    std::fill_n(values, args_.top, NAN);
    if (out.status != Sampled::kDrawn) return;
    const double log_total = std::log(raw_weight());
    const Logits row = raw_logits();
    out.logprob = (float)(depth(raw_[out.token], row.highest) - log_total);
    const int n = args_.top ? largest(row, args_.top, list_) : 0;
    for (int i = 0; i < n; ++i) {
      ids[i] = list_[i].id;
      values[i] = (float)(depth_of(list_[i].key) - log_total);
    }
  }

  const SampleArgs& args_;
  const SampleRow& options_;
  const float* raw_;
  int row_, blocks_;
  Shared& shared_;
  float *copy_, *raw_peaks_, *copy_peaks_, *raw_weights_;
  uint8_t* touched_;
  double* weight_ = nullptr;
  Item* list_ = nullptr;
};

inline void sample(Team& team, const SampleArgs& args) {
  const size_t bytes = RowSampler::slot_bytes(args.vocabulary);
  char* slots = (char*)team.shared(bytes * team.size);
  void* local = team.local(RowSampler::local_bytes(args.vocabulary));
  if (args.rows >= team.size || args.vocabulary < kLong) {
    for (int64_t row; (row = team.claim(1)) < args.rows;) {
      RowSampler work(args, (int)row, slots + bytes * team.id);
      for (int s = 0; s < kSegments; ++s) work.scan(s);
      work.edit();
      for (int s = 0; s < kSegments; ++s) work.weigh(s, local);
      work.choose(local);
    }
    team.barrier();
    return;
  }
  auto each = [&](int pieces, auto step) {
    for (int64_t piece; (piece = team.claim(1)) < (int64_t)args.rows * pieces;) {
      const int row = (int)(piece / pieces);
      step(RowSampler(args, row, slots + bytes * row), (int)(piece % pieces));
    }
    team.barrier();
  };
  each(kSegments, [](RowSampler work, int segment) { work.scan(segment); });
  each(1, [](RowSampler work, int) { work.edit(); });
  each(kSegments, [&](RowSampler work, int segment) { work.weigh(segment, local); });
  each(1, [&](RowSampler work, int) { work.choose(local); });
}

}  // namespace tenth::TENTH_ISA
