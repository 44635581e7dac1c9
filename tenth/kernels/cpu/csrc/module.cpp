// What Python sees: the instruction sets of this processor, packed matrices, and plans of operations.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>
#include <vector>

#include "bind.h"
#include "plan.h"
#include "sets.h"

namespace nb = nanobind;
using namespace tenth;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // teams of threads live as long as the process
  m.def("instruction_sets", &supported_sets, "Names of the sets that this processor and this build have, best first.");


  nb::class_<Machine>(m, "Machine")
      .def(
          "__init__",
          [](Machine* self, const std::string& set, const std::vector<int>& cpus) {
            new (self) Machine(ops_of(set), cpus);
          },
          nb::arg("set"), nb::arg("cpus"))
      .def(
          "__init__",
          [](Machine* self, const std::string& set, int threads, const std::tuple<uintptr_t, uintptr_t, uintptr_t>& runtime) {
            const auto& [parallel, thread, count] = runtime;
            using R = Runtime;
            new (self) Machine(ops_of(set), threads, Runtime{at<std::remove_pointer_t<decltype(R::parallel)>>(parallel),
                                                             at<std::remove_pointer_t<decltype(R::thread)>>(thread),
                                                             at<std::remove_pointer_t<decltype(R::threads)>>(count)});
          },
          nb::arg("set"), nb::arg("threads"), nb::arg("runtime"))
      .def_prop_ro("threads", [](const Machine& self) { return self.pool.size(); })
      .def_prop_ro("set", [](const Machine& self) { return std::string(self.ops->name); });

  nb::class_<Matrix>(m, "Matrix")
      .def(
          "__init__",
          [](Matrix* self, uintptr_t data, int rows, int columns, int padded, int bits, int group, int step_bits, int64_t tile_bytes,
             const std::tuple<int64_t, int64_t, int64_t, int64_t>& segments) {
            const auto& [scales, sub_scales, minimums, sub_minimums] = segments;
            new (self) Matrix{at<uint8_t>(data), tile_bytes, scales, sub_scales, minimums, sub_minimums, rows, columns,
                              padded, bits, group, step_bits};
          },
          nb::arg("data"), nb::arg("rows"), nb::arg("columns"), nb::arg("padded"), nb::arg("bits"), nb::arg("group"), nb::arg("step_bits"),
          nb::arg("tile_bytes"), nb::arg("segments"));

  nb::class_<ExpertList>(m, "Experts")
      .def("__init__", [](ExpertList* self, const std::vector<std::tuple<Matrix*, Matrix*, Matrix*>>& list) {
        new (self) ExpertList;
        for (const auto& [gate, up, down] : list) self->experts.push_back({*gate, *up, *down});
      });

  bind_store(m);
  bind_plan(m);
  bind_sampler(m);
  bind_limits(m);
  bind_grouped(m);
}
