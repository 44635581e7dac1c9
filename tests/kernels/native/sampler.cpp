// Sampling against a full sort in double precision, and its bits against themselves: on any instruction set, on any
// number of threads, alone and among other rows. Argument: how many times 20 random shapes; `speed`: how long it takes.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <numeric>

#include "check.h"

using check::Machine;
using check::Random;
using tenth::SampleArgs;
using tenth::Sampled;
using tenth::SampleRow;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kLeast = 0x1p-1021;  // what is below counts as nothing

struct Row {  // the logits and options of one row, and the memory its lists lie in
  std::vector<float> logits, counts;
  std::vector<int32_t> ids;
  std::vector<uint32_t> allowed;
  SampleRow options{1, 1, 0, 0, 0, 1, 0, 0, 0, nullptr, nullptr, nullptr};

  void point() {
    options.seen = (int)ids.size();
    options.ids = ids.data();
    options.counts = counts.data();
    options.allowed = allowed.empty() ? nullptr : allowed.data();
  }
};

struct Result {
  std::vector<Sampled> out;
  std::vector<int32_t> top_ids;
  std::vector<float> top_logprobs;
};

Result sample(const Machine& machine, const std::vector<const Row*>& rows, int top) {
  const int V = (int)rows[0]->logits.size(), stride = V + 3;
  std::vector<float> logits(rows.size() * stride, kInfinity);
  std::vector<SampleRow> options;
  for (size_t i = 0; i < rows.size(); ++i) {
    std::copy(rows[i]->logits.begin(), rows[i]->logits.end(), logits.begin() + i * stride);
    options.push_back(rows[i]->options);
  }
  Result r{std::vector<Sampled>(rows.size()), std::vector<int32_t>(rows.size() * top),
           std::vector<float>(rows.size() * top)};
  machine.run(machine.ops->sample,
              SampleArgs{(int)rows.size(), V, logits.data(), stride, options.data(), true, true, top, r.out.data(),
                         r.top_ids.data(), r.top_logprobs.data()});
  return r;
}

// depths in the order of the tokens
struct Sorted {
  std::vector<int> ids;
  std::vector<double> depth;
};

Sorted sorted(const std::vector<float>& logits) {
  const float highest = *std::max_element(logits.begin(), logits.end());
  std::vector<float> depth(logits.size());
  for (size_t i = 0; i < logits.size(); ++i)
    depth[i] = highest == kInfinity ? (logits[i] == kInfinity ? 0 : -kInfinity) : logits[i] - highest;
  Sorted s;
  s.ids.resize(logits.size());
  std::iota(s.ids.begin(), s.ids.end(), 0);
  std::stable_sort(s.ids.begin(), s.ids.end(), [&](int a, int b) { return depth[a] > depth[b]; });
  for (int id : s.ids) s.depth.push_back(depth[id]);
  return s;
}

std::vector<float> edited(const Row& row) {
  std::vector<float> x = row.logits;
  for (size_t i = 0; i < x.size(); ++i)
    if (!row.allowed.empty() && !(row.allowed[i / 32] >> i % 32 & 1)) x[i] = -kInfinity;
  const SampleRow& o = row.options;
  for (size_t i = 0; i < row.ids.size(); ++i) {
    float& v = x[row.ids[i]];
    if (o.repetition != 1) v = v > 0 ? v / o.repetition : v * o.repetition;
    v -= o.presence * (float)(row.counts[i] > 0) + o.frequency * row.counts[i];
  }
  return x;
}

struct Allowed {  // what rounding may make of a row
  int least_kept, most_kept;
  std::vector<int> tokens;
};

// the marks moved by `slack` of the whole
Allowed expected(const Row& row, double slack) {
  const SampleRow& o = row.options;
  const Sorted order = sorted(edited(row));
  const int V = (int)order.ids.size(), count = o.top_k && o.top_k < V ? (int)o.top_k : V;
  if (o.temperature == 0) return {1, 1, {order.ids[0]}};
  std::vector<double> p(count);
  double total = 0, summed = 0;
  for (int i = 0; i < count; ++i) total += p[i] = std::exp(order.depth[i] / o.temperature);
  Allowed a{0, 0, {}};
  for (int i = 0; i < count; summed += p[i++]) {
    auto kept = [&](double s) {
      return i == 0 || (p[i] > kLeast * (1 + s) && (o.top_p == 1 || summed < (o.top_p + s) * total) &&
                        p[i] * (1 + s) >= o.min_p);
    };
    if (a.least_kept == i && kept(-slack)) a.least_kept = i + 1;
    if (a.most_kept == i && kept(slack)) a.most_kept = i + 1;
  }
  for (const int n : {a.least_kept, a.most_kept}) {
    const double mass = std::accumulate(p.begin(), p.begin() + n, 0.0);
    double end = 0;
    for (int i = 0; i < n; ++i) {
      const double start = end;
      end += p[i];
      if (start <= (o.uniform + slack) * mass && (end > (o.uniform - slack) * mass || i == n - 1))
        a.tokens.push_back(order.ids[i]);
    }
  }
  return a;
}

