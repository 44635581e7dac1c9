// The instruction sets that were built, and which of them this processor runs.
#pragma once

#include <string>
#include <vector>

#include "ops.h"

namespace tenth {

std::vector<std::string> supported_sets();   // best first; "portable" always
const Ops* ops_of(const std::string& name);  // std::invalid_argument where it is not supported

}  // namespace tenth
