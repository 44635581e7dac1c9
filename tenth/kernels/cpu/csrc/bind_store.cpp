// Experts on disk and the slots in memory for some of them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>
#include <vector>

#include "bind.h"
#include "expert_store.h"

namespace nb = nanobind;

namespace tenth {
namespace {

int add_layer(ExpertStore& store, const std::string& path, const ExpertList& experts,
              const std::vector<std::tuple<int64_t, int64_t>>& places) {
  std::vector<ExpertStore::Place> list;
  for (const auto& [offset, bytes] : places) list.push_back({offset, bytes});
  return store.add_layer(path, experts.experts, std::move(list));
}

void seed(ExpertStore& store, const std::vector<std::tuple<int, int, double>>& seeds) {
  std::vector<ExpertStore::Seed> list;
  for (const auto& [layer, expert, rate] : seeds) list.push_back({layer, expert, rate});
  store.seed(list);
}

}  // namespace

void bind_store(nb::module_& m) {
  using Counts = ExpertStore::Counts;
  nb::class_<Counts>(m, "StoreCounts")
      .def_ro("steps", &Counts::steps)
      .def_ro("hits", &Counts::hits)
      .def_ro("late", &Counts::late)
      .def_ro("misses", &Counts::misses)
      .def_ro("expected", &Counts::expected)
      .def_ro("right", &Counts::right)
      .def_ro("ahead", &Counts::ahead)
      .def_ro("reads", &Counts::reads)
      .def_ro("bytes", &Counts::bytes)
      .def_ro("stalled", &Counts::stalled);
  nb::class_<ExpertStore>(m, "ExpertStore")
      .def(nb::init<int, int64_t, int>(), nb::arg("slots"), nb::arg("slot_bytes"), nb::arg("readers"))
      .def("add_layer", &add_layer)
      .def("read", [](const ExpertStore& store, int layer, int expert,
                      uintptr_t to) { store.read(layer, expert, reinterpret_cast<uint8_t*>(to)); },
           nb::call_guard<nb::gil_scoped_release>())  // others may read at the same time
      .def("seed", &seed)
      .def("steps", &ExpertStore::steps)
      .def("uses", &ExpertStore::uses)
      .def_prop_ro("indirect", &ExpertStore::indirect)
      .def_prop_ro("slots", &ExpertStore::slots)
      .def_prop_ro("slot_bytes", &ExpertStore::slot_bytes)
      .def("counts", &ExpertStore::counts);
}

}  // namespace tenth
