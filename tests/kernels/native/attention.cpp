// The cache and attention against double precision, and their bits against themselves: however a prompt is cut, whoever
// shares the step, on any number of threads and any instruction set. Each with pages of bfloat16 and of bytes.
// Argument: how many rounds of random shapes.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <numeric>

#include "check.h"

using check::Machine;
using check::Random;

namespace {

float rounded(float x) {  // to bfloat16, nearest even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return x;
  bits += 0x7fff + (bits >> 16 & 1);
  bits &= 0xffff0000;
  std::memcpy(&x, &bits, 4);
  return x;
}

enum class Kind { kFloats, kHalves, kBytes };  // what is multiplied: the first two of bfloat16 pages
constexpr Kind kKinds[] = {Kind::kFloats, Kind::kHalves, Kind::kBytes};

std::string name_of(Kind kind) {
  return kind == Kind::kBytes ? "int8 attention " : kind == Kind::kHalves ? "bfloat16 attention " : "attention ";
}

// a head's key or value as a cache keeps it: of bytes, whole numbers times the largest magnitude / 127
std::vector<float> kept(const float* x, int size, Kind kind) {
  std::vector<float> y(x, x + size);
  float most = 0;
  for (const float v : y) most = std::max(most, std::fabs(v));
  for (float& v : y)
    v = kind != Kind::kBytes ? rounded(v) : most ? std::nearbyint(v * (127.0f / most)) * (most / 127.0f) : 0.0f;
  return y;
}

struct Shape {
  int size, kv_heads, group, page_size;
  std::vector<int> lengths;
  int skip = 0;  // so many tokens of the first document are only looked at

  int heads() const { return kv_heads * group; }
  int tokens() const { return std::accumulate(lengths.begin(), lengths.end(), 0); }
  std::string name() const {
    std::string s = "C" + std::to_string(size) + " heads " + std::to_string(heads()) + "/" + std::to_string(kv_heads) +
                    " page " + std::to_string(page_size) + " lengths";
    for (const int n : lengths) s += " " + std::to_string(n);
    return s;
  }
};

Shape random_shape(Random& random, bool deep, Kind kind) {
  Shape s;
  s.size = random.one_of({16, 32, 48, 64, 80, 96, 128, 256});
  s.kv_heads = random.integer(1, 2);
  s.group = random.one_of({1, 2, 3, 4, 5, 6, 7, 8, 16});
  s.page_size = kind == Kind::kBytes ? random.one_of({64, 128, 192}) : random.one_of({32, 64, 96, 160, 256});
  if (deep) {
    s.lengths = {random.integer(1025, random.one_of({1200, 5000})), random.integer(1, 90)};
    s.skip = s.lengths[0] - random.integer(1, 60);
  } else {
    for (int i = random.integer(1, 4); i > 0; --i) s.lengths.push_back(random.integer(1, random.one_of({3, 50, 150})));
  }
  return s;
}

// all documents' q, k, v, one behind the other
struct Inputs {
  std::vector<float> q, k, v;
  Inputs(Random& random, const Shape& s)
      : q(random.normals((size_t)s.tokens() * s.heads() * s.size, random.one_of({0.3f, 1.0f, 3.0f}))),
        k(random.normals((size_t)s.tokens() * s.kv_heads * s.size)),
        v(random.normals((size_t)s.tokens() * s.kv_heads * s.size)) {}
};

// a pool of pages in no order, full of NaN
struct Cache {
  std::vector<uint8_t> keys, values;
  std::vector<std::vector<int64_t>> pages;
  tenth::KvView view;

  Cache(Random& random, const Shape& s, Kind kind) {
    int count = 1;
    for (const int n : s.lengths) count += (n + s.page_size - 1) / s.page_size + 1;
    std::vector<int64_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random.engine);
    for (const int n : s.lengths) {
      const int needs = (n + s.page_size - 1) / s.page_size;
      pages.emplace_back(order.end() - needs, order.end());
      order.resize(order.size() - needs);
    }
    const bool int8 = kind == Kind::kBytes;
    const int64_t stride = (int64_t)s.kv_heads * s.page_size * (int8 ? s.size + 4 : 2 * s.size) + 64;
    keys.assign(stride * count, 0xff);
    values = keys;
    view = {keys.data(), values.data(), int8, s.page_size, s.kv_heads, s.size, stride};
  }
};

