// Products with packed matrices and rows of them against double precision, and their bits against themselves: on any
// instruction set and number of threads, alone and in any company. Argument: how many rounds of all formats.
#include <cstdlib>

#include "packed.h"

using check::Machine;
using check::Random;
using packed::Format;
using packed::Rows;
using packed::Weights;

namespace {

constexpr int kTokens[] = {1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 17, 18, 33, 70}, kMostTokens = 70;

std::string shape(const Weights& w) {
  return w.format.name() + " " + std::to_string(w.rows) + " x " + std::to_string(w.columns);
}

int random_rows(Random& random) {
  return random.one_of({1, 15, 16, 17, 63, 64, 65, random.integer(1, 150), random.integer(65, 150)});
}

// the largest error, in units of a millionth of the magnitudes that are summed
double error(const Weights& w, const Rows& x, const std::vector<float>& bias, const Rows& y) {
  double worst = 0;
  for (int t = 0; t < x.count; ++t) {
    const std::vector<double> taken = packed::as_taken(w.format, x.row(t), w.columns);
    for (int r = 0; r < w.rows; ++r) {
      const float *values = &w.values[(size_t)r * w.columns], *sizes = &w.sizes[(size_t)r * w.columns];
      double want = bias[r], size = std::fabs(bias[r]);
      for (int c = 0; c < w.columns; ++c) want += values[c] * taken[c], size += sizes[c] * std::fabs(taken[c]);
      const double off = std::fabs(y.row(t)[r] - want) / (1e-6 * size + 1e-40);
      worst = std::isnan(off) ? 1e30 : std::max(worst, off);
    }
  }
  return worst;
}

// one token that is not a number, anywhere in a batch: it spoils all of its own results and no other's
void spoiled_token(Random& random, const std::vector<Machine>& all, const Weights& w, const Rows& x,
                   const Rows& clean) {
  const int count = random.one_of({2, 3, 7, 17, 30}), token = random.integer(0, count - 1);
  Rows some = x.part(0, count);
  packed::spoil(random, some, token);
  for (const Machine& machine : all) {
    const Rows y = packed::product(machine, w, some);
    bool good = packed::is_spoiled(y.row(token), w.rows, !w.format.floats());
    for (int t = 0; t < count; ++t) good &= t == token || packed::same_row(y, t, clean, t);
    if (!good) check::report("not a number stays with its token, linear " + shape(w) + " on " + machine.name, false);
  }
}

void gathers(Random& random, const std::vector<Machine>& all, const Weights& w) {
  std::vector<int64_t> ids(random.integer(1, 20), w.rows - 1);
  for (size_t i = 1; i < ids.size(); ++i) ids[i] = random.integer(0, w.rows - 1);
  for (const Machine& machine : all) {
    Rows y((int)ids.size(), w.columns), again = y;
    machine.run(machine.ops->gather, tenth::GatherArgs{y.count, ids.data(), &w.matrix(), nullptr, 0, w.columns,
                                                       y.row(0), y.stride});
    machine.run(machine.ops->gather, tenth::GatherArgs{y.count, ids.data(), nullptr, w.values.data(), w.columns,
                                                       w.columns, again.row(0), again.stride});
    bool good = packed::is_part(y, y, 0) && packed::is_part(again, again, 0);
    for (int i = 0; i < y.count; ++i) {
      const float* want = &w.values[ids[i] * w.columns];
      good &= std::equal(want, want + w.columns, y.row(i)) && std::equal(want, want + w.columns, again.row(i));
    }
    if (!good) check::report("gather " + shape(w) + " on " + machine.name, false);
  }
}

void format_checks(Random& random, const std::vector<Machine>& all, const Format& format) {
  const Weights w(random, format, random_rows(random), packed::random_columns(random, format, 600));
  const Rows x = packed::random_tokens(random, kMostTokens, w.columns);
  const std::vector<float> bias = random.normals(w.rows);
  const Rows whole = packed::product(all[0], w, x, bias.data());
  const double worst = error(w, x, bias, whole);
  check::report("linear " + shape(w), worst <= 1, "error " + std::to_string(worst) + " of what is allowed");
  for (const Machine& machine : all)
    for (const int count : kTokens) {
      const int first = random.integer(0, kMostTokens - count);
      if (!packed::is_part(packed::product(machine, w, x.part(first, count), bias.data()), whole, first))
        check::report("same bits of " + std::to_string(count) + " tokens, linear " + shape(w) + " on " + machine.name,
                      false);
    }
  spoiled_token(random, all, w, x, packed::product(all[0], w, x));
  gathers(random, all, w);
}

// several matrices of any formats on the same tokens: what each of them is alone
void several_matrices(Random& random, const std::vector<Machine>& all) {
  const int columns = random.one_of({32, 77, 200, 256, 512}), tokens = random.integer(1, 20);
  const Rows x = packed::random_tokens(random, tokens, columns);
  const std::vector<float> bias = random.normals(150);
  std::vector<Weights> weights;
  std::vector<Rows> wanted, got;
  std::string name = "several matrices on " + std::to_string(tokens) + " x " + std::to_string(columns);
  tenth::LinearArgs args{tokens, x.row(0), x.stride, random.integer(2, tenth::LinearArgs::kMost), {}};
  for (int i = 0; i < args.count; ++i) {
    const Format format = packed::format_where(random, [&](const Format& f) { return f.fits(columns); });
    weights.emplace_back(random, format, random_rows(random), columns);
    wanted.push_back(packed::product(all[0], weights[i], x, i % 2 ? bias.data() : nullptr));
    name += " " + format.name();
  }
  bool good = true;
  for (const Machine& machine : all) {
    got.clear();
    for (const Weights& w : weights) got.emplace_back(tokens, w.rows);
    for (int i = 0; i < args.count; ++i)
      args.out[i] = {&weights[i].matrix(), i % 2 ? bias.data() : nullptr, got[i].row(0), got[i].stride};
    machine.run(machine.ops->linear, args);
    for (int i = 0; i < args.count; ++i) good &= packed::is_part(got[i], wanted[i], 0);
  }
  check::report(name, good);
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 3;
  const std::vector<Machine> all = check::machines();
  Random random(5);
  for (int i = 0; i < rounds; ++i) {
    for (const Format& format : packed::all_formats())
      for (int j = 0; j < (format.step_bits == 4 ? 8 : 2); ++j)  // superblocks have kernels of their own
        format_checks(random, all, format);
    for (int j = 0; j < 8; ++j) several_matrices(random, all);
  }
  return check::done();
}
