// The operations of a decoder, as every instruction set offers them. All matrices of numbers are float32, rows at a
// stride (in elements); every thread of a team calls an operation with the same arguments, and a barrier ends it.
#pragma once

#include <cstdint>

#include "expert_store.h"
#include "matrix.h"
#include "team.h"
#include "train_args.h"

namespace tenth {

struct LinearArgs {
  static constexpr int kMost = 4;
  struct Out {
    const Matrix* w;
    const float* bias;  // or null
    float* y;
    int64_t y_stride;
  };
  int tokens;
  const float* x;
  int64_t x_stride;
  int count;
  Out out[kMost];
};

struct ExpertArgs {
  int tokens, top_k, num_experts, width;
  const float* x;
  int64_t x_stride;
  const int64_t* experts;  // [tokens][top_k]
  const float* gates;      // [tokens][top_k]; 0: this one is not computed, nor read
  const Expert* table;
  float* y;
  int64_t y_stride;
  ExpertStore* store = nullptr;  // where the experts are on disk; `table` is then the store's
  int layer = 0;                 // of the store
  const int64_t* next = nullptr;  // [tokens][next_k]: what the next layer's router will probably choose; or null
  int next_k = 0;
  float* norms = nullptr;  // [tokens][top_k] of experts' outputs before their gates, 0 where not computed; or null
  float* peaks = nullptr;  // [tokens][top_k] their largest magnitudes; there or not as `norms` is
};

struct GatherArgs {  // the named rows of a matrix, or of a float table where `w` is null
  int tokens;
  const int64_t* ids;
  const Matrix* w;
  const float* table;
  int64_t table_stride;
  int columns;
  float* y;
  int64_t y_stride;
};

// One layer's keys and values of many tokens in pages of N tokens. Within a page, for G heads of size C (a multiple of
// 16), in chunks of 64 bytes, either bfloat16, N a multiple of 32:
//   keys   [G][N/16][C/2][16][2]: 16 tokens side by side, two channels each
//   values [G][N/2][C][2]: 16 channels side by side, two tokens each
// or signed bytes, N a multiple of 64, the scales of 64 tokens behind their bytes:
//   keys   [G][N/64] of int8 [4][C/4][16][4], float32 [64]: 16 tokens side by side, four channels each
//   values [G][N/64] of int8 [16][C][4], float32 [64]: 16 channels side by side, four tokens each
struct KvView {
  uint8_t *keys, *values;
  bool int8;
  int page_size, kv_heads, head_size;
  int64_t page_stride;  // bytes, of both

