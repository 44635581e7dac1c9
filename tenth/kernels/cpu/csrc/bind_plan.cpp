// Plans of operations: one method for each, which appends it.
//
// A row of numbers is given as the address of the first row and the elements from a row to the next. `kind` is what the
// rows are, an index into `Rows`.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

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

// matrix, bias, y, stride of y
using LinearOut = std::tuple<const Matrix*, uintptr_t, uintptr_t, int64_t>;
// keys, values, whether they are int8, page size, heads, head size, page stride
using Kv = std::tuple<uintptr_t, uintptr_t, bool, int, int, int, int64_t>;
// heads, x, stride, norm's weight, y, stride
using Heads = std::tuple<int, uintptr_t, int64_t, uintptr_t, uintptr_t, int64_t>;

KvView view_of(const Kv& kv) {
  const auto& [keys, values, int8, page_size, heads, size, stride] = kv;
  if (page_size % (int8 ? 64 : 32)) throw std::invalid_argument("a page of keys and values has half a block of tokens");
  return {at<uint8_t>(keys), at<uint8_t>(values), int8, page_size, heads, size, stride};
}

HeadsArgs::Part part_of(const Heads& heads) {
  const auto& [count, x, x_stride, weight, y, y_stride] = heads;
  return {count, at<float>(x), x_stride, at<float>(weight), at<float>(y), y_stride};
}

// an operation on as many rows of a kind as the run has; none: nothing happens
template <class Args>
void add(Plan& plan, int kind, void (*op)(Team&, const Args&), Args args) {
  plan.add([=](Team& team, const Rows& rows) {
    Args now = args;
    now.tokens = (int)rows.count[kind];
    if (now.tokens) op(team, now);
    return true;
  });
}

void linear(Plan& plan, int kind, uintptr_t x, int64_t x_stride, const std::vector<LinearOut>& outs) {
  LinearArgs args{0, at<float>(x), x_stride, (int)outs.size(), {}};
  if (outs.size() > LinearArgs::kMost) throw std::invalid_argument("too many matrices in one operation");
  for (size_t i = 0; i < outs.size(); ++i) {
    const auto& [w, bias, y, stride] = outs[i];
    args.out[i] = {w, at<float>(bias), at<float>(y), stride};
  }
  add(plan, kind, plan.ops().linear, args);
}

void add_experts(Plan& plan, const ExpertArgs& args) {
  auto run = [op = plan.ops().expert_ffn, args](Team& team, const Rows& rows) {
    ExpertArgs now = args;
    now.tokens = (int)rows.count[0];
    return !now.tokens || op(team, now);
  };
  if (args.store)
    plan.add(run, *args.store);
  else
    plan.add(run);
}

// `norms`, `peaks`: where the sizes of outputs go, or both 0
void expert_ffn(Plan& plan, uintptr_t x, int64_t x_stride, uintptr_t experts, uintptr_t gates, int top_k,
                const ExpertList& table, uintptr_t y, int64_t y_stride, uintptr_t norms, uintptr_t peaks) {
  const std::vector<Expert>& list = table.experts;
  add_experts(plan, ExpertArgs{0, top_k, (int)list.size(), list[0].down.rows, at<float>(x), x_stride, at<int64_t>(experts),
                               at<float>(gates), list.data(), at<float>(y), y_stride, nullptr, 0, nullptr, 0,
                               at<float>(norms), at<float>(peaks)});
}

// `next`: the address of what the next layer will probably choose, `next_k` for each token; 0: not known
void stored_experts(Plan& plan, uintptr_t x, int64_t x_stride, uintptr_t experts, uintptr_t gates, int top_k,
                    ExpertStore& store, int layer, uintptr_t next, int next_k, uintptr_t y, int64_t y_stride,
                    uintptr_t norms, uintptr_t peaks) {
  const Expert* table = store.table(layer);
  add_experts(plan, ExpertArgs{0, top_k, store.experts(layer), table[0].down.rows, at<float>(x), x_stride,
                               at<int64_t>(experts), at<float>(gates), table, at<float>(y), y_stride, &store, layer,
                               at<int64_t>(next), next_k, at<float>(norms), at<float>(peaks)});
}

void gather(Plan& plan, int kind, uintptr_t ids, const Matrix* w, uintptr_t table, int64_t table_stride, int columns,
            uintptr_t y, int64_t y_stride) {
  add(plan, kind, plan.ops().gather,
      GatherArgs{0, at<int64_t>(ids), w, at<float>(table), table_stride, columns, at<float>(y), y_stride});
}

