// Attention to a paged cache, one algorithm for a single new token and for a long prompt; and the filling of the cache.
//
// A document's keys are walked in blocks of 64, which begin at multiples of 64 whatever the step brings; a running
// softmax goes with them. Every 1024 keys it begins anew, and the parts are merged in order: that lets several threads
// share one long document. A row is one query head of one token, and its arithmetic is its own: scores are summed over
// channels in order, outputs over keys in order and never beyond the row's own token. So its bits depend neither on
// the rows computed beside it nor on how the prompt was cut. It is float32 but for the cache, and but for queries and
// weights where `halves` says so, or where the cache is of bytes (attention_bytes.h).
#pragma once

#include <algorithm>
#include <cfloat>
#include <vector>

#include "attention_bytes.h"
#include "attention_panels.h"
#include "ops.h"
#if defined(TENTH_AMX)
#include "attention_byte_tiles.h"
#include "attention_tiles.h"
#endif

namespace tenth::TENTH_ISA {

constexpr int kSplit = 1024;                      // keys until the softmax begins anew
constexpr int kMostRows = 96;                     // of a job, unless a single token has more
constexpr int kPartsEach = 4;                     // a document is shared if it is over 1/4 of what each thread gets,
constexpr size_t kMostShared = size_t{64} << 20;  // as long as the states of its parts fit these bytes

// The softmax so far of some rows: the largest score, the sum of weights by lanes, the weighted sum of values.
struct State {
  float *best, *sum, *y;  // [rows], [rows][16], [rows][size]

  static int padded(int rows) { return (rows + 2 * kLanes - 1) / kLanes * kLanes; }  // 16 more may be written
  static size_t floats(int rows, int size) { return (size_t)padded(rows) * (1 + kLanes + size); }
  State(float* memory, int rows) : best(memory), sum(best + padded(rows)), y(sum + (size_t)padded(rows) * kLanes) {}

