// Bytes that are needed next, asked for a few lines at a time while something else is computed.
//
// A core keeps too few reads under way by itself to use the memory's bandwidth, least of all where one run of bytes ends
// and another begins, or where it computes for long with what it has read. So whoever computes with one panel asks for
// the next: when its turn comes it lies in the second cache. It must ask evenly: only some 16 lines of a core are under
// way at a time, and whoever asks for more waits. It asks at four places of the panel in turn: a processor that finds
// several runs of lines in different pages reads ahead in all of them.
#pragma once

#include <cstdint>

#include "simd.h"

namespace tenth::TENTH_ISA {

class Ahead {
 public:
  static constexpr int kPlaces = 4;  // a line of each is asked for at once

  Ahead() = default;
  Ahead(const uint8_t* data, int64_t bytes) : at_(data), apart_(bytes / (kPlaces * 64) * 64), end_(data + apart_) {}

  // so many lines, or a few more
  template <int lines>
  inline __attribute__((always_inline)) void ask() {
    constexpr int kTimes = (lines + kPlaces - 1) / kPlaces;
    if (end_ - at_ < kTimes * 64) return;
#pragma GCC unroll 16
    for (int i = 0; i < kTimes; ++i) ask_places(at_ + i * 64);
    at_ += kTimes * 64;
  }

  // so many lines evenly over so many units of work
  void pace(int lines, int units) { rate_ = (lines << 8) / (units * kPlaces) + 1; }
  inline __attribute__((always_inline)) void work(int units) {
    due_ += units * rate_;
    const int times = due_ >> 8;
    due_ &= 255;
    if (end_ - at_ < times * 64) return;
    for (int i = 0; i < times; ++i) ask_places(at_ + i * 64);
    at_ += times * 64;
  }

 private:
  inline __attribute__((always_inline)) void ask_places(const uint8_t* p) const {
#pragma GCC unroll 4
    for (int i = 0; i < kPlaces; ++i) prefetch_far(p + i * apart_);
  }

  const uint8_t* at_ = nullptr;
  int64_t apart_ = 0;
  const uint8_t* end_ = nullptr;  // of the first place's part
  int rate_ = 0, due_ = 0;        // times 256
};

}  // namespace tenth::TENTH_ISA