// each document advances by cut(document, done, length) tokens a step until all are through; returns all outputs
template <class Cut>
std::vector<float> run(const Machine& machine, const Shape& s, const Inputs& in, Kind kind, uint64_t seed,
                       const Cut& cut) {
  Random random(seed);
  Cache cache(random, s, kind);
  const int documents = (int)s.lengths.size(), q_row = s.heads() * s.size, kv_row = s.kv_heads * s.size;
  std::vector<int> start(documents), done(documents, 0);
  std::exclusive_scan(s.lengths.begin(), s.lengths.end(), start.begin(), 0);
  std::vector<float> all(in.q.size());
  size_t most_pages = 0;
  for (const auto& pages : cache.pages) most_pages = std::max(most_pages, pages.size());
  std::vector<int64_t> table(documents * most_pages, -1);
  for (int d = 0; d < documents; ++d)
    std::copy(cache.pages[d].begin(), cache.pages[d].end(), table.begin() + d * most_pages);
  auto slot = [&](int d, int t) { return cache.pages[d][t / s.page_size] * s.page_size + t % s.page_size; };
  std::vector<int64_t> skipped;
  for (int t = 0; t < s.skip; ++t) skipped.push_back(slot(0, t));
  machine.run(machine.ops->store_kv,
              tenth::StoreKvArgs{s.skip, in.k.data(), kv_row, in.v.data(), kv_row, skipped.data(), cache.view});
  done[0] = s.skip;
  for (;;) {
    std::vector<int64_t> bounds{0}, lengths, slots;
    std::vector<float> q, k, v;
    std::vector<std::pair<int, int>> rows;  // row in all, of each token
    for (int d = 0; d < documents; ++d) {
      const int take = std::min(cut(d, done[d], s.lengths[d]), s.lengths[d] - done[d]);
      for (int t = done[d]; t < done[d] + take; ++t) {
        const size_t at = start[d] + t;
        q.insert(q.end(), in.q.begin() + at * q_row, in.q.begin() + (at + 1) * q_row);
        k.insert(k.end(), in.k.begin() + at * kv_row, in.k.begin() + (at + 1) * kv_row);
        v.insert(v.end(), in.v.begin() + at * kv_row, in.v.begin() + (at + 1) * kv_row);
        slots.push_back(slot(d, t));
        rows.emplace_back((int)at, (int)rows.size());
      }
      done[d] += take;
      bounds.push_back((int64_t)rows.size());
      lengths.push_back(done[d]);
    }
    const int tokens = (int)rows.size();
    if (!tokens) return all;
    std::vector<float> y(q.size());
    machine.run(machine.ops->store_kv,
                tenth::StoreKvArgs{tokens, k.data(), kv_row, v.data(), kv_row, slots.data(), cache.view});
    machine.run(machine.ops->attention,
                tenth::AttentionArgs{tokens, s.heads(), q.data(), q_row, cache.view, documents, bounds.data(),
                                     lengths.data(), table.data(), (int64_t)most_pages, 1.0f / std::sqrt((float)s.size),
                                     kind == Kind::kHalves, y.data(), q_row});
    for (const auto& [to, from] : rows)
      std::copy(y.begin() + (size_t)from * q_row, y.begin() + (size_t)(from + 1) * q_row,
                all.begin() + (size_t)to * q_row);
  }
}

// the largest error of some rows, in units of what such sums may lose in float32, or of terms rounded to bfloat16, or
// of whole numbers: a query's of 16 bits, and weights' of 14 in each block of 64 keys
double error(const Shape& s, const Inputs& in, const std::vector<float>& y, Kind kind, Random& random) {
  double worst = 0;
  int start = 0;
  for (const int length : s.lengths) {
    for (int t = start ? 0 : s.skip; t < length; t += length > 40 ? random.integer(1, 20) : 1)
      for (int h = 0; h < s.heads(); h += random.integer(1, 4)) {
        const float* q = &in.q[((size_t)(start + t) * s.heads() + h) * s.size];
        auto row = [&](const std::vector<float>& x, int key) {
          return kept(&x[((size_t)(start + key) * s.kv_heads + h / s.group) * s.size], s.size, kind);
        };
        double most_q = 0;
        for (int c = 0; c < s.size; ++c) most_q = std::max(most_q, (double)std::fabs(q[c]));
        std::vector<double> score(t + 1), out(s.size), size(s.size);
        double most = -INFINITY, total = 0, terms = 0;
        for (int key = 0; key <= t; ++key) {
          double sum = 0;
          const std::vector<float> k = row(in.k, key);
          for (int c = 0; c < s.size; ++c) {
            const double term = (double)q[c] * k[c] / std::sqrt((double)s.size);
            score[key] += term;
            sum += kind == Kind::kBytes ? most_q * std::fabs(k[c]) / std::sqrt((double)s.size) : std::fabs(term);
          }
          terms = std::max(terms, sum);
          most = std::max(most, score[key]);
        }
        double whole = 0, part = 0, keys = 0;  // what the weights of a block may be off by, times the largest value
        for (int key = 0; key <= t; ++key) {
          const double p = std::exp(score[key] - most);
          const std::vector<float> v = row(in.v, key);
          total += p;
          double most_v = 0;
          for (int c = 0; c < s.size; ++c) {
            out[c] += p * v[c];
            size[c] += p * std::fabs(v[c]);
            most_v = std::max(most_v, (double)std::fabs(v[c]));
          }
          part = std::max(part, p * most_v);
          keys += 1;
          if (key % 64 == 63 || key == t) {
            whole += part * keys * 0.6 / 16383;
            part = keys = 0;
          }
        }
        for (int c = 0; c < s.size; ++c) {
          const double off = std::fabs(y[((size_t)(start + t) * s.heads() + h) * s.size + c] - out[c] / total);
          // an error of the score is a relative one of the weight
          const double relative = kind == Kind::kFloats  ? 1e-6 + 2e-7 * terms
                                  : kind == Kind::kHalves ? 4e-3 + 4e-3 * terms
                                                          : 1e-6 + 0.6 / 32258 * terms;
          const double allowed = relative * size[c] / total + (kind == Kind::kBytes ? whole / total : 0);
          worst = std::max(worst, off <= allowed ? off / allowed : off > allowed ? off / allowed : 1e30);
        }
      }
    start += length;
  }
  return worst;
}

