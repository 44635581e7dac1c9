// Attention while it trains, forward and backward, against sums in double precision, and every number of threads against
// one: the same bits. Argument: how many rounds of random shapes.
#include <cstdlib>
#include <numeric>

#include "numbers.h"

using check::Machine;
using check::Numbers;
using check::Random;
using check::Worst;

namespace {

struct Case {
  bool half;
  int heads, kv_heads, size;
  std::vector<int64_t> bounds{0};
  Numbers q{false, 0}, k{false, 0}, v{false, 0}, dy{false, 0};

  Case(Random& random, bool half, int group, int kv_heads, int size, const std::vector<int>& lengths)
      : half(half), heads(group * kv_heads), kv_heads(kv_heads), size(size) {
    for (const int length : lengths) bounds.push_back(bounds.back() + length);
    const size_t rows = (size_t)bounds.back() * size;
    q = Numbers(random, half, rows * heads, 1.0f);
    k = Numbers(random, half, rows * kv_heads, 1.0f);
    v = Numbers(random, half, rows * kv_heads, 1.0f);
    dy = Numbers(random, half, rows * heads, 1.0f);
  }
  std::string name() const {
    return std::string(half ? "bf16" : "fp32") + " H" + std::to_string(heads) + " G" + std::to_string(kv_heads) + " C" +
           std::to_string(size) + " S" + std::to_string(bounds.size() - 1) + " T" + std::to_string(bounds.back());
  }
  float scale() const { return 1.0f / std::sqrt((float)size); }
};

struct Results {
  Numbers y, dq, dk, dv;
  std::vector<float> log_sum;

  bool same_bits(const Results& other) const {
    return y.same_bits(other.y) && dq.same_bits(other.dq) && dk.same_bits(other.dk) && dv.same_bits(other.dv) &&
           check::same_bits(log_sum, other.log_sum);
  }
};

Results run(const Machine& machine, Case& c) {
  const size_t rows = (size_t)c.bounds.back() * c.heads;
  Results r{{c.half, c.q.size()}, {c.half, c.q.size()}, {c.half, c.k.size()}, {c.half, c.v.size()}, std::vector<float>(rows)};
  std::vector<float> room(rows);
  tenth::TrainAttentionArgs args{c.half, c.heads, c.kv_heads, c.size, (int)c.bounds.size() - 1, c.bounds.data(), c.scale(),
                                 c.q.data(), c.k.data(), c.v.data(), r.y.data(), r.log_sum.data(), nullptr, nullptr, nullptr,
                                 nullptr, nullptr};
  machine.run(machine.ops->train_attention, args);
  args.dy = c.dy.data();
  args.product = room.data();
  args.dq = r.dq.data();
  args.dk = r.dk.data();
  args.dv = r.dv.data();
  machine.run(machine.ops->train_attention, args);
  return r;
}

double worst(const Case& c, const Results& got) {
  std::vector<double> dq(c.q.size()), dk(c.k.size()), dv(c.v.size());
  Worst of_y, of_dq, of_dk, of_dv;
  const int group = c.heads / c.kv_heads;
  for (size_t s = 0; s + 1 < c.bounds.size(); ++s)
    for (int64_t t = c.bounds[s]; t < c.bounds[s + 1]; ++t)
      for (int h = 0; h < c.heads; ++h) {
        const size_t row = ((size_t)t * c.heads + h) * c.size;
        const auto key = [&](int64_t u) { return ((size_t)u * c.kv_heads + h / group) * c.size; };
        std::vector<double> p, dp, y(c.size);
        double most = -INFINITY, total = 0, product = 0;
        for (int64_t u = c.bounds[s]; u <= t; ++u) {
          double score = 0, slope = 0;
          for (int i = 0; i < c.size; ++i) score += c.q[row + i] * c.k[key(u) + i], slope += c.dy[row + i] * c.v[key(u) + i];
          p.push_back(score * c.scale());
          dp.push_back(slope);
          most = std::max(most, p.back());
        }
        for (double& x : p) total += x = std::exp(x - most);
        for (size_t u = 0; u < p.size(); ++u) {
          p[u] /= total;
          product += p[u] * dp[u];
          for (int i = 0; i < c.size; ++i) y[i] += p[u] * c.v[key(c.bounds[s] + u) + i];
        }
        for (size_t u = 0; u < p.size(); ++u) {
          const double ds = p[u] * (dp[u] - product) * c.scale();
          for (int i = 0; i < c.size; ++i) {
            dq[row + i] += ds * c.k[key(c.bounds[s] + u) + i];
            dk[key(c.bounds[s] + u) + i] += ds * c.q[row + i];
            dv[key(c.bounds[s] + u) + i] += p[u] * c.dy[row + i];
          }
        }
        for (int i = 0; i < c.size; ++i) of_y.see(got.y[row + i], y[i]), of_dq.see(got.dq[row + i], dq[row + i]);
      }
  for (size_t i = 0; i < dk.size(); ++i) of_dk.see(got.dk[i], dk[i]), of_dv.see(got.dv[i], dv[i]);
  // with a key each there is no slope: what rounding leaves is not a part of anything
  const bool alone = std::all_of(dq.begin(), dq.end(), [](double x) { return std::abs(x) < 1e-9; });
  return alone ? std::max({of_y.part(), of_dv.part(), of_dq.difference, of_dk.difference})
               : std::max({of_y.part(), of_dv.part(), of_dq.part(), of_dk.part()});
}

void test(const std::vector<Machine>& machines, Case c) {
  for (const std::string& name : tenth::supported_sets()) {
    std::vector<Results> first;  // of the set, on one thread
    for (const Machine& machine : machines) {
      if (machine.ops != tenth::ops_of(name)) continue;
      const Results got = run(machine, c);
      if (first.empty()) {
        const double part = worst(c, got), allowed = c.half ? 3e-2 : 1e-5;
        check::report(machine.name + " " + c.name(), part <= allowed, "off by " + std::to_string(part));
        first.push_back(got);
      } else {
        check::report(machine.name + " " + c.name() + " has the bits of one thread", got.same_bits(first[0]));
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 4;
  const auto machines = check::machines();
  Random random(19);
  for (const bool half : {false, true}) {
    test(machines, Case(random, half, 1, 1, 16, {1}));
    test(machines, Case(random, half, 2, 1, 24, {1, 300, 33}));  // more keys than come at once; a half-filled panel
    test(machines, Case(random, half, 3, 2, 64, {129, 7}));      // a row more than a piece has
    for (int i = 0; i < rounds; ++i) {
      std::vector<int> lengths(random.integer(1, 3));
      for (int& length : lengths) length = random.integer(1, 150);
      test(machines, Case(random, half, random.integer(1, 3), random.integer(1, 2), random.integer(1, 70), lengths));
    }
  }
  return check::done();
}
