// Norms, rotary positions, activations and the choice of experts against double precision, with the same bits on every
// instruction set, for any number of threads, and for a row alone. Argument: how many rounds of random shapes.
#include <algorithm>
#include <cstdlib>
#include <limits>
#include <numeric>

#include "check.h"

using check::Machine;
using check::Random;
using Rows = std::vector<float>;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// largest |a - b| over what is allowed for each number; a NaN must meet a NaN
struct Worst {
  double value = 0;
  void take(float got, double want, double allowed) {
    if (std::isnan(got) || std::isnan(want))
      value = std::isnan(got) && std::isnan(want) ? value : 1e30;
    else if (got != want)
      value = std::max(value, std::fabs(got - want) / allowed);
  }
};

// The op as `call(machine, first row, rows, y)` fills y: on all machines, and row by row, always the same bits; returns
// what the first machine made of it.
template <class Call>
Rows everywhere(const std::string& name, const std::vector<Machine>& all, int rows, size_t columns, const Call& call) {
  Rows first(rows * columns);
  call(all[0], 0, rows, first.data());
  bool same = true;
  for (const Machine& machine : all) {
    Rows y(rows * columns), alone(rows * columns);
    call(machine, 0, rows, y.data());
    for (int r = 0; r < rows; ++r) call(machine, r, 1, alone.data() + r * columns);
    same &= check::same_bits(first, y) && check::same_bits(first, alone);
  }
  if (!same) check::report("same bits of " + name, false);
  return first;
}

std::string shape(const char* name, int rows, int columns) {
  return std::string(name) + " " + std::to_string(rows) + " x " + std::to_string(columns);
}

void report(const std::string& name, const Worst& worst) {
  check::report(name, worst.value <= 1, "error " + std::to_string(worst.value) + " of what is allowed");
}

void norms(Random& random, const std::vector<Machine>& all) {
  const int rows = random.integer(1, 20), columns = random.integer(1, random.one_of({20, 300, 3000}));
  const int stride = columns + 3;
  const bool with_sum = random.integer(0, 1);
  Rows x = random.normals(rows * stride, random.one_of({1e-4f, 1.0f, 1e4f}));
  const Rows z = random.normals(rows * stride), w = random.normals(columns);
  if (rows > 2) x[2 * stride + columns / 2] = random.one_of({INFINITY, -INFINITY, kNaN});
  const std::string name = shape(with_sum ? "rms_norm of a sum" : "rms_norm", rows, columns);
  Rows sums(rows * stride, 0.0f);
  const Rows y = everywhere(name, all, rows, columns, [&](const Machine& m, int r, int count, float* to) {
    m.run(m.ops->rms_norm,
          tenth::RmsNormArgs{count, columns, &x[r * stride], stride, with_sum ? &z[r * stride] : nullptr, stride,
                             &sums[r * stride], stride, w.data(), 1e-6f, to, columns});
  });
  Worst worst;
  for (int r = 0; r < rows; ++r) {
    double squares = 0;
    auto value = [&](int c) { return with_sum ? (double)(x[r * stride + c] + z[r * stride + c]) : x[r * stride + c]; };
    for (int c = 0; c < columns; ++c) squares += value(c) * value(c);
    const double scale = 1 / std::sqrt(squares / columns + 1e-6);
    for (int c = 0; c < columns; ++c) {
      const double want = std::isfinite(squares) ? value(c) * scale * w[c] : kNaN;
      worst.take(y[r * columns + c], want, 1e-6 * std::fabs(want));
      if (with_sum) worst.take(sums[r * stride + c], value(c), 1e-30);
    }
  }
  report(name, worst);
}

