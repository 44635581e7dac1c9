// The machine's limits: a walk over the bytes that a step reads, and the rates of products.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "bind.h"
#include "plan.h"

namespace nb = nanobind;

namespace tenth {
namespace {

using Clock = std::chrono::steady_clock;
using Bytes = std::tuple<uintptr_t, int64_t, int64_t>;  // where a matrix lies, its bytes, those of a tile
using ExpertBytes = std::tuple<Bytes, Bytes, Bytes>;    // gate, up, down

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Reads what a step reads: in the order of its operations, in the pieces that their threads claim, with a barrier where
// they have one. Nothing is computed. (A step asks for whole panels ahead, this only for lines: see ahead.h.)
class Walk {
 public:
  explicit Walk(Machine& machine) : machine_(machine), panel_(machine.ops->limits.tiles) {}

  // matrices that are multiplied in one operation
  void matrices(const std::vector<Bytes>& list) {
    for (const Bytes& matrix : list)
      for (int64_t i = 0; i < panels(matrix); ++i) unit({piece(matrix, i)});
    end_phase();
  }

  // the chosen experts of a layer; a single token's are summed panel by panel
  void experts(const std::vector<ExpertBytes>& list, int tokens) {
    for (const auto& [gate, up, down] : list)
      for (int64_t i = 0; i < panels(gate); ++i) unit({piece(gate, i), piece(up, i)});
    end_phase();
    const int64_t most = list.empty() ? 0 : panels(std::get<2>(list[0]));
    if (tokens == 1) {
      for (int64_t i = 0; i < most; ++i) {
        std::vector<Piece> all;
        for (const auto& [gate, up, down] : list) all.push_back(piece(down, i));
        unit(all);
      }
    } else {
      for (const auto& [gate, up, down] : list)
        for (int64_t i = 0; i < panels(down); ++i) unit({piece(down, i)});
    }
    end_phase();
  }

  int64_t bytes() const {
    int64_t all = 0;
    for (const Piece& piece : pieces_) all += piece.bytes;
    return all;
  }

  double run() {
    const auto start = Clock::now();
    machine_.pool.run([this](Team& team) {
      uint32_t sum = 0;
      for (size_t phase = 0; phase + 1 < phases_.size(); ++phase) {
        const int64_t first = phases_[phase], count = phases_[phase + 1] - first;
        for (int64_t i; (i = team.claim(1)) < count;)
          for (int64_t j = units_[first + i]; j < units_[first + i + 1]; ++j)
            sum += machine_.ops->limits.read(pieces_[j].data, pieces_[j].bytes);
        team.barrier();
      }
      sum_.fetch_add(sum, std::memory_order_relaxed);
    });
    return seconds_since(start);
  }

 private:
  struct Piece {
    const uint8_t* data;
    int64_t bytes;
  };

  int64_t panels(const Bytes& matrix) const {
    const int64_t panel = std::get<2>(matrix) * panel_;
    return (std::get<1>(matrix) + panel - 1) / panel;
  }
  Piece piece(const Bytes& matrix, int64_t i) const {
    const auto& [at, bytes, tile] = matrix;
    const int64_t panel = tile * panel_, begin = i * panel;
    return {reinterpret_cast<const uint8_t*>(at) + begin, std::min(panel, bytes - begin)};
  }
  void unit(const std::vector<Piece>& pieces) {
    pieces_.insert(pieces_.end(), pieces.begin(), pieces.end());
    units_.push_back((int64_t)pieces_.size());
  }
  void end_phase() { phases_.push_back((int64_t)units_.size() - 1); }

  Machine& machine_;
  int64_t panel_;
  std::vector<Piece> pieces_;
  std::vector<int64_t> units_{0};   // where each one's pieces begin, and the end of the last
  std::vector<int64_t> phases_{0};  // where each one's units begin, and the end of the last
  std::atomic<uint32_t> sum_{0};    // read, so that the reads are not left out
};

// operations a second of all threads, in registers only, measured for at least so many seconds
double products(Machine& machine, const std::string& type, double seconds) {
  const Limits& limits = machine.ops->limits;
  const auto loop = type == "int8"       ? limits.int8
                    : type == "bfloat16" ? limits.bfloat16
                    : type == "float32"  ? limits.float32
                                         : throw std::invalid_argument("no products of " + type);
  for (int64_t rounds = 256;; rounds *= 2) {
    std::atomic<int64_t> made{0};
    const auto start = Clock::now();
    machine.pool.run([&](Team&) { made.fetch_add(loop(rounds), std::memory_order_relaxed); });
    const double took = seconds_since(start);
    if (took >= seconds) return (double)made / took;
  }
}

}  // namespace

void bind_limits(nb::module_& m) {
  nb::class_<Walk>(m, "Walk")
      .def(nb::init<Machine&>(), nb::keep_alive<1, 2>())
      .def("matrices", &Walk::matrices)
      .def("experts", &Walk::experts)
      .def_prop_ro("bytes", &Walk::bytes)
      .def("run", &Walk::run, nb::call_guard<nb::gil_scoped_release>());
  m.def("products", &products, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace tenth
