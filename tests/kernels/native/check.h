// What the native tests share: random numbers, teams of threads, one line a check.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../../tenth/kernels/cpu/csrc/sets.h"
#include "../../../tenth/kernels/cpu/csrc/team.h"

namespace check {

inline int failures = 0;

inline void report(const std::string& name, bool good, const std::string& detail = "") {
  std::printf("%s %s%s%s\n", good ? "ok    " : "FAILED", name.c_str(), detail.empty() ? "" : ": ", detail.c_str());
  failures += !good;
}

inline int done() {
  std::printf("%d failed\n", failures);
  return failures ? 1 : 0;
}

struct Random {
  std::mt19937_64 engine;
  explicit Random(uint64_t seed) : engine(seed) {}
  int integer(int least, int most) { return least + (int)(engine() % (uint64_t)(most - least + 1)); }
  template <class T>
  T one_of(std::initializer_list<T> list) { return list.begin()[integer(0, (int)list.size() - 1)]; }
  float normal() { return std::normal_distribution<float>()(engine); }
  std::vector<float> normals(size_t count, float scale = 1.0f) {
    std::vector<float> x(count);
    for (float& v : x) v = scale * normal();
    return x;
  }
};

// an instruction set and some threads
struct Machine {
  std::string name;
  const tenth::Ops* ops;
  std::shared_ptr<tenth::Pool> pool;

  template <class Result, class Args>
  void run(Result (*op)(tenth::Team&, const Args&), const Args& args) const {
    pool->run([&](tenth::Team& team) { op(team, args); });
  }
};

// every instruction set of this processor on each number of threads
inline std::vector<Machine> machines(std::initializer_list<int> threads = {1, 2, 3}) {
  std::vector<Machine> all;
  for (const int count : threads) {
    std::vector<int> cpus;
    for (int i = 0; i < count; ++i) cpus.push_back(i);
    auto pool = std::make_shared<tenth::Pool>(cpus);
    for (const std::string& set : tenth::supported_sets())
      all.push_back({set + " x" + std::to_string(count), tenth::ops_of(set), pool});
  }
  return all;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(&a[i], &b[i], 4) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  return true;
}

}  // namespace check