bool near(double a, double b) { return a == b || std::abs(a - b) <= 1e-5; }

// empty where the result is right
std::string wrong(const Row& row, const Result& r, int place, int top) {
  const Sampled& out = r.out[place];
  auto is_nan = [](float x) { return x != x; };
  const std::vector<float> x = edited(row);
  const bool nan = std::any_of(row.logits.begin(), row.logits.end(), is_nan);
  if (nan || *std::max_element(x.begin(), x.end()) == -kInfinity) {
    const bool good = out.status == (nan ? Sampled::kNotNumbers : Sampled::kNothingLeft) && out.token == -1;
    return good && is_nan(out.logprob) ? "" : "status";
  }
  if (out.status != Sampled::kDrawn) return "status";
  const Allowed a = expected(row, 1e-11);
  if (std::find(a.tokens.begin(), a.tokens.end(), out.token) == a.tokens.end())
    return "token " + std::to_string(out.token) + " for " + std::to_string(a.tokens[0]);
  if (out.kept < a.least_kept || out.kept > a.most_kept)
    return "kept " + std::to_string(out.kept) + " for " + std::to_string(a.least_kept);
  const Sorted order = sorted(row.logits);
  double total = 0;
  for (double d : order.depth) total += std::exp(d);
  const size_t rank = std::find(order.ids.begin(), order.ids.end(), out.token) - order.ids.begin();
  if (!near(out.logprob, order.depth[rank] - std::log(total))) return "logprob";
  for (int i = 0; i < top; ++i) {
    const int32_t id = r.top_ids[place * top + i];
    const float value = r.top_logprobs[place * top + i];
    if (i >= (int)order.ids.size() ? id != -1 || !is_nan(value)
                                   : id != order.ids[i] || !near(value, order.depth[i] - std::log(total)))
      return "top " + std::to_string(i);
  }
  return "";
}

std::vector<float> random_logits(Random& random, int V) {
  std::vector<float> x = random.normals(V, random.one_of({0.0f, 0.1f, 1.0f, 4.0f, 30.0f}));
  switch (random.integer(0, 7)) {
    case 0:  // many equal ones
      for (float& v : x) v = std::round(v);
      break;
    case 1:  // in order, which finds many new highest ones
      std::sort(x.begin(), x.end());
      break;
    case 2:
      for (float& v : x)
        if (!random.integer(0, 3)) v = -kInfinity;
      break;
    case 3:
      x[random.integer(0, V - 1)] = kInfinity;
      x[random.integer(0, V - 1)] = kInfinity;
      break;
    case 4:  // one stands out
      x[random.integer(0, V - 1)] += 20;
      break;
    default:
      break;
  }
  if (!random.integer(0, 30)) x[random.integer(0, V - 1)] = NAN;
  return x;
}

Row random_row(Random& random, int V) {
  Row row;
  row.logits = random_logits(random, V);
  SampleRow& o = row.options;
  o.temperature = random.one_of({0.0, 5e-324, 1e-6, 0.3, 0.7, 1.0, 1.0, 1.7, 100.0});
  o.top_p = random.one_of({1.0, 1.0, 0.95, 0.95, 0.5, 0.03, 0.999999, 1e-9, 5e-324});
  o.min_p = random.one_of({0.0, 0.0, 0.01, 0.2, 0.9, 1.0, 1e-9});
  o.top_k = random.one_of({0, 0, 0, 1, 5, 20, 300, V, 1 << 30});
  o.uniform = random.integer(0, 5) ? (random.engine() >> 11) * 0x1p-53 : random.one_of({0.0, 1 - 0x1p-53, 0.5});
  if (random.integer(0, 1)) {
    std::vector<int32_t> all(V);
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), random.engine);
    all.resize(random.integer(0, std::min(V, 200)));
    row.ids = all;
    for (size_t i = 0; i < all.size(); ++i) row.counts.push_back((float)random.integer(0, 3));
    o.repetition = random.one_of({1.0f, 1.1f, 0.5f});
    o.presence = random.one_of({0.0f, 1.5f, -0.7f});
    o.frequency = random.one_of({0.0f, 0.3f, -0.1f});
  }
  if (!random.integer(0, 2)) {
    const int share = random.one_of({0, 1, 2, 9});
    row.allowed.resize((V + 31) / 32);
    for (int i = 0; i < V; ++i)
      if (random.integer(0, 9) < share) row.allowed[i / 32] |= 1u << i % 32;
  }
  return row;
}

