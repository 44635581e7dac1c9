// The experts of a layer: tokens gathered by expert, gate and up, SwiGLU, down, the weighted sum.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "matrix_ops.h"
#include "ops.h"

namespace tenth::TENTH_ISA {

// The experts of a batch. An assignment is a (token, k) pair; those of one expert lie together, in order of tokens.
// Those with a gate of 0 are in no list: nothing is read or computed for them.
struct Work {
  struct Group {  // an expert and its assignments
    int expert, first, count;  // assignments first ... first + count - 1 of the sorted list
    int x_cut, x_cuts;         // its blocks of inputs
    int h_cut, h_cuts;         // its blocks of hidden values
  };
  std::vector<int> assignment;  // sorted: token * top_k + k
  std::vector<Group> groups;
  std::vector<Cut> x, h;  // `first` counts within the group
  std::vector<int> named;  // the groups' experts
  std::vector<int64_t> expected;  // of the next layer
  size_t bytes = 0;       // of all blocks

  void plan(const ExpertArgs& a) {
    const int total = a.tokens * a.top_k;
    next_.assign(a.num_experts + 1, 0);
    for (int i = 0; i < total; ++i)
      if (a.gates[i] != 0) ++next_[a.experts[i] + 1];
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
    assignment.resize(next_[a.num_experts]);
    for (int i = 0; i < total; ++i)
      if (a.gates[i] != 0) assignment[next_[a.experts[i]]++] = i;
  }

  // `order[i]` becomes the i-th group; the lists above stay as they are
  void arrange(const int* order) {
    sorted_.assign(groups.begin(), groups.end());
    for (size_t i = 0; i < groups.size(); ++i) groups[i] = sorted_[order[i]];
  }

 private:
  std::vector<int> next_;
  std::vector<Group> sorted_;
};

inline F load_some(const float* p, int count) {
  float lanes[kLanes] = {};
  std::memcpy(lanes, p, count * sizeof(float));
  return load(lanes);
}

// One call: its phases, and the memory between them.
class ExpertStep {
 public:
  ExpertStep(Team& team, const ExpertArgs& a, Work& work)
      : team_(team), a_(a), work_(work), gate_(a.table[0].gate), down_(a.table[0].down), inner_(gate_.rows) {
    work.plan(a);
    count_ = (int)work.groups.size();
    // few tokens: each thread quantises all of them for itself rather than wait for the others
    alone_ = a.tokens <= kRedundant || team.size == 1;
    fused_ = a.tokens == 1 && a.top_k <= kMostFused && !a.store && !a.norms;
    size_t product = 0;
    int largest = 0;
    for (const Work::Group& group : work.groups) {
      const Expert& w = a.table[group.expert];
      largest = std::max(largest, group.count);
      used_[(int)form_of(w.gate)] = true;
      for (const Matrix* part : {&w.gate, &w.up, &w.down}) product = std::max(product, product_bytes(*part, group.count));
    }
    const int total = a.tokens * a.top_k;
    const size_t gates = line(sizeof(float) * kPanelRows * largest), row = row_bytes(Form::kSteps, down_.padded);
    const size_t hidden = line(sizeof(float) * total * inner_);
    const size_t outputs = fused_ ? 0 : line(sizeof(float) * total * a.width);
    x_row_ = row_bytes(Form::kSteps, gate_.padded);
    const size_t inputs = x_row_ * a.tokens, packed = 2 * inputs + work.bytes;
    own_ = (uint8_t*)team.local(line(product) + gates + row + (alone_ ? packed : 0));
    gates_ = (float*)(own_ + line(product));
    own_row_ = (uint8_t*)gates_ + gates;
    hidden_ = (float*)team.shared(hidden + outputs + (alone_ ? 0 : packed));
    outputs_ = (float*)((uint8_t*)hidden_ + hidden);
    rows_[0] = alone_ ? own_row_ + row : (uint8_t*)outputs_ + outputs;
    rows_[1] = rows_[0] + inputs;
    blocks_ = rows_[1] + inputs;
  }

  bool run() {
    const bool stored = a_.store && count_;
    if (stored && team_.id == 0) ask_store();
    place_inputs();
    if (stored) return run_stored();
    gate_and_up();
    place_hidden();
    if (fused_) {
      down_of_one_token();
    } else {
      down();
      combine();
    }
    return true;
  }

 private:
  // by one thread: the store begins to read, while all threads place inputs
  void ask_store() {
    std::vector<int>& experts = work_.named;
    experts.clear();
    for (const Work::Group& group : work_.groups) experts.push_back(group.expert);
    a_.store->begin(a_.layer, experts.data(), count_);
    if (a_.next) expect();
  }

