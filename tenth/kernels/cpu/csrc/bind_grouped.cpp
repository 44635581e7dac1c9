// Training: how assignments lie by expert, and the experts of a layer forward and backward.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <stdexcept>
#include <tuple>
#include <vector>

#include "bind.h"
#include "plan.h"

namespace nb = nanobind;

namespace tenth {
namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// The assignments of T tokens to K experts each, sorted by expert; those with gate 0 are left out.
class Assignments {
 public:
  Assignments(int64_t tokens, int top_k, int experts, uintptr_t ids, uintptr_t gates)
      : tokens_(tokens), top_k_(top_k), offsets_(experts + 1) {
    const int64_t all = tokens * top_k;
    const auto* id = at<const int64_t>(ids);
    const auto* gate = at<const float>(gates);
    for (int64_t a = 0; a < all; ++a) {
      if (id[a] < 0 || id[a] >= experts) throw std::invalid_argument("an expert's id is not one of the layer's");
      if (gate[a] != 0.0f) ++offsets_[id[a] + 1];
    }
    for (int e = 0; e < experts; ++e) offsets_[e + 1] += offsets_[e];
    std::vector<int64_t> next(offsets_.begin(), offsets_.end() - 1);
    token_.resize(offsets_.back());
    place_.resize(offsets_.back());
    row_.assign(all, -1);
    for (int64_t a = 0; a < all; ++a) {
      if (gate[a] == 0.0f) continue;
      const int64_t row = next[id[a]]++;
      token_[row] = (int32_t)(a / top_k);
      place_[row] = (int32_t)a;
      row_[a] = (int32_t)row;
    }
  }
  int64_t rows() const { return offsets_.back(); }
  Routes routes() const {
    return {tokens_, top_k_, (int)offsets_.size() - 1, offsets_.data(), token_.data(), place_.data(), row_.data()};
  }

 private:
  int64_t tokens_;
  int top_k_;
  std::vector<int64_t> offsets_;
  std::vector<int32_t> token_, place_, row_;
};

using Table = std::tuple<bool, int, int, uintptr_t, uintptr_t>;  // bfloat16, width, inner, w13, w2
using Gradient = std::tuple<uintptr_t, bool>;                    // data or 0, bfloat16

TrainedExperts table_of(const Table& table) {
  const auto& [half, width, inner, w13, w2] = table;
  return {half, width, inner, at<void>(w13), at<void>(w2)};
}
WeightGradient gradient_of(const Gradient& gradient) {
  const auto& [data, half] = gradient;
  return {at<void>(data), half};
}

void forward(Machine& machine, const Assignments& assignments, const Table& table, uintptr_t x, int64_t x_stride,
             uintptr_t gates, uintptr_t gate_up, uintptr_t y) {
  const ExpertForwardArgs args{assignments.routes(), table_of(table), at<void>(x), x_stride,
                               at<float>(gates), at<void>(gate_up), at<void>(y)};
  nb::gil_scoped_release release;
  machine.pool.run([&](Team& team) { machine.ops->train_forward(team, args); });
}

void backward(Machine& machine, const Assignments& assignments, const Table& table, uintptr_t x, int64_t x_stride,
              uintptr_t gates, uintptr_t gate_up, uintptr_t dy, uintptr_t dx, uintptr_t dgates, const Gradient& dw13,
              const Gradient& dw2) {
  const ExpertBackwardArgs args{assignments.routes(), table_of(table), at<void>(x), x_stride, at<float>(gates),
                                at<void>(gate_up), at<void>(dy), at<void>(dx), at<float>(dgates),
                                gradient_of(dw13), gradient_of(dw2)};
  nb::gil_scoped_release release;
  machine.pool.run([&](Team& team) { machine.ops->train_backward(team, args); });
}

// kind: 0 forward, 1 the inputs' gradient, 2 the matrix's
void linear(Machine& machine, int kind, bool half, int64_t rows, int inputs, int outputs, uintptr_t x, int64_t x_stride,
            uintptr_t w, uintptr_t dy, uintptr_t y, const Gradient& dw) {
  const TrainLinearArgs args{(TrainLinearArgs::Kind)kind, half, rows, inputs, outputs, at<void>(x), x_stride,
                             at<void>(w), at<void>(dy), at<void>(y), gradient_of(dw)};
  nb::gil_scoped_release release;
  machine.pool.run([&](Team& team) { machine.ops->train_linear(team, args); });
}

// bfloat16, heads, heads of keys, head size, documents, their bounds
using Documents = std::tuple<bool, int, int, int, int, uintptr_t>;

void attention(Machine& machine, const Documents& shape, float scale, uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t y,
               uintptr_t log_sum, uintptr_t dy, uintptr_t product, uintptr_t dq, uintptr_t dk, uintptr_t dv) {
  const auto& [half, heads, kv_heads, size, documents, bounds] = shape;
  const TrainAttentionArgs args{half, heads, kv_heads, size, documents, at<const int64_t>(bounds), scale, at<void>(q),
                                at<void>(k), at<void>(v), at<void>(y), at<float>(log_sum), at<void>(dy),
                                at<float>(product), at<void>(dq), at<void>(dk), at<void>(dv)};
  nb::gil_scoped_release release;
  machine.pool.run([&](Team& team) { machine.ops->train_attention(team, args); });
}

using Shape = std::tuple<bool, int64_t, int, int>;  // bfloat16, rows, of them for a token, width
using Norm = std::tuple<uintptr_t, float>;          // weight or 0, eps
using Turn = std::tuple<uintptr_t, uintptr_t>;      // cosines and sines or 0

void rows(Machine& machine, const Shape& shape, uintptr_t x, uintptr_t plus, uintptr_t sum, const Norm& norm,
          const Turn& turn, uintptr_t y) {
  const auto& [half, count, heads, width] = shape;
  const TrainRowsArgs args{half, count, heads, width, at<void>(x), at<void>(plus), at<void>(sum),
                           at<float>(std::get<0>(norm)), std::get<1>(norm), at<float>(std::get<0>(turn)),
                           at<float>(std::get<1>(turn)), at<void>(y)};
  nb::gil_scoped_release release;
  machine.pool.run([&](Team& team) { machine.ops->train_rows(team, args); });
}

void rows_backward(Machine& machine, const Shape& shape, uintptr_t x, const Norm& norm, const Turn& turn, uintptr_t dy,
                   uintptr_t dsum, uintptr_t dx, uintptr_t dweight) {
  const auto& [half, count, heads, width] = shape;
  const TrainRowsBackwardArgs args{half, count, heads, width, at<void>(x), at<float>(std::get<0>(norm)),
                                   std::get<1>(norm), at<float>(std::get<0>(turn)), at<float>(std::get<1>(turn)),
                                   at<void>(dy), at<void>(dsum), at<void>(dx), at<float>(dweight)};
  nb::gil_scoped_release release;
  machine.pool.run([&](Team& team) { machine.ops->train_rows_backward(team, args); });
}

}  // namespace

void bind_grouped(nb::module_& m) {
  nb::class_<Assignments>(m, "Assignments")
      .def(nb::init<int64_t, int, int, uintptr_t, uintptr_t>())
      .def_prop_ro("rows", &Assignments::rows);
  m.def("train_forward", &forward);
  m.def("train_backward", &backward);
  m.def("train_linear", &linear);
  m.def("train_attention", &attention);
  m.def("train_rows", &rows);
  m.def("train_rows_backward", &rows_backward);
}

}  // namespace tenth
