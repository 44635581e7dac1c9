// Experts on disk have the bits of experts in memory, in any number of slots, on any instruction set and number of
// threads, with and without experts that are read ahead; what is read is what a slow cache reads; a file that cannot
// be read is an error, and only that. Argument: how many rounds of random models.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <numeric>
#include <set>

#include "../../../tenth/kernels/cpu/csrc/expert_store.h"
#include "packed.h"

using check::Machine;
using check::Random;
using packed::Format;
using packed::Rows;
using packed::Weights;
using tenth::Expert;
using tenth::ExpertStore;

namespace {

constexpr int64_t kPage = ExpertStore::kPage;

int64_t whole_pages(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }
int64_t bytes_of(const Weights& w) { return w.matrix().tile_bytes * w.matrix().tiles(); }

// A layer in memory, and as a file of experts at whole pages; some pages between them belong to none.
struct Layer {
  std::vector<Weights> parts;
  std::vector<Expert> table, inside;
  std::vector<ExpertStore::Place> places;
  std::string path;

  Layer(Random& random, int experts, int hidden, int inner, const std::string& path) : path(path) {
    for (int e = 0; e < experts; ++e) {
      auto fits = [&](int columns, const Format* beside) {
        return packed::format_where(random, [&](const Format& f) {
          return f.fits(columns) && (!beside || f.taken_by() == beside->taken_by());
        });
      };
      const Format gate = fits(hidden, nullptr);
      parts.emplace_back(random, gate, inner, hidden);
      parts.emplace_back(random, fits(hidden, &gate), inner, hidden);
      parts.emplace_back(random, fits(inner, nullptr), hidden, inner);
    }
    int64_t end = kPage * random.integer(0, 2);
    for (int e = 0; e < experts; ++e) {
      const Weights* w = &parts[3 * e];
      table.push_back({w[0].matrix(), w[1].matrix(), w[2].matrix()});
      inside.push_back(table.back());
      Expert& in = inside.back();
      in.gate.data = nullptr;
      in.up.data = (const uint8_t*)(uintptr_t)bytes_of(w[0]);
      in.down.data = in.up.data + bytes_of(w[1]);
      places.push_back({end, bytes_of(w[0]) + bytes_of(w[1]) + bytes_of(w[2])});
      end += whole_pages(places.back().bytes) + kPage * random.integer(0, 1);
    }
  }

  void write() const {
    const int file = open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
    for (size_t e = 0; e < places.size(); ++e) {
      int64_t at = places[e].offset;
      for (int i = 0; i < 3; ++i) {
        const Weights& w = parts[3 * e + i];
        if (pwrite(file, w.matrix().data, bytes_of(w), at) != bytes_of(w)) std::abort();
        at += bytes_of(w);
      }
    }
    close(file);
  }
};

struct Step {
  int layer, tokens, top_k;
  std::vector<int64_t> ids;
  std::vector<float> gates;
  std::vector<int64_t> next;  // what the layer behind it is expected to choose
};

Rows run(const Machine& machine, const Layer& layer, const Step& s, const Rows& x, const Expert* table,
         ExpertStore* store, bool ahead, bool* whole = nullptr) {
  Rows y(x.count, x.columns);
  const tenth::ExpertArgs args{s.tokens, s.top_k, (int)layer.table.size(), x.columns, x.row(0), x.stride, s.ids.data(),
                               s.gates.data(), table, y.row(0), y.stride, store, s.layer,
                               ahead && !s.next.empty() ? s.next.data() : nullptr, (int)(s.next.size() / s.tokens)};
  std::vector<char> good(machine.pool->size());
  machine.pool->run([&](tenth::Team& team) { good[team.id] = machine.ops->expert_ffn(team, args); });
  const bool same = std::count(good.begin(), good.end(), good[0]) == (int)good.size();
  if (!same) check::report("all threads agree whether a step was whole", false);
  if (whole) *whole = good[0];
  return y;
}

// Reads of a cache that drops what is used least: each use counts half after 16 steps of its layer, of equal ones what
// was used longest ago goes first. What the step itself has used goes when there is nothing else, first used first.
struct SlowCache {
  using Key = std::pair<int, int64_t>;
  size_t slots;
  std::vector<Key> held{};  // the latest use at the end
  std::map<int, int> steps{};  // of each layer
  std::map<Key, std::vector<int>> uses{};
  int64_t reads = 0, bytes = 0;

  long double count(const Key& key) {  // as if seen from the first step
    long double sum = 0;
    for (const int step : uses[key]) sum += std::exp2((long double)step / 16);
    return sum;
  }