  // of what a token's next experts will probably be no greater share than it has experts here
  void expect() {
    std::vector<int64_t>& expected = work_.expected;
    expected.clear();
    for (int token = 0; token < a_.tokens; ++token) {
      const float* gates = a_.gates + (size_t)token * a_.top_k;
      const int here = a_.top_k - (int)std::count(gates, gates + a_.top_k, 0.0f);
      const int64_t* next = a_.next + (size_t)token * a_.next_k;
      expected.insert(expected.end(), next, next + (here * a_.next_k + a_.top_k - 1) / a_.top_k);
    }
    a_.store->expect(a_.layer + 1, expected.data(), (int64_t)expected.size());
  }

  // Experts are computed with as they come from the store. Each writes rows of its own, which are summed at the end:
  // in which order they came, and how many at once, changes no bit.
  bool run_stored() {
    const int all = count_;
    for (int done = 0; done < all; done += count_) {
      if (team_.id == 0) a_.store->take();
      team_.barrier();
      const ExpertStore::Batch batch = a_.store->batch();
      if (batch.failed) return false;
      if (!done) work_.arrange(a_.store->order());
      first_ = batch.begin, count_ = batch.end - batch.begin;
      gate_and_up();
      place_hidden();
      down();
    }
    if (team_.id == 0) a_.store->take();  // gives the last of them free
    combine();
    return true;
  }

  static constexpr int kMostFused = 64;  // experts of a lone token whose outputs stay within a core's cache

  template <class Run>
  void each(int64_t count, const Run& run) {
    if (alone_) {
      for (int64_t i = 0; i < count; ++i) run((int)i);
      return;
    }
    for (int64_t i; (i = team_.claim(1)) < count;) run((int)i);
    team_.barrier();
  }

  uint8_t* row(Form form, int token) const { return rows_[form == Form::kSupers] + token * x_row_; }

  // each token is quantised once for each form that its layer's experts take; they get copies
  void place_inputs() {
    for (const Form form : {Form::kSteps, Form::kSupers}) {
      if (!used_[(int)form]) continue;
      each(a_.tokens, [&](int token) {
        quantise_row(form, a_.x + token * a_.x_stride, gate_.columns, gate_.padded, row(form, token));
      });
    }
    each(count_, [&](int i) {
      const Work::Group& group = work_.groups[i];
      const Form form = form_of(a_.table[group.expert].gate);
      for (int j = group.x_cut; j < group.x_cut + group.x_cuts; ++j)
        place_block(form, gate_, work_.x[j], [&](int m) -> const void* {
          const int token = work_.assignment[group.first + work_.x[j].first + m] / a_.top_k;
          if (form == Form::kFloats) return a_.x + token * a_.x_stride;
          return row(form, token);
        });
    });
  }

  void place_hidden() {
    each(count_, [&](int i) {
      const Work::Group& group = this->group(i);
      const Matrix& w = a_.table[group.expert].down;
      for (int j = group.h_cut; j < group.h_cut + group.h_cuts; ++j)
        place_block(form_of(w), w, work_.h[j], [&](int m) -> const void* {
          const float* h = hidden_ + (size_t)(group.first + work_.h[j].first + m) * inner_;
          if (form_of(w) == Form::kFloats) return h;
          quantise_row(form_of(w), h, w.columns, w.padded, own_row_);
          return own_row_;
        });
    });
  }

  template <class Row>
  void place_block(Form form, const Matrix& w, const Cut& c, const Row& row) {
    for (int m = 0; m < shape_at(form, c.shape).width; ++m)
      place(form, c.shape, blocks_ + c.offset, m, m < c.count ? row(m) : nullptr, w.columns, w.padded);
  }

  const Work::Group& group(int64_t i) const { return work_.groups[first_ + i]; }
  const Expert& part(int64_t i) const { return a_.table[group(i).expert]; }

  // what a thread begins with after gates and ups
  Ahead first_down(int64_t unit) const { return ahead_of(part(0).down, unit); }

  void gate_and_up() {
    const int panels = panels_of(gate_);
    for (int64_t unit; (unit = team_.claim(1)) < (int64_t)count_ * panels;) {
      const Work::Group& group = this->group(unit / panels);
      const Expert& w = a_.table[group.expert];
      const int tile = (int)(unit % panels) * kMaxTiles, count = std::min(kMaxTiles, w.gate.tiles() - tile);
      const Cut* cuts = &work_.x[group.x_cut];
      multiply(w.gate, tile, count, cuts, group.x_cuts, blocks_, own_, ahead_of(w.up, unit % panels),
               [&](int i, int t, F value) { store(gates_ + ((size_t)i * kMaxTiles + t) * kLanes, value); });
      const int64_t next = unit + team_.size, after = next - (int64_t)count_ * panels;
      const Ahead ahead = after < 0 ? ahead_of(part(next / panels).gate, next % panels) : first_down(after);
      multiply(w.up, tile, count, cuts, group.x_cuts, blocks_, own_, ahead, [&](int i, int t, F value) {
        const F gate = load(gates_ + ((size_t)i * kMaxTiles + t) * kLanes);
        const int row = (tile + t) * kLanes;
        float* h = hidden_ + (size_t)(group.first + i) * inner_ + row;
        write_tile(h, mul(silu(gate), value), nullptr, inner_ - row);
      });
    }
    team_.barrier();
  }