  // where tokens of a head begin, `place` (a multiple of 16; of 64 where they are bytes) into the page
  int64_t at(int64_t page, int head, int64_t place) const {
    const int64_t token = int8 ? head_size + 4 : 2 * head_size;
    return page * page_stride + ((int64_t)head * page_size + place) * token;
  }
};

struct StoreKvArgs {
  int tokens;
  const float* k;  // [tokens][G * C]
  int64_t k_stride;
  const float* v;
  int64_t v_stride;
  const int64_t* slots;  // page * N + place in the page; those of a document in order
  KvView kv;
};

struct AttentionArgs {  // causal: document s has lengths[s] tokens in its pages, the last of them are its queries
  int tokens, heads;    // heads: a multiple of kv.kv_heads
  const float* q;
  int64_t q_stride;
  KvView kv;
  int documents;
  const int64_t* bounds;   // [documents + 1]: rows of each in q and y
  const int64_t* lengths;  // [documents]
  const int64_t* pages;    // [documents][pages_stride]
  int64_t pages_stride;
  float scale;
  bool halves;  // queries and weights rounded to bfloat16 too: for processors whose bfloat16 product is the faster one
  float* y;
  int64_t y_stride;
};

struct RmsNormArgs {
  int tokens, columns;
  const float* x;
  int64_t x_stride;
  const float* add;  // or null: added to x first
  int64_t add_stride;
  float* sum;  // x + add, where there is `add`; may be x or add
  int64_t sum_stride;
  const float* weight;
  float eps;
  float* y;  // may be x or sum
  int64_t y_stride;
};

struct HeadsArgs {  // norm of each head, then rotary positions on pairs (i, i + C/2)
  struct Part {
    int heads;
    const float* x;
    int64_t x_stride;
    const float* weight;  // or null: no norm
    float* y;             // may be x
    int64_t y_stride;
  };
  int tokens, head_size;
  Part q, k;
  float eps;
  const float *cos, *sin;  // [tokens][C/2]
};

struct SiluMulArgs {  // y = silu(gate) * up
  int tokens, columns;
  const float* gate;
  int64_t gate_stride;
  const float* up;
  int64_t up_stride;
  float* y;
  int64_t y_stride;
};

struct AddArgs {  // y = x + z
  int tokens, columns;
  const float* x;
  int64_t x_stride;
  const float* z;
  int64_t z_stride;
  float* y;
  int64_t y_stride;
};

struct ScaleRowsArgs {  // y += sigmoid(g) * z, g one number a token
  int tokens, columns;
  const float* g;  // or null: y += z
  int64_t g_stride;
  const float* z;
  int64_t z_stride;
  float* y;
  int64_t y_stride;
};

struct ChooseArgs {  // tenth/routing/rule.py says what is chosen; a score is a logit, or its sigmoid
  int tokens, experts, top_k;
  const float* logits;
  int64_t logits_stride;
  bool renormalise;  // gates: softmax over the chosen, else over all; of sigmoids: their sum is 1, else as they are
  bool sigmoid;
  const float* bias;       // [experts] added to scores for the choice; or null
  int groups, top_groups;  // experts lie in equal groups; a token's come from so many of them
  float scale;             // of gates
  const float* mass;       // [tokens]; or null, as `cap` then is: no expert is dropped (tenth/routing/limit.py)
  const int64_t* cap;      // [tokens]
  bool rescale;            // where some are dropped the gates left are made to sum to 1 anew (before `scale`)
  int64_t* ids;            // [tokens][top_k]: largest first, of equal ones the lower id; NaN counts as -infinity
  float* gates;            // [tokens][top_k]: 0 for a dropped expert, NaN for others where the token has a NaN
};

struct SampleRow {  // how a token is drawn from one row of logits; the meaning is tenth/engine/sampler.py's
  double temperature, top_p, min_p;
  double uniform;  // a random number, 0 <= uniform < 1
  int64_t top_k;
  float repetition, presence, frequency;
  int seen;
  const int32_t* ids;       // [seen] tokens that penalties are for, each once
  const float* counts;      // [seen] how often each was generated; 0: it is in the prompt only
  const uint32_t* allowed;  // a bit a token, the lowest first; null: all
};

struct Sampled {
  enum Status : int32_t { kDrawn, kNotNumbers, kNothingLeft };
  Status status;
  int32_t token;   // -1 where none was drawn
  int32_t kept;    // how many could have been, where that was asked
  float logprob;   // of the token; by the logits as they came, at temperature 1
};

struct SampleArgs {
  int rows, vocabulary;
  const float* logits;
  int64_t logits_stride;
  const SampleRow* row;
  bool logprobs, count_kept;
  int top;              // log-probabilities of so many likeliest tokens
  Sampled* out;         // [rows]
  int32_t* top_ids;     // [rows][top], likeliest first; -1 behind the last of the vocabulary
  float* top_logprobs;  // [rows][top]
};

struct Limits {  // loops that show what a processor can do at most; each is one thread's
  int tiles;     // how many tiles of a matrix are claimed at once
  uint32_t (*read)(const uint8_t*, int64_t bytes);
  int64_t (*int8)(int64_t rounds);  // these return how many operations they made: a product is one, its addition another
  int64_t (*bfloat16)(int64_t rounds);
  int64_t (*float32)(int64_t rounds);
};

struct Ops {
  const char* name;
  void (*linear)(Team&, const LinearArgs&);
  bool (*expert_ffn)(Team&, const ExpertArgs&);  // false: the store could not read, nothing was computed
  void (*gather)(Team&, const GatherArgs&);
  void (*store_kv)(Team&, const StoreKvArgs&);
  void (*attention)(Team&, const AttentionArgs&);
  void (*rms_norm)(Team&, const RmsNormArgs&);
  void (*heads)(Team&, const HeadsArgs&);
  void (*silu_mul)(Team&, const SiluMulArgs&);
  void (*add)(Team&, const AddArgs&);
  void (*scale_rows)(Team&, const ScaleRowsArgs&);
  void (*choose)(Team&, const ChooseArgs&);
  void (*sample)(Team&, const SampleArgs&);
  Limits limits;
  void (*train_forward)(Team&, const ExpertForwardArgs&);
  void (*train_backward)(Team&, const ExpertBackwardArgs&);
  void (*train_linear)(Team&, const TrainLinearArgs&);
  void (*train_attention)(Team&, const TrainAttentionArgs&);
  void (*train_rows)(Team&, const TrainRowsArgs&);
  void (*train_rows_backward)(Team&, const TrainRowsBackwardArgs&);
  bool (*halves_pay)(const KvView&);  // whether AttentionArgs::halves is the faster way on this processor
};

}  // namespace tenth