  void step(const Layer& layer, int number, const std::vector<int64_t>& ids) {
    const std::set<int64_t> distinct(ids.begin(), ids.end());
    ++steps[number];
    std::vector<Key> there, missing;
    for (const int64_t e : distinct) {
      const Key key(number, e);
      uses[key].push_back(steps[number]);
      const auto at = std::find(held.begin(), held.end(), key);
      (at == held.end() ? missing : there).push_back(key);
      if (at != held.end()) held.erase(at);
    }
    const size_t others = held.size();
    held.insert(held.end(), there.begin(), there.end());
    for (size_t i = 0, gone = 0; i < missing.size(); ++i) {
      if (held.size() == slots) {
        size_t least = 0;
        for (size_t j = 1; j + gone < others; ++j)
          if (count(held[j]) < count(held[least])) least = j;
        held.erase(held.begin() + least), ++gone;
      }
      held.push_back(missing[i]);
      ++reads, bytes += whole_pages(layer.places[missing[i].second].bytes);
    }
  }
};

std::vector<int64_t> chosen(Random& random, int tokens, int experts, int top_k) {
  std::vector<int64_t> ids, order(experts);
  std::iota(order.begin(), order.end(), 0);
  for (int t = 0; t < tokens; ++t) {
    std::shuffle(order.begin(), order.end(), random.engine);
    ids.insert(ids.end(), order.begin(), order.begin() + top_k);
  }
  return ids;
}

struct Model {
  int hidden, experts;
  std::vector<Layer> layers;
  std::vector<Step> steps;
  std::vector<Rows> inputs, wanted;

  Model(Random& random, const Machine& machine, const std::string& folder)
      : hidden(random.one_of({48, 100, 256})), experts(random.integer(2, 9)) {
    const int inner = random.one_of({16, 40, 80}), count = random.integer(1, 3);
    for (int l = 0; l < count; ++l) {
      layers.emplace_back(random, experts, hidden, inner, folder + "/layer" + std::to_string(l));
      layers.back().write();
    }
    const int top_k = random.integer(1, std::min(experts, 4));
    for (int i = 0; i < 9; ++i) {
      const int l = i % count, tokens = random.one_of({1, 1, 1, 2, 3, 9});
      Step s{l, tokens, top_k, chosen(random, tokens, experts, top_k), random.normals((size_t)tokens * top_k), {}};
      if (l + 1 < count) s.next = chosen(random, tokens, experts, random.integer(1, top_k));
      inputs.push_back(packed::random_tokens(random, tokens, hidden));
      wanted.push_back(run(machine, layers[l], s, inputs.back(), layers[l].table.data(), nullptr, false));
      steps.push_back(std::move(s));
    }
  }

  int64_t slot_bytes() const {
    int64_t most = 0;
    for (const Layer& layer : layers)
      for (const ExpertStore::Place& place : layer.places) most = std::max(most, whole_pages(place.bytes));
    return most;
  }

