// The experts of a layer have the bits of their parts: gate, up, SwiGLU and down as operations of their own, a token
// and an expert at a time, summed in order of k; on any instruction set and number of threads, alone or in company.
// What has a gate of 0 is not computed, nor are the weights of an expert read that nobody else hears.
// (products.cpp and row_ops.cpp hold the parts to double precision.) Argument: how many rounds of random layers.
#include <cstdlib>
#include <numeric>

#include "packed.h"

using check::Machine;
using check::Random;
using packed::Format;
using packed::Rows;
using packed::Weights;

namespace {

struct Layer {
  int hidden, inner;
  std::vector<Weights> parts;  // gate, up and down of each expert
  std::vector<tenth::Expert> table;
  std::string name;

  // `only`: the format of all parts; null: each has any
  Layer(Random& random, int experts, int hidden, int inner, const Format* only) : hidden(hidden), inner(inner) {
    auto format = [&](int columns, const Format* beside) {
      return packed::format_where(random, [&](const Format& f) {
        return f.fits(columns) && (!beside || f.taken_by() == beside->taken_by());
      });
    };
    for (int e = 0; e < experts; ++e) {
      const Format gate = only ? *only : format(hidden, nullptr);
      parts.emplace_back(random, gate, inner, hidden);
      parts.emplace_back(random, only ? *only : format(hidden, &gate), inner, hidden);  // they share their inputs
      parts.emplace_back(random, only ? *only : format(inner, nullptr), hidden, inner);
      const Weights* w = &parts[3 * e];
      table.push_back({w[0].matrix(), w[1].matrix(), w[2].matrix()});
    }
    name = std::to_string(experts) + " experts of " + std::to_string(hidden) + " x " + std::to_string(inner) +
           (only ? " in " + only->name() : " in many formats");
  }

  bool integers(int64_t expert) const {
    return !parts[3 * expert].format.floats() || !parts[3 * expert + 2].format.floats();
  }
};

struct Routing {
  int top_k;
  std::vector<int64_t> ids;  // [tokens][top_k]
  std::vector<float> gates;

