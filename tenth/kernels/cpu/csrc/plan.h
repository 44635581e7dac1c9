// A list of operations with their arguments, run from the first to the last by one team of threads.
//
// The arguments are addresses and sizes; only how many rows there are is said anew for every run.
#pragma once

#include <functional>
#include <vector>

#include "ops.h"

namespace tenth {

struct Machine {
  const Ops* ops;
  Pool pool;
  Machine(const Ops* ops, std::vector<int> cpus) : ops(ops), pool(std::move(cpus)) {}
  Machine(const Ops* ops, int threads, Runtime runtime) : ops(ops), pool(threads, runtime) {}
};

// how many rows of each kind a run has: tokens, rows that want logits, documents
struct Rows {
  int64_t count[3];
};

class Plan {
 public:
  using Op = std::function<void(Team&, const Rows&)>;

  explicit Plan(Machine& machine) : machine_(machine) {}
  const Ops& ops() const { return *machine_.ops; }
  void add(Op op) { list_.push_back(std::move(op)); }
  size_t size() const { return list_.size(); }
  
  void run(const Rows& rows) {
    machine_.pool.run([&](Team& team) {
      for (const Op& op : list_) op(team, rows);
    });
  }

 private:
  Machine& machine_;
  std::vector<Op> list_;
};

}  // namespace tenth