  void fill(ExpertStore& store) const {
    for (const Layer& layer : layers) store.add_layer(layer.path, layer.inside, layer.places);
  }
};

void check_model(const Model& model, const Machine& machine, int slots, int readers, bool ahead) {
  ExpertStore store(slots, model.slot_bytes(), readers);
  model.fill(store);
  SlowCache slow{(size_t)slots};
  int64_t asked = 0, expected = 0, right = 0;
  bool same = true;
  for (size_t i = 0; i < model.steps.size(); ++i) {
    const Step& s = model.steps[i];
    const Layer& layer = model.layers[s.layer];
    same &= packed::is_part(run(machine, layer, s, model.inputs[i], store.table(s.layer), &store, ahead), model.wanted[i], 0);
    slow.step(layer, s.layer, s.ids);
    const std::set<int64_t> now(s.ids.begin(), s.ids.end()), next(s.next.begin(), s.next.end());
    asked += now.size(), expected += next.size();
    if (i + 1 < model.steps.size() && !s.next.empty())
      for (const int64_t e : std::set<int64_t>(model.steps[i + 1].ids.begin(), model.steps[i + 1].ids.end())) right += next.count(e);
  }
  const std::string name = std::to_string(slots) + " slots, " + std::to_string(readers) + " readers" +
                           (ahead ? ", ahead" : "") + " on " + machine.name;
  check::report("the bits: " + name, same);
  const ExpertStore::Counts counts = store.counts();
  bool counted = counts.steps == (int64_t)model.steps.size() && counts.hits + counts.late + counts.misses == asked;
  if (!ahead) counted &= counts.misses == slow.reads && counts.reads == slow.reads && counts.bytes == slow.bytes && !counts.late;
  if (ahead) counted &= counts.expected == expected && counts.right == right && counts.reads >= counts.misses;
  check::report("the counts: " + name, counted);
}

void check_failure(const Model& model, const Machine& machine, int slots, bool ahead) {
  ExpertStore store(slots, model.slot_bytes(), 2);
  model.fill(store);
  const Layer& broken = model.layers.back();
  if (truncate(broken.path.c_str(), 0)) std::abort();
  bool good = true;
  for (int round = 0; round < 2; ++round) {
    for (size_t i = 0; i < model.steps.size(); ++i) {
      const Step& s = model.steps[i];
      bool whole = false;
      const Rows y = run(machine, model.layers[s.layer], s, model.inputs[i], store.table(s.layer), &store, ahead, &whole);
      const bool fails = &model.layers[s.layer] == &broken && round == 0;
      good &= whole != fails && (fails || packed::is_part(y, model.wanted[i], 0));
      if (fails) good &= store.error().find(broken.path + ": ends at byte 0, an expert in it at byte ") == 0;
    }
    broken.write();
  }
  check::report("a file without its end, " + std::to_string(slots) + " slots" + (ahead ? ", ahead" : "") + " on " +
                    machine.name, good);
}

void check_reading(const Model& model) {
  ExpertStore store(1, model.slot_bytes(), 1);
  model.fill(store);
  std::vector<uint8_t> memory(model.slot_bytes() + kPage);
  uint8_t* to = (uint8_t*)(((uintptr_t)memory.data() + kPage - 1) / kPage * kPage);
  const Layer& layer = model.layers[0];
  const int e = (int)layer.places.size() - 1;
  store.read(0, e, to);
  const Weights* w = &layer.parts[3 * e];
  check::report("an expert's bytes", !std::memcmp(to, w[0].matrix().data, bytes_of(w[0])) &&
                                         !std::memcmp(to + bytes_of(w[0]), w[1].matrix().data, bytes_of(w[1])));
  try {
    store.add_layer(layer.path + "-none", layer.inside, layer.places);
    check::report("a file that is not there", false);
  } catch (const std::runtime_error& error) {
    check::report("a file that is not there", std::string(error.what()).find(layer.path + "-none: cannot be opened") == 0);
  }
}

// A file of the process's own memory, at whose offsets are addresses: its file system has no direct reads.
void check_indirect(const Model& model, const Machine& machine) {
  const Layer& layer = model.layers[0];
  const ExpertStore::Place& last = layer.places.back();
  std::vector<uint8_t> memory(last.offset + whole_pages(last.bytes) + kPage);
  const int64_t base = ((int64_t)(uintptr_t)memory.data() + kPage - 1) / kPage * kPage;
  std::vector<ExpertStore::Place> places = layer.places;
  for (size_t e = 0; e < places.size(); ++e) {
    int64_t at = places[e].offset += base;
    for (int i = 0; i < 3; at += bytes_of(layer.parts[3 * e + i]), ++i)
      std::memcpy((void*)(uintptr_t)at, layer.parts[3 * e + i].matrix().data, bytes_of(layer.parts[3 * e + i]));
  }
  ExpertStore store(2, model.slot_bytes(), 2);
  store.add_layer("/proc/self/mem", layer.inside, places);
  check::report("why reads are not direct", store.indirect().find("/proc/self/mem: its file system reads through") == 0,
                store.indirect());
  bool same = true;
  for (size_t i = 0; i < model.steps.size(); ++i)
    if (model.steps[i].layer == 0) {
      const Rows y = run(machine, layer, model.steps[i], model.inputs[i], store.table(0), &store, false);
      same &= packed::is_part(y, model.wanted[i], 0);
    }
  check::report("the bits: through the page cache", same);
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 3;
  const std::vector<Machine> all = check::machines();
  char folder[] = "/tmp/tenth-store-XXXXXX";
  if (!mkdtemp(folder)) return 1;
  Random random(11);
  for (int i = 0; i < rounds; ++i) {
    const Model model(random, all[0], folder);
    const int every = model.experts * (int)model.layers.size();
    for (const Machine& machine : all)
      for (const int slots : {1, random.integer(1, every), every})
        for (const bool ahead : {false, true}) check_model(model, machine, slots, random.integer(1, 4), ahead);
    for (const Machine& machine : {all[0], all[all.size() - 1]})
      for (const bool ahead : {false, true}) check_failure(model, machine, random.integer(1, every), ahead);
    check_reading(model);
    if (!access("/proc/self/mem", R_OK)) check_indirect(model, all[0]);
    for (const Layer& layer : model.layers) unlink(layer.path.c_str());
  }
  rmdir(folder);
  return check::done();
}
