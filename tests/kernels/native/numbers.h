// What the tests of training share: numbers of either type, and how far results may be from sums in double precision.
#pragma once

#include <algorithm>

#include "check.h"

namespace check {

inline float from_half(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}
inline uint16_t to_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// numbers of either type, in exactly the room they take
struct Numbers {
  bool half = false;
  std::vector<float> floats;
  std::vector<uint16_t> halves;

  Numbers(bool half, size_t count) : half(half), floats(half ? 0 : count), halves(half ? count : 0) {}
  Numbers(Random& random, bool half, size_t count, float scale) : Numbers(half, count) {
    for (float& x : floats) x = scale * random.normal();
    for (uint16_t& x : halves) x = to_half(scale * random.normal());
  }
  void* data() { return half ? (void*)halves.data() : floats.data(); }
  size_t size() const { return half ? halves.size() : floats.size(); }
  double operator[](size_t i) const { return half ? from_half(halves[i]) : floats[i]; }
  bool same_bits(const Numbers& other) const { return check::same_bits(floats, other.floats) && halves == other.halves; }
};

// the largest difference, as a part of the largest number
struct Worst {
  double difference = 0, largest = 1e-30;
  void see(double got, double exact) {
    difference = std::isfinite(got) ? std::max(difference, std::abs(got - exact)) : INFINITY;
    largest = std::max(largest, std::abs(exact));
  }
  double part() const { return difference / largest; }
};

}  // namespace check