void shape_checks(Random& random, const std::vector<Machine>& all, bool deep, Kind kind) {
  const Shape s = random_shape(random, deep, kind);
  const Inputs in(random, s);
  const uint64_t seed = random.engine();
  const std::string name = name_of(kind) + s.name();
  std::map<std::string, std::vector<float>> whole;  // of each set; but for bfloat16 products they all agree
  for (const Machine& machine : all) {
    const std::string set = kind == Kind::kHalves ? machine.ops->name : "all";
    if (!whole.count(set)) {
      whole[set] = run(machine, s, in, kind, seed, [](int, int, int length) { return length; });
      const double worst = error(s, in, whole[set], kind, random);
      check::report(name + " on " + set, worst <= 1, "error " + std::to_string(worst) + " of what is allowed");
    }
    auto same = [&](const char* how, const auto& cut) {
      if (!check::same_bits(whole[set], run(machine, s, in, kind, random.engine(), cut)))
        check::report("same bits, " + std::string(how) + ", on " + machine.name, false, name);
    };
    same("whole", [](int, int, int length) { return length; });
    same("in chunks", [&](int, int, int) { return random.integer(0, 5) * random.integer(0, 25) + 1; });
    same("token by token", [](int, int, int) { return 1; });
  }
}

// a token that is not a number spoils itself and those that look at it, and nothing else
void odd_numbers(Random& random, const std::vector<Machine>& all, Kind kind) {
  for (const int where : {0, 1, 2})
    for (const float odd : {NAN, INFINITY, -INFINITY}) {
      const Shape s{64, 2, 3, 64, {45, 10}};
      Inputs in(random, s);
      const Inputs clean_in = in;
      const int token = random.integer(1, 43);
      auto whole = [](int, int, int length) { return length; };
      const size_t row = (size_t)s.heads() * s.size;
      if (where == 0)  // one head of q, or all of k or v
        in.q[token * row + 3] = odd;
      else
        for (int h = 0; h < s.kv_heads; ++h)
          (where == 1 ? in.k : in.v)[((size_t)token * s.kv_heads + h) * s.size + 5] = odd;
      bool good = true;
      for (const Machine& machine : all) {
        const std::vector<float> clean = run(machine, s, clean_in, kind, 1, whole);
        const std::vector<float> y = run(machine, s, in, kind, 2, whole);
        for (size_t i = 0; i < y.size(); ++i) {
          const int t = (int)(i / row), c = (int)(i % s.size), h = (int)(i % row) / s.size;
          const bool later = t >= token && t < s.lengths[0];
          if (!later || (where == 0 && (t != token || h != 0)))
            good &= std::memcmp(&y[i], &clean[i], 4) == 0;
          else if (kind == Kind::kBytes || where == 0 || (where == 2 && c == 5) || (where == 1 && std::isnan(odd)))
            good &= !std::isfinite(y[i]);
        }
        good &= check::same_bits(y, run(machine, s, in, kind, 3, [](int, int, int) { return 1; }));
      }
      const char* names[] = {"query", "key", "value"};
      check::report(name_of(kind) + "with " + std::to_string(odd) + " in a " + names[where], good);
    }
}