void rotations(Random& random, const std::vector<Machine>& all) {
  const int rows = random.integer(1, 9), heads = random.integer(1, 9), kv = random.integer(1, 3);
  const int size = 16 * random.integer(1, 16), half = size / 2, q_row = heads * size, kv_row = kv * size;
  const bool norm = random.integer(0, 1), in_place = random.integer(0, 1);
  const Rows q = random.normals(rows * q_row), k = random.normals(rows * kv_row), w = random.normals(size);
  Rows cos(rows * half), sin(rows * half);
  for (int i = 0; i < rows * half; ++i) cos[i] = std::cos(0.1f * i), sin[i] = std::sin(0.1f * i);
  const std::string name = shape(norm ? "heads, norm" : "heads", rows, q_row) + " C " + std::to_string(size);
  const Rows y = everywhere(name, all, rows, q_row + kv_row, [&](const Machine& m, int r, int count, float* to) {
    const int row = q_row + kv_row;
    if (in_place)
      for (int i = 0; i < count; ++i) {
        std::copy_n(&q[(r + i) * q_row], q_row, to + i * row);
        std::copy_n(&k[(r + i) * kv_row], kv_row, to + i * row + q_row);
      }
    const float* weight = norm ? w.data() : nullptr;
    using Part = tenth::HeadsArgs::Part;
    m.run(m.ops->heads,
          tenth::HeadsArgs{count, size,
                           in_place ? Part{heads, to, row, weight, to, row}
                                    : Part{heads, &q[r * q_row], q_row, weight, to, row},
                           in_place ? Part{kv, to + q_row, row, weight, to + q_row, row}
                                    : Part{kv, &k[r * kv_row], kv_row, weight, to + q_row, row},
                           1e-5f, &cos[r * half], &sin[r * half]});
  });
  Worst worst;
  for (int r = 0; r < rows; ++r)
    for (int h = 0; h < heads + kv; ++h) {
      const float* x = h < heads ? &q[r * q_row + h * size] : &k[r * kv_row + (h - heads) * size];
      double squares = 0;
      for (int c = 0; c < size; ++c) squares += (double)x[c] * x[c];
      const double scale = norm ? 1 / std::sqrt(squares / size + 1e-5) : 1;
      for (int c = 0; c < half; ++c) {
        const double a = x[c] * scale * (norm ? w[c] : 1), b = x[half + c] * scale * (norm ? w[half + c] : 1);
        const double cosine = cos[r * half + c], sine = sin[r * half + c];
        const double allowed = 1e-6 * (std::fabs(a) + std::fabs(b));
        const float* out = &y[r * (q_row + kv_row) + h * size];
        worst.take(out[c], a * cosine - b * sine, allowed);
        worst.take(out[half + c], b * cosine + a * sine, allowed);
      }
    }
  report(name, worst);
}

void elementwise(Random& random, const std::vector<Machine>& all) {
  const int rows = random.integer(1, 20), columns = random.integer(1, random.one_of({20, 900})), stride = columns + 5;
  Rows x = random.normals(rows * stride, 5), z = random.normals(rows * stride), g = random.normals(rows, 3);
  const float odd[] = {0.0f, -0.0f, 88.0f, -88.0f, 300.0f, -300.0f, 1e-30f, kNaN};
  for (size_t i = 0; i < std::min<size_t>(columns, 8); ++i) x[i] = odd[i];
  const bool gated = random.integer(0, 1);
  const Rows silu = everywhere("silu_mul", all, rows, columns, [&](const Machine& m, int r, int count, float* to) {
    m.run(m.ops->silu_mul,
          tenth::SiluMulArgs{count, columns, &x[r * stride], stride, &z[r * stride], stride, to, columns});
  });
  const Rows sum = everywhere("add", all, rows, columns, [&](const Machine& m, int r, int count, float* to) {
    m.run(m.ops->add, tenth::AddArgs{count, columns, &x[r * stride], stride, &z[r * stride], stride, to, columns});
  });
  const Rows scaled = everywhere("scale_rows", all, rows, columns, [&](const Machine& m, int r, int count, float* to) {
    for (int i = 0; i < count; ++i) std::copy_n(&x[(r + i) * stride], columns, to + i * columns);
    m.run(m.ops->scale_rows,
          tenth::ScaleRowsArgs{count, columns, gated ? &g[r] : nullptr, 1, &z[r * stride], stride, to, columns});
  });
  Worst worst;
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) {
      const double a = x[r * stride + c], b = z[r * stride + c], gate = gated ? 1 / (1 + std::exp(-(double)g[r])) : 1;
      const double want = a / (1 + std::exp(-a)) * b;
      worst.take(silu[r * columns + c], want, 1e-6 * std::fabs(want) + 1e-36);
      worst.take(sum[r * columns + c], (float)(x[r * stride + c] + z[r * stride + c]), 1e-30);
      worst.take(scaled[r * columns + c], a + gate * b, 1e-6 * (std::fabs(a) + std::fabs(gate * b)));
    }
  report(shape("silu_mul, add, scale_rows", rows, columns), worst);
}