  void begin(int rows, int size) const {
    std::fill(best, sum, -FLT_MAX);  // finite: what was never reached is 0 times 1, not NaN
    std::fill(sum, y + (size_t)padded(rows) * size, 0.0f);
  }
};

// whether `halves` is the faster way here: bfloat16 products are 16 times as fast as float32 in the tiles of AMX and
// twice as fast on AMD's processors, but at half their speed in Intel's AVX-512
inline bool halves_pay([[maybe_unused]] const KvView& kv) {
#if defined(TENTH_AMX)
  return fits_tiles(kv);
#elif defined(TENTH_AVX512)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

inline const RowKernels& kernels_of(const AttentionArgs& a, int rows) {
  if (a.kv.int8) {
#if defined(TENTH_AMX)
    if (fits_byte_tiles(a.kv)) return kByteTileKernels[0];
#endif
    return kernels_for(rows, kByteKernels);
  }
#if defined(TENTH_AMX)
  if (a.halves && fits_tiles(a.kv)) return kTileKernels[0];
#endif
  return a.halves ? kernels_for(rows, kRowKernels<true>) : kernels_for(rows, kRowKernels<false>);
}

// some tokens of a document at one key-value head
struct Job {
  int document, head, first, tokens;  // first: row of q
  int64_t position;                   // of the first token
  bool shared;                        // its splits are units of work, each with a state in shared memory
  size_t states;                      // where these begin (floats)

  int64_t keys() const { return position + tokens; }
  int splits() const { return (int)((keys() + kSplit - 1) / kSplit); }
};

struct Attend {
  const AttentionArgs& a;
  const Job& job;
  const int group, size, rows;
  float *q, *scores, *shrink;  // of each cut of rows [size][width]; [rows][kKeys]; [rows]

  Attend(const AttentionArgs& a, const Job& job, float* memory)
      : a(a), job(job), group(a.heads / a.kv.kv_heads), size(a.kv.head_size), rows(job.tokens * group), q(memory),
        scores(q + (size_t)State::padded(rows) * size), shrink(scores + (size_t)State::padded(rows) * kKeys) {}
  static size_t floats(int rows, int size) { return (size_t)State::padded(rows) * (size + kKeys + 1); }
  int64_t seen(int row) const { return job.position + row / group + 1; }

  template <class Fn>
  void each_cut(const Fn& fn) const {  // fn(first row, rows, kernels)
    for (int row = 0; row < rows;) {
      const RowKernels& kernels = kernels_of(a, rows - row);
      const int count = std::min(rows - row, kernels.width);
      fn(row, count, kernels);
      row += count;
    }
  }

  void place_queries() const {
    const float scale = a.scale * 1.44269504f;  // scores count in powers of two
    each_cut([&](int row, int count, const RowKernels& kernels) {
      for (int w = 0; w < kernels.width; ++w) {
        const int r = row + std::min(w, count - 1);  // an empty place repeats a row
        const float* x = a.q + (job.first + r / group) * a.q_stride + (int64_t)(job.head * group + r % group) * size;
        kernels.place(x, scale, size, w, q + (size_t)row * size);
      }
    });
  }

  // one block of keys, from `key` on: all scores first, then all outputs, so that either's half of the block stays near
  void step(int key, const Run* runs, const State& state) const {
    Run still[kRuns];  // for all rows but the last, which ask for the next block
    for (int i = 0; i < kRuns; ++i) still[i] = {runs[i].keys, runs[i].values, runs[i].keys, runs[i].values};
    int sees[kMaxRows];
    auto look = [&](int row, int count) {  // returns the most
      if (seen(row) - key >= kKeys)
        std::fill(sees, sees + count, kKeys);
      else
        for (int r = 0; r < count; ++r) sees[r] = (int)std::clamp<int64_t>(seen(row + r) - key, 0, kKeys);
      return sees[count - 1];
    };
    each_cut([&](int row, int count, const RowKernels& kernels) {
      const int most = look(row, count);
      if (!most) return;
      float* s = scores + (size_t)row * kKeys;
      kernels.scores(row + count < rows ? still : runs, q + (size_t)row * size, size, (most + kLanes - 1) / kLanes, s);
      weigh(s, sees, count, scales_of(runs[0].values, size), state, row);
    });
    each_cut([&](int row, int count, const RowKernels& kernels) {
      if (!look(row, count)) return;
      kernels.values(row + count < rows ? still : runs, scores + (size_t)row * kKeys, sees, count, size, shrink + row,
                     state.y + (size_t)row * size);
    });
  }

  // scales: of the values, where they are bytes
  void weigh(float* s, const int* sees, int count, const float* scales, const State& state, int row) const {
    float *best = state.best + row, *sum = state.sum + (size_t)row * kLanes;
    if (a.kv.int8)
      soften_bytes(s, sees, count, scales, best, sum, shrink + row);
    else
      (a.halves ? soften<true> : soften<false>)(s, sees, count, best, sum, shrink + row);
  }

  void walk(int split, const State& state) const {
    const int64_t* table = a.pages + job.document * a.pages_stride;
    const int from = split * kSplit, end = (int)std::min<int64_t>(job.keys(), from + kSplit);
    Run runs[kRuns] = {};
    auto look_ahead = [&](int key) {  // where nothing follows, the next run is the last
      for (int i = 0; i < kRuns && key < end; ++i, key += kLanes) {
        const int64_t at = a.kv.at(table[key / a.kv.page_size], job.head, key % a.kv.page_size);
        runs[i].next_keys = a.kv.keys + at;
        runs[i].next_values = a.kv.values + at;
      }
    };
    state.begin(rows, size);
    look_ahead(from);
    for (int key = from; key < end; key += kKeys) {
      for (Run& run : runs) run = {run.next_keys, run.next_values, run.next_keys, run.next_values};
      look_ahead(key + kKeys);
      step(key, runs, state);
    }
  }

  // the rows that reach into the split; the others have nothing there
  void merge(const State& into, const State& from, int split) const {
    for (int row = 0; row < rows; ++row) {
      if (seen(row) <= (int64_t)split * kSplit) continue;
      const F x = set1(into.best[row]), z = set1(from.best[row]), most = max(x, z);
      const F keep = exp2_falling(sub(x, most)), take = exp2_falling(sub(z, most));
      auto mix = [&](float* p, const float* r) { store(p, fma(load(r), take, mul(load(p), keep))); };
      store_first(into.best + row, 1, most);
      mix(into.sum + (size_t)row * kLanes, from.sum + (size_t)row * kLanes);
      const size_t at = (size_t)row * size;
      for (int c = 0; c < size; c += kLanes) mix(into.y + at + c, from.y + at + c);
    }
  }

  void finish(const State& state) const {
    for (int row = 0; row < rows; ++row) {
      float* y = a.y + (job.first + row / group) * a.y_stride + (int64_t)(job.head * group + row % group) * size;
      const F sum = set1(sum_lanes(load(state.sum + (size_t)row * kLanes)));
      for (int c = 0; c < size; c += kLanes) store(y + c, div(load(state.y + (size_t)row * size + c), sum));
    }
  }
};

struct Unit { int job, split; };  // split -1: all of them

struct Agenda {
  std::vector<Job> jobs;
  std::vector<Unit> units;
  size_t floats = 0;   // of shared states
  int most_rows = 0;
  bool shared = false;

  void plan(const AttentionArgs& a, int threads) {
    const int group = a.heads / a.kv.kv_heads, most = std::max(1, kMostRows / group);
    jobs.clear();
    units.clear();
    floats = most_rows = 0;
    shared = false;
    int64_t total = 0;
    auto cost = [&](const Job& job) { return (int64_t)job.splits() * job.tokens; };
    for (int s = 0; s < a.documents; ++s) {
      const int begin = (int)a.bounds[s], end = (int)a.bounds[s + 1];
      for (int head = 0; head < a.kv.kv_heads; ++head)
        for (int first = begin; first < end; first += most) {
          jobs.push_back({s, head, first, std::min(most, end - first), a.lengths[s] - (end - first), false, 0});
          total += cost(jobs.back());
          most_rows = std::max(most_rows, jobs.back().tokens * group);
        }
    }
    for (int i = 0; i < (int)jobs.size(); ++i) {
      Job& job = jobs[i];
      const size_t more = job.splits() * State::floats(job.tokens * group, a.kv.head_size);
      if (threads == 1 || job.splits() == 1 || cost(job) * threads * kPartsEach <= total) continue;
      if ((floats + more) * sizeof(float) > kMostShared) continue;
      job.shared = shared = true;
      job.states = floats;
      floats += more;
      for (int split = 0; split < job.splits(); ++split) units.push_back({i, split});
    }
    for (int i = (int)jobs.size(); i-- > 0;)  // backwards: the end of a prompt has the most to do
      if (!jobs[i].shared) units.push_back({i, -1});
  }
};

inline void attention(Team& team, const AttentionArgs& a) {
#if defined(TENTH_AMX)
  const Tiles tiles;
#endif
  static thread_local Agenda agenda;
  agenda.plan(a, team.size);
  const int size = a.kv.head_size, rows = agenda.most_rows;
  float* own = (float*)team.local((Attend::floats(rows, size) + 2 * State::floats(rows, size)) * sizeof(float));
  float *whole = own + Attend::floats(rows, size), *part = whole + State::floats(rows, size);
  float* states = agenda.shared ? (float*)team.shared(agenda.floats * sizeof(float)) : nullptr;
  auto state = [&](const Attend& attend, int split) {
    return State(states + attend.job.states + split * State::floats(attend.rows, size), attend.rows);
  };
  for (int64_t i; (i = team.claim(1)) < (int64_t)agenda.units.size();) {
    const Unit& unit = agenda.units[i];
    const Attend attend(a, agenda.jobs[unit.job], own);
    attend.place_queries();
    if (unit.split >= 0) {
      attend.walk(unit.split, state(attend, unit.split));
      continue;
    }
    const State all(whole, attend.rows), next(part, attend.rows);
    attend.walk(0, all);
    for (int split = 1; split < attend.job.splits(); ++split) {
      attend.walk(split, next);
      attend.merge(all, next, split);
    }
    attend.finish(all);
  }
  team.barrier();
  if (!agenda.shared) return;
  for (int64_t i; (i = team.claim(1)) < (int64_t)agenda.jobs.size();) {
    const Attend attend(a, agenda.jobs[i], own);
    if (!attend.job.shared) continue;
    for (int split = 1; split < attend.job.splits(); ++split)
      attend.merge(state(attend, 0), state(attend, split), split);
    attend.finish(state(attend, 0));
  }
  team.barrier();
}

// one token's keys and values at one head, as bytes
inline void store_token_bytes(const StoreKvArgs& a, int64_t token, int head) {
  const KvView& kv = a.kv;
  const int size = kv.head_size, place = (int)(a.slots[token] % kv.page_size), at = place % kKeys;
  const int64_t offset = kv.at(a.slots[token] / kv.page_size, head, place - at);
  auto put = [&](const float* x, uint8_t* block, const auto& where) {  // where(c): the byte of a channel
    const Whole whole(largest_magnitude(x, size), kMostByte);
    for (int c = 0; c < size; c += kLanes) {
      alignas(64) int8_t part[kLanes];
      store_bytes(part, whole.of(load(x + c)));
      for (int i = 0; i < kLanes; ++i) block[where(c + i)] = (uint8_t)part[i];
    }
    std::memcpy(block + ((size_t)size * kKeys + at * sizeof(float)), &whole.worth, sizeof(float));
  };
  put(a.k + token * a.k_stride + (int64_t)head * size, kv.keys + offset, [&](int c) {
    return (at / kLanes * (size_t)size + c / 4 * 4) * kLanes + at % kLanes * 4 + c % 4;
  });
  put(a.v + token * a.v_stride + (int64_t)head * size, kv.values + offset,
      [&](int c) { return ((size_t)(at / 4) * size + c) * 4 + at % 4; });
}

// one token's keys and values at one head, as bfloat16
inline void store_token(const StoreKvArgs& a, int64_t token, int head) {
  const KvView& kv = a.kv;
  const int size = kv.head_size, N = kv.page_size;
  const int place = (int)(a.slots[token] % N), lane = place % kLanes;
  const int64_t offset = kv.at(a.slots[token] / N, head, place - lane);
  const float* k = a.k + token * a.k_stride + (int64_t)head * size;
  const float* v = a.v + token * a.v_stride + (int64_t)head * size;
  uint16_t *keys = (uint16_t*)(kv.keys + offset), *values = (uint16_t*)(kv.values + offset) + (size_t)(lane / 2) * size * 2;
  for (int c = 0; c < size; c += kLanes) {
    alignas(64) int32_t bits[kLanes];
    storei(bits, to_bf16(load(k + c)));
    for (int i = 0; i < kLanes; i += 2) {
      const int32_t pair = bits[i] | (int32_t)((uint32_t)bits[i + 1] << 16);
      std::memcpy(keys + (size_t)(c + i) * kLanes + lane * 2, &pair, 4);
    }
    int32_t* pairs = (int32_t*)(values + (size_t)c * 2);
    const I rounded = to_bf16(load(v + c));
    // the first of two tokens clears the second's place: what lies there before it comes must be finite
    storei(pairs, lane % 2 ? or_bits(and_bits(loadi(pairs), set1i(0xffff)), shift_left(rounded, 16)) : rounded);
  }
}

inline void store_kv(Team& team, const StoreKvArgs& a) {
  // two tokens that share chunks are never in different pieces: two threads would write the same 4 bytes
  auto joined = [&](int64_t token) {
    return token < a.tokens && a.slots[token] % 2 && a.slots[token] == a.slots[token - 1] + 1;
  };
  for (int64_t i; (i = team.claim(kLanes)) < a.tokens;) {
    int64_t from = i, to = std::min<int64_t>(i + kLanes, a.tokens);
    if (from && joined(from)) ++from;
    if (joined(to)) ++to;
    for (int head = 0; head < a.kv.kv_heads; ++head)
      for (int64_t token = from; token < to; ++token) (a.kv.int8 ? store_token_bytes : store_token)(a, token, head);
  }
  team.barrier();
}

}  // namespace tenth::TENTH_ISA