  Routing part(int first, int many) const {
    const size_t begin = (size_t)first * top_k, end = begin + (size_t)many * top_k;
    return {top_k, {ids.begin() + begin, ids.begin() + end}, {gates.begin() + begin, gates.begin() + end}};
  }
};

enum class Choice { kAny, kSame, kFew, kTwice };
constexpr const char* kChoices[] = {"any experts", "the same experts", "few experts", "an expert twice"};

Routing random_routing(Random& random, Choice choice, int tokens, int experts, int top_k) {
  Routing r{top_k, {}, random.normals((size_t)tokens * top_k)};
  for (float& gate : r.gates) gate = random.integer(0, 9) ? gate : 0.0f;
  std::vector<int64_t> order(experts);
  std::iota(order.begin(), order.end(), 0);
  const int kept = choice == Choice::kFew ? std::max(top_k, experts / 2) : experts;
  std::shuffle(order.begin(), order.end(), random.engine);
  for (int t = 0; t < tokens; ++t) {
    if (choice != Choice::kSame) std::shuffle(order.begin(), order.begin() + kept, random.engine);
    for (int k = 0; k < top_k; ++k)
      r.ids.push_back(choice == Choice::kTwice ? random.integer(0, experts - 1) : order[k]);
    if (choice == Choice::kTwice) r.ids.back() = r.ids[r.ids.size() - top_k];
  }
  return r;
}

Rows run(const Machine& machine, const Layer& layer, const Rows& x, const Routing& routing) {
  Rows y(x.count, layer.hidden);
  machine.run(machine.ops->expert_ffn,
              tenth::ExpertArgs{x.count, routing.top_k, (int)layer.table.size(), layer.hidden, x.row(0), x.stride,
                                routing.ids.data(), routing.gates.data(), layer.table.data(), y.row(0), y.stride});
  return y;
}

Rows one_expert(const Machine& machine, const Weights* parts, const Rows& x) {
  const Rows gate = packed::product(machine, parts[0], x), up = packed::product(machine, parts[1], x);
  Rows hidden(x.count, gate.columns);
  machine.run(machine.ops->silu_mul, tenth::SiluMulArgs{x.count, gate.columns, gate.row(0), gate.stride, up.row(0),
                                                        up.stride, hidden.row(0), hidden.stride});
  return packed::product(machine, parts[2], hidden);
}

Rows by_parts(const Machine& machine, const Layer& layer, const Rows& x, const Routing& routing) {
  Rows y(x.count, layer.hidden);
  for (int t = 0; t < x.count; ++t) {
    std::fill_n(y.row(t), layer.hidden, 0.0f);
    for (int k = 0; k < routing.top_k; ++k) {
      const size_t at = (size_t)t * routing.top_k + k;
      if (routing.gates[at] == 0) continue;
      const Rows part = one_expert(machine, &layer.parts[3 * routing.ids[at]], x.part(t, 1));
      for (int c = 0; c < layer.hidden; ++c) y.row(t)[c] = std::fma(routing.gates[at], part.row(0)[c], y.row(t)[c]);
    }
  }
  return y;
}

// tokens that are not numbers, about one in five; `by_parts` says that no other token sees them
std::vector<int> spoil_some(Random& random, Rows& x) {
  std::vector<int> spoiled;
  for (int t = 0; t < x.count; ++t)
    if (!random.integer(0, 4)) spoiled.push_back(t), packed::spoil(random, x, t);
  return spoiled;
}

bool keeps_rule(const Layer& layer, const Routing& routing, const std::vector<int>& spoiled, const Rows& y) {
  return std::all_of(spoiled.begin(), spoiled.end(), [&](int t) {
    const auto ids = routing.ids.begin() + (size_t)t * routing.top_k;
    const float* gates = &routing.gates[(size_t)t * routing.top_k];
    bool integers = false, heard = false;
    for (int k = 0; k < routing.top_k; ++k)
      if (gates[k] != 0) heard = true, integers |= layer.integers(ids[k]);
    return !heard || packed::is_spoiled(y.row(t), layer.hidden, integers);
  });
}

void check_layer(Random& random, const std::vector<Machine>& all, const Layer& layer, Choice choice, int tokens,
                 int top_k) {
  const Routing routing = random_routing(random, choice, tokens, (int)layer.table.size(), top_k);
  Rows x = packed::random_tokens(random, tokens, layer.hidden);
  const std::vector<int> spoiled = random.integer(0, 1) ? spoil_some(random, x) : std::vector<int>();
  const Rows wanted = by_parts(all[0], layer, x, routing);
  const std::string name = layer.name + ", " + std::to_string(tokens) + " tokens that choose " +
                           kChoices[(int)choice] + ", top " + std::to_string(top_k);
  check::report("not a number stays with its token: " + name, keeps_rule(layer, routing, spoiled, wanted));
  for (const Machine& machine : all) {
    bool whole = packed::is_part(run(machine, layer, x, routing), wanted, 0), cut = true;
    for (int first = 0, many; first < tokens; first += many) {
      many = std::min(tokens - first, random.one_of({1, 1, 2, 3, 6, 13}));
      cut &= packed::is_part(run(machine, layer, x.part(first, many), routing.part(first, many)), wanted, first);
    }
    if (!whole || !cut)
      check::report("the bits of " + name + (whole ? ", in pieces," : "") + " on " + machine.name, false);
  }
}

void layers(Random& random, const std::vector<Machine>& all) {
  const Format uniform[] = {{4, 16, false, 4}, {4, 32}, {8, 32, true}, {16}};
  for (const Choice choice : {Choice::kAny, Choice::kSame, Choice::kFew, Choice::kTwice})
    for (const bool one_format : {true, false}) {
      const int hidden = random.one_of({17, 48, 80, 100, 256, 272});
      const int inner = random.one_of({16, 40, 80, 256, 272, 330});
      const int experts = random.integer(1, 9), tokens = random.one_of({2, 3, 5, 9, 17, 33});
      const int top_k = choice == Choice::kTwice ? random.integer(2, 8) : random.integer(1, std::min(experts, 8));
      const Layer layer(random, experts, hidden, inner, one_format ? &uniform[random.integer(0, 3)] : nullptr);
      check_layer(random, all, layer, choice, tokens, top_k);
    }
}

// a token alone: the outputs of up to 64 experts are summed as they come, those of more are kept
void lone_tokens(Random& random, const std::vector<Machine>& all) {
  const Layer layer(random, 80, random.one_of({33, 80}), random.one_of({24, 70}), nullptr);
  for (const int top_k : {1, 2, 5, 8, 64, 65, 80})
    for (const Choice choice : {Choice::kAny, Choice::kTwice}) check_layer(random, all, layer, choice, 1, top_k);
  check_layer(random, all, layer, Choice::kTwice, 3, 70);
}

// tokens that drop experts, all of them where `keep` is 0: the experts that nobody hears have no memory to be read from
void dropped(Random& random, const std::vector<Machine>& all, int tokens, int top_k, int keep) {
  Layer layer(random, 9, 80, 40, nullptr);
  Routing routing = random_routing(random, Choice::kAny, tokens, 9, top_k);
  std::vector<bool> heard(9, false);
  for (size_t i = 0; i < routing.ids.size(); ++i) {
    if ((int)(i % top_k) >= keep) routing.gates[i] = 0;
    if (routing.gates[i] != 0) heard[routing.ids[i]] = true;
  }
  const Rows x = packed::random_tokens(random, tokens, 80), wanted = by_parts(all[0], layer, x, routing);
  for (int e = 0; e < 9; ++e)
    if (!heard[e]) layer.table[e].gate.data = layer.table[e].up.data = layer.table[e].down.data = nullptr;
  for (const Machine& machine : all)
    if (!packed::is_part(run(machine, layer, x, routing), wanted, 0))
      check::report("the bits of " + std::to_string(keep) + " of " + std::to_string(top_k) + " experts left, " +
                        std::to_string(tokens) + " tokens on " + machine.name, false);
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 3;
  const std::vector<Machine> all = check::machines();
  Random random(9);
  for (int i = 0; i < rounds; ++i) {
    for (int j = 0; j < 2; ++j) layers(random, all);
    lone_tokens(random, all);
    for (const int tokens : {1, 2, 7, 30})
      for (const int keep : {0, 1, 3}) dropped(random, all, tokens, 5, keep);
  }
  return check::done();
}