// what a row's choice is made of, in double precision; a NaN counts as -infinity
struct Choice {
  int experts, top_k, groups, top_groups;
  bool sigmoid, renormalise;
  float scale;
  const float *logits, *bias;  // bias: or null

  double logit(int e) const { return std::isnan(logits[e]) ? -INFINITY : logits[e]; }
  double score(int e) const {
    if (std::isnan(logits[e])) return -INFINITY;
    if (sigmoid) return 1 / (1 + std::exp(-(double)logits[e])) + (bias ? bias[e] : 0.0f);
    return bias ? logits[e] + bias[e] : logits[e];  // a sum of floats is one
  }
  double best(int group) const {
    const int size = experts / groups;
    std::vector<double> scores;
    for (int e = group * size; e < (group + 1) * size; ++e) scores.push_back(score(e));
    std::sort(scores.rbegin(), scores.rend());
    const double sum = size > 1 ? scores[0] + scores[1] : scores[0];
    return sigmoid ? sum : (double)(float)sum;
  }
  // the first of `count` things by value, of equal ones the lower number first
  template <class Value>
  static std::vector<int> largest(int count, const Value& value) {
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return value(a) > value(b); });
    return order;
  }
  // whether ids are the rule's: exactly, or within the rounding of a sigmoid
  bool fits(const int64_t* ids) const {
    const std::vector<int> ranked = largest(groups, [&](int g) { return best(g); });
    const double slack = sigmoid ? 2e-6 : 0, threshold = best(ranked[top_groups - 1]);
    std::vector<bool> may(experts), must(experts), chosen(experts, false);
    for (int r = 0; r < groups; ++r)
      for (int e = ranked[r] * (experts / groups), end = e + experts / groups; e < end; ++e) {
        may[e] = r < top_groups || (slack > 0 && best(ranked[r]) >= threshold - slack);
        must[e] = r < top_groups && (slack == 0 || best(ranked[r]) > threshold + slack);
      }
    for (int k = 0; k < top_k; ++k) {
      if (ids[k] < 0 || ids[k] >= experts || chosen[ids[k]] || !may[ids[k]]) return false;
      chosen[ids[k]] = true;
      if (k && !before(ids[k - 1], ids[k], slack)) return false;
    }
    for (int e = 0; e < experts; ++e)
      if (must[e] && !chosen[e] && !before(ids[top_k - 1], e, slack)) return false;
    return true;
  }
  bool before(int a, int b, double slack) const {
    const bool twins = logit(a) == logit(b) && (!bias || bias[a] == bias[b]);
    return twins ? a < b : score(a) == score(b) ? slack > 0 || a < b : score(a) > score(b) - slack;
  }
  double part(int e) const { return sigmoid ? 1 / (1 + std::exp(-logit(e))) : std::exp(logit(e)); }
  double sum(const int64_t* ids, int count) const {
    double total = 0;
    for (int k = 0; k < count; ++k) total += part(ids[k]);
    return total;
  }
  // whether a limit leaves so many; a sum within rounding of the mass may count as it or not, and a gate that is nothing
  // beside the others does not tell whether it was dropped
  bool leaves(const int64_t* ids, double mass, int64_t cap, int left) const {
    const double total = sum(ids, top_k), slack = 1e-5 * total;
    if (left > cap || left > top_k) return false;
    if (mass < 1 && left > 1 && sum(ids, left - 1) >= mass * total + slack) return false;
    return left == top_k || left == cap || part(ids[left]) < 1e-30 * total ||
           (mass < 1 && sum(ids, left) >= mass * total - slack);
  }
  double gate(const int64_t* ids, int k) const {
    double most = -INFINITY, total = 0;
    auto part = [&](int e) { return sigmoid ? 1 / (1 + std::exp(-logit(e))) : std::exp(logit(e) - most); };
    const bool chosen_only = renormalise;
    for (int i = 0; i < (chosen_only ? top_k : experts); ++i) most = std::max(most, logit(chosen_only ? ids[i] : i));
    for (int i = 0; i < (chosen_only ? top_k : experts); ++i) total += part(chosen_only ? ids[i] : i);
    return part(ids[k]) / (sigmoid && !renormalise ? 1 : total) * scale;
  }
};

