// The parts of the Python module.
#pragma once

#include <nanobind/nanobind.h>

#include <vector>

#include "matrix.h"

namespace tenth {

struct ExpertList {
  std::vector<Expert> experts;
};

void bind_store(nanobind::module_& m);
void bind_plan(nanobind::module_& m);
void bind_sampler(nanobind::module_& m);
void bind_limits(nanobind::module_& m);
void bind_grouped(nanobind::module_& m);

}  // namespace tenth
