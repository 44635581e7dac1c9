// A list of operations with their arguments, run from the first to the last by one team of threads.
//
// The arguments are addresses and sizes; only how many rows there are is said anew for every run.
#pragma once

#include <functional>
#include <stdexcept>
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

struct ReadError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Plan {
 public:
  using Op = std::function<bool(Team&, const Rows&)>;  // false, to every thread of the team: the run is over

  explicit Plan(Machine& machine) : machine_(machine) {}
  const Ops& ops() const { return *machine_.ops; }
  void add(Op op) { list_.push_back(std::move(op)); }
  void add(Op op, const ExpertStore& store) {  // of a plan that reads from one store
    add(std::move(op));
    store_ = &store;
  }
  size_t size() const { return list_.size(); }

  // ReadError where a store's file could not be read; what was computed by then means nothing
  void run(const Rows& rows) {
    bool whole = true;
    machine_.pool.run([&](Team& team) {
      for (const Op& op : list_)
        if (!op(team, rows)) {
          if (team.id == 0) whole = false;
          return;
        }
    });
    if (!whole) throw ReadError(store_->error());
  }

 private:
  Machine& machine_;
  const ExpertStore* store_ = nullptr;
  std::vector<Op> list_;
};

}  // namespace tenth
