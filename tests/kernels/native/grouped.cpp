// The experts of a layer while it trains against sums in double precision, and every number of threads against one: the
// same bits. Argument: how many rounds of random layers.
#include <cstdlib>
#include <numeric>

#include "numbers.h"

using check::Machine;
using check::Numbers;
using check::Random;
using check::Worst;

namespace {

struct Layer {
  bool half;
  int tokens, width, inner, experts, top_k;
  Numbers x, w13, w2, dy;
  std::vector<float> gates;
  std::vector<int64_t> offsets;
  std::vector<int32_t> token, place, row;

  Layer(Random& random, bool half, int tokens, int width, int inner, int experts, int top_k, bool one)
      : half(half), tokens(tokens), width(width), inner(inner), experts(experts), top_k(top_k),
        x(random, half, (size_t)tokens * width, 1.0f),
        w13(random, half, (size_t)experts * 2 * inner * width, 1.0f / std::sqrt((float)width)),
        w2(random, half, (size_t)experts * width * inner, 1.0f / std::sqrt((float)inner)),
        dy(random, half, (size_t)tokens * width, 1.0f), gates(random.normals((size_t)tokens * top_k)),
        row((size_t)tokens * top_k, -1) {
    std::vector<std::vector<int32_t>> of(experts);
    for (size_t a = 0; a < row.size(); ++a)
      if (random.integer(0, 9)) of[one ? experts - 1 : random.integer(0, experts - 1)].push_back((int32_t)a);
    offsets.push_back(0);
    for (const auto& places : of) {
      for (const int32_t a : places) {
        row[a] = (int32_t)token.size();
        token.push_back(a / top_k);
        place.push_back(a);
      }
      offsets.push_back((int64_t)token.size());
    }
  }
  std::string name() const {
    return std::string(half ? "bf16" : "fp32") + " T" + std::to_string(tokens) + " D" + std::to_string(width) + " F" +
           std::to_string(inner) + " E" + std::to_string(experts) + " K" + std::to_string(top_k);
  }
  tenth::Routes routes() const {
    return {tokens, top_k, experts, offsets.data(), token.data(), place.data(), row.data()};
  }
  tenth::TrainedExperts table() { return {half, width, inner, w13.data(), w2.data()}; }
};

struct Results {
  Numbers y, dx;
  std::vector<float> dgates, dw13;
  Numbers dw2;

  bool same_bits(const Results& other) const {
    return y.same_bits(other.y) && dx.same_bits(other.dx) && check::same_bits(dgates, other.dgates) &&
           check::same_bits(dw13, other.dw13) && dw2.same_bits(other.dw2);
  }
};

// dw13 is in float32; dw2 has the type of the layer
Results run(const Machine& machine, Layer& layer) {
  const size_t rows = layer.token.size(), slabs = (2 * layer.inner + 31) / 32;
  Results r{{layer.half, layer.x.size()}, {layer.half, layer.x.size()}, std::vector<float>(layer.gates.size()),
            std::vector<float>(layer.w13.size(), NAN), {layer.half, layer.w2.size()}};
  Numbers kept(layer.half, slabs * rows * 32);
  const auto routes = layer.routes();
  const auto table = layer.table();
  machine.run(machine.ops->train_forward, tenth::ExpertForwardArgs{routes, table, layer.x.data(), layer.width,
                                                                   layer.gates.data(), kept.data(), r.y.data()});
  machine.run(machine.ops->train_backward,
              tenth::ExpertBackwardArgs{routes, table, layer.x.data(), layer.width, layer.gates.data(), kept.data(),
                                        layer.dy.data(), r.dx.data(), r.dgates.data(), {r.dw13.data(), false},
                                        {r.dw2.data(), layer.half}});
  return r;
}

double worst(const Layer& layer, const Results& got) {
  const int width = layer.width, inner = layer.inner;
  std::vector<double> y(layer.x.size()), dx(layer.x.size()), dw13(layer.w13.size()), dw2(layer.w2.size());
  Worst of_y, of_dx, of_dgates, of_dw13, of_dw2;
  for (int e = 0; e < layer.experts; ++e)
    for (int64_t a = layer.offsets[e]; a < layer.offsets[e + 1]; ++a) {
      const size_t t = (size_t)layer.token[a] * width, w13 = (size_t)e * 2 * inner * width, w2 = (size_t)e * width * inner;
      const double scale = layer.gates[layer.place[a]];
      double dgate = 0;
      for (int f = 0; f < inner; ++f) {
        double gate = 0, up = 0, back = 0;
        for (int d = 0; d < width; ++d) {
          gate += layer.x[t + d] * layer.w13[w13 + (size_t)f * width + d];
          up += layer.x[t + d] * layer.w13[w13 + (size_t)(inner + f) * width + d];
          back += layer.dy[t + d] * layer.w2[w2 + (size_t)d * inner + f];
        }
        const double s = 1 / (1 + std::exp(-gate)), h = gate * s * up;
        dgate += back * h;
        const double dgate_f = scale * back * up * s * (1 + gate * (1 - s)), dup = scale * back * gate * s;
        for (int d = 0; d < width; ++d) {
          y[t + d] += scale * h * layer.w2[w2 + (size_t)d * inner + f];
          dw2[w2 + (size_t)d * inner + f] += scale * h * layer.dy[t + d];
          dw13[w13 + (size_t)f * width + d] += dgate_f * layer.x[t + d];
          dw13[w13 + (size_t)(inner + f) * width + d] += dup * layer.x[t + d];
          dx[t + d] += dgate_f * layer.w13[w13 + (size_t)f * width + d] + dup * layer.w13[w13 + (size_t)(inner + f) * width + d];
        }
      }
      of_dgates.see(got.dgates[layer.place[a]], dgate);
    }
  for (size_t i = 0; i < y.size(); ++i) of_y.see(got.y[i], y[i]), of_dx.see(got.dx[i], dx[i]);
  for (size_t i = 0; i < dw13.size(); ++i) of_dw13.see(got.dw13[i], dw13[i]);
  for (size_t i = 0; i < dw2.size(); ++i) of_dw2.see(got.dw2[i], dw2[i]);
  return std::max({of_y.part(), of_dx.part(), of_dgates.part(), of_dw13.part(), of_dw2.part()});
}

void test(const std::vector<Machine>& machines, Layer layer) {
  std::string set;
  std::vector<Results> first;  // of the set, on one thread
  for (const std::string& name : tenth::supported_sets())
    for (const Machine& machine : machines) {
      if (machine.ops != tenth::ops_of(name)) continue;
      Results got = run(machine, layer);
      if (set != name) {
        const double part = worst(layer, got), allowed = layer.half ? 3e-2 : 5e-6;
        check::report(machine.name + " " + layer.name(), part <= allowed, "off by " + std::to_string(part));
        first.assign(1, got);
        set = name;
      } else {
        check::report(machine.name + " " + layer.name() + " has the bits of one thread", got.same_bits(first[0]));
      }
    }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 4;
  const auto machines = check::machines();
  Random random(17);
  for (const bool half : {false, true}) {
    test(machines, Layer(random, half, 1, 33, 16, 2, 1, false));
    test(machines, Layer(random, half, 600, 40, 32, 2, 1, true));  // more than a sum takes at once
    test(machines, Layer(random, half, 5, 300, 48, 3, 2, false));  // more columns than a panel has at once
    for (int i = 0; i < rounds; ++i)
      test(machines, Layer(random, half, random.integer(1, 120), random.integer(1, 90), 16 * random.integer(1, 4),
                                   random.integer(1, 5), random.integer(1, 3), !random.integer(0, 3)));
  }
  return check::done();
}