  // A token's output is summed in order of k: what a batch or a cut of the prompt cannot change.

  void down_of_one_token() {
    const int panels = panels_of(down_);
    for (int64_t unit; (unit = team_.claim(1)) < panels;) {
      const int tile = (int)unit * kMaxTiles, count = std::min(kMaxTiles, down_.tiles() - tile);
      F values[kMostFused][kMaxTiles];
      for (int g = 0; g < count_; ++g) {
        const Work::Group& group = this->group(g);
        const Ahead ahead = g + 1 < count_ ? ahead_of(part(g + 1).down, unit) : ahead_of(part(0).down, unit + team_.size);
        multiply(a_.table[group.expert].down, tile, count, &work_.h[group.h_cut], group.h_cuts, blocks_, own_, ahead,
                 [&](int i, int t, F value) { values[work_.assignment[group.first + i]][t] = value; });
      }
      for (int t = 0; t < count; ++t) {
        F y = zero();
        for (int k = 0; k < a_.top_k; ++k)
          if (a_.gates[k] != 0) y = fma(set1(a_.gates[k]), values[k][t], y);
        const int row = (tile + t) * kLanes;
        write_tile(a_.y + row, y, nullptr, a_.width - row);
      }
    }
    team_.barrier();
  }

  void down() {
    const int panels = panels_of(down_);
    for (int64_t unit; (unit = team_.claim(1)) < (int64_t)count_ * panels;) {
      const Work::Group& group = this->group(unit / panels);
      const int tile = (int)(unit % panels) * kMaxTiles, count = std::min(kMaxTiles, down_.tiles() - tile);
      const int64_t next = unit + team_.size;
      const Ahead ahead = next / panels < count_ ? ahead_of(part(next / panels).down, next % panels) : Ahead();
      multiply(a_.table[group.expert].down, tile, count, &work_.h[group.h_cut], group.h_cuts, blocks_, own_, ahead,
               [&](int i, int t, F value) {
                 const int row = (tile + t) * kLanes;
                 float* y = outputs_ + (size_t)work_.assignment[group.first + i] * a_.width + row;
                 write_tile(y, value, nullptr, a_.width - row);
               });
    }
    team_.barrier();
  }

  void combine() {
    for (int64_t token; (token = team_.claim(1)) < a_.tokens;) {
      const float *gates = a_.gates + token * a_.top_k, *from = outputs_ + (size_t)token * a_.top_k * a_.width;
      for (int row = 0; row < a_.width; row += kLanes) {
        const int count = std::min(kLanes, a_.width - row);
        F sum = zero();
        for (int k = 0; k < a_.top_k; ++k) {
          if (gates[k] == 0) continue;
          const float* part = from + (size_t)k * a_.width + row;
          sum = fma(set1(gates[k]), count == kLanes ? load(part) : load_some(part, count), sum);
        }
        write_tile(a_.y + token * a_.y_stride + row, sum, nullptr, count);
      }
      if (a_.norms)
        for (int k = 0; k < a_.top_k; ++k) measure(token * a_.top_k + k, gates[k] != 0, from + (size_t)k * a_.width);
    }
    team_.barrier();
  }

  // the size of an expert's output, summed in order of lanes
  void measure(int64_t assignment, bool computed, const float* output) {
    F squares = zero(), most = zero();
    for (int row = 0; computed && row < a_.width; row += kLanes) {
      const F part = a_.width - row < kLanes ? load_some(output + row, a_.width - row) : load(output + row);
      squares = fma(part, part, squares);
      most = max(most, abs(part));
    }
    const float norm = std::sqrt(sum_lanes(squares));
    a_.norms[assignment] = norm;
    a_.peaks[assignment] = std::isfinite(norm) ? max_lanes(most) : norm;
  }

  Team& team_;
  const ExpertArgs& a_;
  Work& work_;
  const Matrix &gate_, &down_;  // one expert's, for what all have in common: their shapes
  const int inner_;
  int first_ = 0, count_;  // the groups that are computed now
  bool alone_, fused_;
  bool used_[3] = {};  // forms of inputs
  size_t x_row_;
  uint8_t* own_;      // a product's memory
  float* gates_;      // of a panel, until its ups are there
  uint8_t* own_row_;  // a quantised row of hidden values
  float* hidden_;     // [sorted assignment][inner]
  float* outputs_;    // [assignment][width]
  uint8_t* rows_[2];  // quantised inputs: by steps, by superblocks
  uint8_t* blocks_;
};

inline bool expert_ffn(Team& team, const ExpertArgs& a) {
  [[maybe_unused]] const Tiles tiles;
  static thread_local Work work;
  return ExpertStep(team, a, work).run();
}

}  // namespace tenth::TENTH_ISA