void choices(Random& random, const std::vector<Machine>& all) {
  const int groups = random.integer(0, 1) ? 1 : random.one_of({2, 3, 8});
  const int size = random.integer(1, std::max(1, random.one_of({7, 40, 300}) / groups)), experts = groups * size;
  const int top_groups = random.integer(1, groups);
  const int top_k = random.integer(1, std::min(top_groups * size, random.one_of({4, 8, 40}))), stride = experts + 1;
  const bool renormalise = random.integer(0, 1), sigmoid = random.integer(0, 1), biased = random.integer(0, 1);
  const float scale = random.one_of({1.0f, 2.5f});
  const int rows = random.integer(1, 40);
  Rows logits = random.normals(rows * stride, random.one_of({0.1f, 3.0f})), bias = random.normals(experts, 0.3f);
  for (float& v : logits) v = random.integer(0, 2) ? v : std::round(v);  // many equal ones, some of them zeros
  for (float& v : bias) v = random.integer(0, 1) ? v : 0.25f;
  std::vector<bool> spoiled(rows, false);
  for (int r = 0; r < rows; ++r) {
    float* row = &logits[r * stride];
    const int kind = random.integer(0, 9);
    if (kind == 0) std::fill(row, row + experts, kNaN), spoiled[r] = true;
    if (kind == 1) row[random.integer(0, experts - 1)] = kNaN, spoiled[r] = true;
    if (kind == 2 && groups == 1 && experts > top_k) row[random.integer(0, experts - 1)] = -INFINITY;
    if (kind == 3) row[random.integer(0, experts - 1)] = -0.0f;
    if (kind == 4 && sigmoid) row[random.integer(0, experts - 1)] = random.one_of({-200.0f, 200.0f});
  }
  const std::string name = shape("choose", rows, experts) + " top " + std::to_string(top_k) +
                           (renormalise ? " of the chosen" : "") + (sigmoid ? ", sigmoids" : "") +
                           (biased ? ", biased, " : ", ") + std::to_string(top_groups) + " of " +
                           std::to_string(groups) + " groups";
  const bool limited = random.integer(0, 1), rescale = renormalise && random.integer(0, 1);
  Rows mass(rows, 1.0f);
  std::vector<int64_t> cap(rows, 1 << 30), ids(rows * top_k);
  for (int r = 0; r < rows; ++r) {
    if (random.integer(0, 1)) mass[r] = random.one_of({0.01f, 0.5f, 0.9f});
    if (random.integer(0, 1)) cap[r] = random.integer(1, 8);
  }
  bool same = true, first = true;
  const Rows gates = everywhere(name, all, rows, top_k, [&](const Machine& m, int r, int count, float* to) {
    std::vector<int64_t> chosen(count * top_k, -1);
    m.run(m.ops->choose, tenth::ChooseArgs{count, experts, top_k, &logits[r * stride], stride, renormalise, sigmoid,
                                           biased ? bias.data() : nullptr, groups, top_groups, scale,
                                           limited ? &mass[r] : nullptr, limited ? &cap[r] : nullptr, rescale,
                                           chosen.data(), to});
    if (first) ids = chosen;
    first = false;
    same &= std::equal(chosen.begin(), chosen.end(), ids.begin() + r * top_k);
  });
  Worst worst;
  for (int r = 0; r < rows; ++r) {
    const Choice choice{experts, top_k, groups, top_groups, sigmoid, renormalise, scale, &logits[r * stride],
                        biased ? bias.data() : nullptr};
    const int64_t* chosen = &ids[r * top_k];
    same &= choice.fits(chosen);
    int left = 1;
    while (left < top_k && gates[r * top_k + left] != 0) ++left;
    if (limited) same &= choice.leaves(chosen, spoiled[r] ? 1 : mass[r], cap[r], left);
    const double sum = rescale && left < top_k ? choice.sum(chosen, left) / choice.sum(chosen, top_k) : 1;
    for (int k = 0; k < top_k; ++k) {
      const double gate = spoiled[r] ? kNaN : choice.gate(chosen, k) / sum;
      const double want = limited && k >= left ? 0 : gate;
      worst.take(gates[r * top_k + k], want, 1e-6 * want + 1e-37);
    }
  }
  check::report(name, same && worst.value <= 1, "error " + std::to_string(worst.value) + " of what is allowed");
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 40;
  const std::vector<Machine> all = check::machines();
  Random random(11);
  for (int i = 0; i < rounds; ++i) {
    norms(random, all);
    rotations(random, all);
    elementwise(random, all);
    choices(random, all);
  }
  return check::done();
}