void rms_norm(Plan& plan, int kind, int columns, uintptr_t x, int64_t x_stride, uintptr_t plus, int64_t plus_stride,
              uintptr_t sum, int64_t sum_stride, uintptr_t weight, float eps, uintptr_t y, int64_t y_stride) {
  add(plan, kind, plan.ops().rms_norm,
      RmsNormArgs{0, columns, at<float>(x), x_stride, at<float>(plus), plus_stride, at<float>(sum), sum_stride,
                  at<float>(weight), eps, at<float>(y), y_stride});
}

void sum(Plan& plan, int kind, int columns, uintptr_t x, int64_t x_stride, uintptr_t z, int64_t z_stride, uintptr_t y,
         int64_t y_stride) {
  add(plan, kind, plan.ops().add,
      AddArgs{0, columns, at<float>(x), x_stride, at<float>(z), z_stride, at<float>(y), y_stride});
}

void silu_mul(Plan& plan, int kind, int columns, uintptr_t gate, int64_t gate_stride, uintptr_t up, int64_t up_stride,
              uintptr_t y, int64_t y_stride) {
  add(plan, kind, plan.ops().silu_mul,
      SiluMulArgs{0, columns, at<float>(gate), gate_stride, at<float>(up), up_stride, at<float>(y), y_stride});
}

void add_scaled(Plan& plan, int columns, uintptr_t gate, int64_t gate_stride, uintptr_t z, int64_t z_stride, uintptr_t y,
                int64_t y_stride) {
  add(plan, 0, plan.ops().scale_rows,
      ScaleRowsArgs{0, columns, at<float>(gate), gate_stride, at<float>(z), z_stride, at<float>(y), y_stride});
}

void heads(Plan& plan, int head_size, const Heads& q, const Heads& k, float eps, uintptr_t cos, uintptr_t sin) {
  add(plan, 0, plan.ops().heads,
      HeadsArgs{0, head_size, part_of(q), part_of(k), eps, at<float>(cos), at<float>(sin)});
}

void store_kv(Plan& plan, uintptr_t k, int64_t k_stride, uintptr_t v, int64_t v_stride, uintptr_t slots, const Kv& kv) {
  add(plan, 0, plan.ops().store_kv,
      StoreKvArgs{0, at<float>(k), k_stride, at<float>(v), v_stride, at<int64_t>(slots), view_of(kv)});
}

void attention(Plan& plan, int heads, uintptr_t q, int64_t q_stride, const Kv& kv, uintptr_t bounds, uintptr_t lengths,
               uintptr_t pages, int64_t pages_stride, float scale, uintptr_t y, int64_t y_stride) {
  const KvView view = view_of(kv);
  const AttentionArgs args{0, heads, at<float>(q), q_stride, view, 0, at<int64_t>(bounds), at<int64_t>(lengths),
                           at<int64_t>(pages), pages_stride, scale, plan.ops().halves_pay(view), at<float>(y), y_stride};
  plan.add([op = plan.ops().attention, args](Team& team, const Rows& rows) {
    AttentionArgs now = args;
    now.tokens = (int)rows.count[0];
    now.documents = (int)rows.count[2];
    op(team, now);
    return true;
  });
}

void route(Plan& plan, int experts, int top_k, bool renormalise, bool sigmoid, int groups, int top_groups, float scale,
           uintptr_t bias, uintptr_t logits, int64_t logits_stride, uintptr_t mass, uintptr_t cap, bool rescale,
           uintptr_t ids, uintptr_t gates) {
  add(plan, 0, plan.ops().choose,
      ChooseArgs{0, experts, top_k, at<float>(logits), logits_stride, renormalise, sigmoid, at<float>(bias), groups,
                 top_groups, scale, at<float>(mass), at<int64_t>(cap), rescale, at<int64_t>(ids),
                 at<float>(gates)});
}

void run(Plan& plan, int64_t tokens, int64_t logits, int64_t documents) { plan.run(Rows{{tokens, logits, documents}}); }

}  // namespace

void bind_plan(nb::module_& m) {
  nb::exception<ReadError>(m, "ReadError");
  nb::class_<Plan>(m, "Plan")
      .def(nb::init<Machine&>(), nb::keep_alive<1, 2>())
      .def("__len__", &Plan::size)
      .def("run", &run, nb::call_guard<nb::gil_scoped_release>())
      .def("linear", &linear)
      .def("expert_ffn", &expert_ffn)
      .def("stored_experts", &stored_experts)
      .def("gather", &gather, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
           nb::arg())
      .def("rms_norm", &rms_norm)
      .def("add", &sum)
      .def("silu_mul", &silu_mul)
      .def("add_scaled", &add_scaled)
      .def("heads", &heads)
      .def("store_kv", &store_kv)
      .def("attention", &attention)
      .def("route", &route);
}

}  // namespace tenth