void rounding(Random& random, const std::vector<Machine>& all) {
  Shape s{32, 2, 1, 16, {37}};
  Inputs in(random, s);
  const float odd[] = {1.00390625f, 1.01171875f, -1.00390625f, 3.4e38f, INFINITY, 1e-40f, 0.0f, -0.0f, 1.00390636f};
  std::copy(std::begin(odd), std::end(odd), in.v.begin());
  std::copy(std::begin(odd), std::end(odd), in.k.begin() + 64);
  for (const Machine& machine : all) {
    Cache cache(random, s, Kind::kFloats);
    std::vector<int64_t> slots;
    for (int t = 0; t < 37; ++t) slots.push_back(cache.pages[0][t / 16] * 16 + t % 16);
    machine.run(machine.ops->store_kv,
                tenth::StoreKvArgs{37, in.k.data(), 64, in.v.data(), 64, slots.data(), cache.view});
    bool good = true;
    for (int t = 0; t < 38; ++t)
      for (int g = 0; g < 2; ++g)
        for (int c = 0; c < 32; ++c) {
          const int64_t page = cache.pages[0][t / 16] * cache.view.page_stride, place = t % 16;
          auto wide = [](uint16_t h) {
            const uint32_t bits = (uint32_t)h << 16;
            float x;
            std::memcpy(&x, &bits, 4);
            return x;
          };
          auto at_page = [&](const std::vector<uint8_t>& pool) { return (const uint16_t*)(pool.data() + page); };
          const float k = wide(at_page(cache.keys)[((int64_t)(g * 16 + c / 2) * 16 + place) * 2 + c % 2]);
          const float v = wide(at_page(cache.values)[((int64_t)(g * 8 + place / 2) * 32 + c) * 2 + place % 2]);
          const size_t at = (size_t)t * 64 + g * 32 + c;
          if (t < 37)
            good &= k == rounded(in.k[at]) && v == rounded(in.v[at]);
          else
            good &= v == 0.0f;
        }
    check::report("store_kv on " + machine.name, good);
  }
}

void rounding_to_bytes(Random& random, const std::vector<Machine>& all) {
  const Shape s{48, 2, 1, 64, {100}};
  Inputs in(random, s);
  const float odd[] = {1e-31f, 0.0f, -0.0f, 1e-40f, 3.4e38f, INFINITY, NAN};
  for (int i = 0; i < 7; ++i) {  // alone in a head of zeros, and among others
    std::fill(in.v.begin() + i * 96, in.v.begin() + i * 96 + 48, 0.0f);
    in.v[i * 96 + 7] = in.k[i * 96 + 50] = odd[i];
  }
  for (const Machine& machine : all) {
    Cache cache(random, s, Kind::kBytes);
    std::vector<int64_t> slots;
    for (int t = 0; t < 100; ++t) slots.push_back(cache.pages[0][t / 64] * 64 + t % 64);
    machine.run(machine.ops->store_kv,
                tenth::StoreKvArgs{100, in.k.data(), 96, in.v.data(), 96, slots.data(), cache.view});
    bool good = true;
    for (int t = 0; t < 100; ++t)
      for (int g = 0; g < 2; ++g) {
        const int64_t block = cache.pages[0][t / 64] * cache.view.page_stride + g * 64 * (48 + 4), place = t % 64;
        auto check = [&](const std::vector<uint8_t>& pool, const float* x, const auto& where) {
          float most = 0, scale;
          bool numbers = true;
          for (int c = 0; c < 48; ++c) numbers &= std::isfinite(x[c]), most = std::max(most, std::fabs(x[c]));
          std::memcpy(&scale, pool.data() + block + 64 * 48 + place * 4, 4);
          if (most < 1e-30f) most = 0;
          good &= numbers ? scale == most / 127.0f : std::isnan(scale);
          for (int c = 0; c < 48; ++c)
            good &= (int8_t)pool[block + where(c)] == (numbers && most ? std::nearbyint(x[c] * (127.0f / most)) : 0.0f);
        };
        const size_t from = (size_t)t * 96 + g * 48;
        check(cache.keys, &in.k[from], [&](int c) { return ((place / 16 * 12 + c / 4) * 16 + place % 16) * 4 + c % 4; });
        check(cache.values, &in.v[from], [&](int c) { return (place / 4 * 48 + c) * 4 + place % 4; });
      }
    check::report("store_kv of bytes on " + machine.name, good);
  }
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 5;
  const std::vector<Machine> all = check::machines({1, 3}), few = check::machines({2});
  Random random(7);
  rounding(random, all);
  rounding_to_bytes(random, all);
  for (const Kind kind : kKinds) odd_numbers(random, few, kind);
  for (int i = 0; i < rounds; ++i) {
    for (const Kind kind : kKinds) shape_checks(random, all, false, kind);
    shape_checks(random, all, true, i % 2 == 0 ? Kind::kHalves : Kind::kFloats);
    shape_checks(random, all, true, Kind::kBytes);
  }
  return check::done();
}