bool same(const Result& a, size_t i, const Result& b, size_t j, int top) {
  auto cut = [&](const std::vector<float>& v, size_t k) {
    return std::vector<float>(v.begin() + k * top, v.begin() + (k + 1) * top);
  };
  const Sampled &x = a.out[i], &y = b.out[j];
  return x.status == y.status && x.token == y.token && x.kept == y.kept &&
         check::same_bits({x.logprob}, {y.logprob}) &&
         std::equal(a.top_ids.begin() + i * top, a.top_ids.begin() + (i + 1) * top, b.top_ids.begin() + j * top) &&
         check::same_bits(cut(a.top_logprobs, i), cut(b.top_logprobs, j));
}

void shape_checks(Random& random, const std::vector<Machine>& all, int V) {
  const int top = random.one_of({0, 1, 5, 20});
  std::vector<Row> rows(random.integer(1, 6));
  std::vector<const Row*> pointers;
  for (Row& row : rows) {
    row = random_row(random, V);
    row.point();
    pointers.push_back(&row);
  }
  const Result first = sample(all[0], pointers, top);
  const std::string name = std::to_string(rows.size()) + " x " + std::to_string(V);
  std::string detail;
  for (size_t i = 0; i < rows.size() && detail.empty(); ++i) detail = wrong(rows[i], first, (int)i, top);
  check::report("sampler " + name, detail.empty(), detail);
  for (const Machine& machine : all) {
    const Result together = sample(machine, pointers, top);
    bool good = true;
    for (size_t i = 0; i < rows.size(); ++i) {
      good &= same(first, i, together, i, top);
      good &= same(first, i, sample(machine, {pointers[i]}, top), 0, top);
    }
    check::report("sampler bits " + name + " " + machine.name, good);
  }
}

// milliseconds of the best of some calls
void speed() {
  constexpr int kRows = 16, kVocabulary = 151936, kSeen = 1000;
  Random random(3);
  for (const char* kind : {"peaked", "flat"}) {
    std::vector<Row> rows(kRows);
    std::vector<float> logits;
    std::vector<SampleRow> options;
    for (Row& row : rows) {
      row.logits = random.normals(kVocabulary, 1.0f);
      if (kind[0] == 'p')  // as a language model's: some tokens far above a wide field
        for (float& v : row.logits) v = 2.5f * v + (random.integer(0, 3000) ? 0.0f : 8.0f);
      for (int i = 0; i < kSeen; ++i) row.ids.push_back(i * 150), row.counts.push_back((float)(i % 3));
      const double uniform = (random.engine() >> 11) * 0x1p-53;
      row.options = {0.7, 0.95, 0, uniform, 0, 1.05f, 0.5f, 0.1f, 0, nullptr, nullptr, nullptr};
      row.point();
      logits.insert(logits.end(), row.logits.begin(), row.logits.end());
      options.push_back(row.options);
    }
    for (const int top : {-1, 0, 20})
      for (const Machine& machine : check::machines({1, 2}))
        for (const int count : {1, kRows}) {
          std::vector<Sampled> out(kRows);
          std::vector<int32_t> ids(kRows * 20);
          std::vector<float> values(kRows * 20);
          const SampleArgs args{count, kVocabulary, logits.data(), kVocabulary, options.data(), top >= 0, false,
                                std::max(top, 0), out.data(), ids.data(), values.data()};
          std::vector<double> times;
          for (int i = 0; i < 15; ++i) {
            using Clock = std::chrono::steady_clock;
            const auto start = Clock::now();
            machine.run(machine.ops->sample, args);
            times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
          }
          std::sort(times.begin(), times.end());
          std::printf("%s, logprobs %d, %2d rows, %-12s best %.3f ms, median %.3f\n", kind, top, count,
                      machine.name.c_str(), times.front(), times[times.size() / 2]);
        }
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && std::string(arguments[1]) == "speed") return speed(), 0;
  const int shapes = 20 * (count > 1 ? std::atoi(arguments[1]) : 3);
  const std::vector<Machine> all = check::machines();
  Random random(11);
  for (int i = 0; i < shapes; ++i) {
    const int odd = random.one_of({1, 2, 15, 16, 17, 31, 255, 257, 600, 1111});
    shape_checks(random, all, i % 20 == 1 ? random.integer(3000, 40000) : odd);
  }
  return check::done();
}
