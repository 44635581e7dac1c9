// Sampling: rows of logits and how a token is drawn from each, in; tokens and their log-probabilities, out.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>
#include <utility>
#include <vector>

#include "bind.h"
#include "plan.h"

namespace nb = nanobind;

namespace tenth {
namespace {

// temperature, top_p, min_p, uniform, top_k, repetition, presence, frequency, then of the tokens seen: how many,
// addresses of their ids and counts, and the address of the mask of allowed tokens or 0
using Row =
    std::tuple<double, double, double, double, int64_t, float, float, float, int, uintptr_t, uintptr_t, uintptr_t>;
using Top = std::vector<std::pair<int32_t, float>>;
// status, token, kept, log-probability, the likeliest tokens
using Drawn = std::tuple<int, int32_t, int32_t, float, Top>;

SampleRow row_of(const Row& row) {
  const auto& [temperature, top_p, min_p, uniform, top_k, repetition, presence, frequency, seen, ids, counts, allowed] =
      row;
  return {temperature, top_p, min_p, uniform, top_k, repetition, presence, frequency,
          seen, (const int32_t*)ids, (const float*)counts, (const uint32_t*)allowed};
}

std::vector<Drawn> sample(Machine& machine, uintptr_t logits, int64_t stride, int vocabulary,
                          const std::vector<Row>& rows, bool logprobs, int top, bool count_kept) {
  std::vector<SampleRow> options;
  for (const Row& row : rows) options.push_back(row_of(row));
  std::vector<Sampled> out(rows.size());
  std::vector<int32_t> ids(rows.size() * top);
  std::vector<float> values(rows.size() * top);
  const SampleArgs args{(int)rows.size(), vocabulary, (const float*)logits, stride, options.data(), logprobs,
                        count_kept, top, out.data(), ids.data(), values.data()};
  {
    nb::gil_scoped_release release;
    machine.pool.run([&](Team& team) { machine.ops->sample(team, args); });
  }
  std::vector<Drawn> drawn;
  for (size_t i = 0; i < rows.size(); ++i) {
    Top likeliest;
    for (int j = 0; j < top; ++j)
      if (ids[i * top + j] >= 0) likeliest.emplace_back(ids[i * top + j], values[i * top + j]);
    drawn.emplace_back(out[i].status, out[i].token, out[i].kept, out[i].logprob, std::move(likeliest));
  }
  return drawn;
}

}  // namespace

void bind_sampler(nb::module_& m) {
  m.def("sample", &sample, nb::arg("machine"), nb::arg("logits"), nb::arg("stride"), nb::arg("vocabulary"),
        nb::arg("rows"), nb::arg("logprobs"), nb::arg("top"), nb::arg("count_kept"));
}

}  // namespace tenth
