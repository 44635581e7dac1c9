// Random matrices, written byte by byte as docs/packed.md draws them, and what each value is worth; activations as
// integer weights meet them. Nothing here is taken from the kernels.
#pragma once

#include <algorithm>

#include "check.h"

namespace packed {

using check::Machine;
using check::Random;

struct Format {
  int bits;       // 4, 8, 16 (bfloat16), 32 (float32)
  int group = 0;  // columns that share a scale
  bool minimums = false;
  int step_bits = 0;  // 8 or 4 where groups have steps of a scale that 256 columns share

  bool floats() const { return bits >= 16; }
  int least_width() const { return step_bits == 8 ? 256 : std::max(group, 32); }  // it divides the padded width
  bool fits(int columns) const {
    const int padded = (columns + 31) / 32 * 32;
    return (step_bits == 8 ? columns : padded) % least_width() == 0;
  }
  int taken_by() const { return floats() ? 0 : step_bits == 4 ? 256 : 32; }  // activations that share a scale
  std::string name() const {
    if (floats()) return bits == 16 ? "bf16" : "fp32";
    const char* steps = step_bits == 4 ? "-s4" : step_bits ? "-k" : "";
    return "int" + std::to_string(bits) + "-g" + std::to_string(group) + steps + (minimums ? "-min" : "");
  }
};

inline std::vector<Format> all_formats() {
  std::vector<Format> all{{16}, {32}, {8, 16, false, 8}, {4, 16, false, 4}};
  for (const int bits : {4, 8})
    for (const int group : {32, 64, 128})
      for (const bool minimums : {false, true})
        for (const int step_bits : {0, 8}) all.push_back({bits, group, minimums, step_bits});
  return all;
}

template <class Good>
Format format_where(Random& random, const Good& good) {
  static const std::vector<Format> all = all_formats();
  for (;;) {
    const Format& f = all[random.integer(0, (int)all.size() - 1)];
    if (good(f)) return f;
  }
}

inline int random_columns(Random& random, const Format& f, int most) {
  const int whole = f.least_width() * random.integer(1, most / f.least_width());
  return f.step_bits == 8 ? whole : whole - random.integer(0, 31);
}

inline float half_value(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double size = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return (float)(half >> 15 ? -size : size);
}

// mostly of one size; a few tiny, subnormal, zero or large
inline uint16_t random_half(Random& random) {
  const int exponent = random.integer(0, 15) ? random.integer(9, 15) : random.one_of({0, 1, 20});
  const int fraction = random.integer(0, 40) ? random.integer(0, 1023) : 0;
  return (uint16_t)(random.integer(0, 1) << 15 | exponent << 10 | fraction);
}

class Weights {
 public:
  const Format format;
  const int rows, columns;
  std::vector<float> values;  // [rows][columns]
  std::vector<float> sizes;   // [rows][columns]: magnitudes of the terms that a value is the sum of

  Weights(Random& random, const Format& format, int rows, int columns)
      : format(format), rows(rows), columns(columns), values((size_t)rows * columns), sizes(values.size()),
        extreme_(!random.integer(0, 3)) {
    lay_out();
    for (int row = 0; row < rows; ++row)
      if (format.floats())
        fill_floats(random, row);
      else
        fill_integers(random, row);
  }
  Weights(Weights&&) = default;
  const tenth::Matrix& matrix() const { return matrix_; }

 private:
  void lay_out() {
    const int padded = (columns + 31) / 32 * 32, groups = format.group ? padded / format.group : 0;
    const int scales = 32 * (format.step_bits ? (padded + 255) / 256 : groups), steps = 2 * groups * format.step_bits;
    int64_t end = 0;
    auto part = [&](int64_t bytes) {
      const int64_t begin = bytes ? end : 0;
      end += (bytes + 63) / 64 * 64;
      return begin;
    };
    part((int64_t)padded * 2 * format.bits);
    matrix_.scales = part(scales);
    matrix_.sub_scales = part(steps);
    matrix_.minimums = part(format.minimums ? scales : 0);
    matrix_.sub_minimums = part(format.minimums ? steps : 0);
    matrix_.tile_bytes = end;
    matrix_.rows = rows, matrix_.columns = columns, matrix_.padded = padded;
    matrix_.bits = format.bits, matrix_.step_bits = format.step_bits;
    matrix_.group = format.floats() ? 16 : format.group;
    data_.resize(end * ((rows + 15) / 16));
    matrix_.data = data_.data();
  }

  uint8_t* tile_of(int row) { return data_.data() + row / 16 * matrix_.tile_bytes; }

  void set(int row, int column, float value, float size) {
    values[(size_t)row * columns + column] = value;
    sizes[(size_t)row * columns + column] = size;
  }

  void fill_floats(Random& random, int row) {
    const int bytes = format.bits / 8;
    for (int c = 0; c < columns; ++c) {
      float value = random.integer(0, 30) ? random.normal() : 0.0f;
      uint32_t word;
      std::memcpy(&word, &value, 4);
      if (bytes == 2) word &= 0xffff0000;
      std::memcpy(&value, &word, 4);
      word >>= 32 - format.bits;
      const int together = 4 / bytes;  // columns in a lane
      std::memcpy(tile_of(row) + c / together * 64 + row % 16 * 4 + c % together * bytes, &word, bytes);
      set(row, c, value, std::fabs(value));
    }
  }

  void fill_integers(Random& random, int row) {
    const int zero = format.minimums ? 0 : 1 << (format.bits - 1), sharing = format.step_bits ? 256 : format.group;
    float shared = 0, shared_minimum = 0;
    for (int first = 0; first < matrix_.padded; first += format.group) {
      if (first % sharing == 0) {
        shared = put_half(random, row, matrix_.scales, first / sharing);
        if (format.minimums) shared_minimum = put_half(random, row, matrix_.minimums, first / sharing);
      }
      float scale = shared, minimum = shared_minimum;
      if (format.step_bits) {
        scale *= put_step(random, row, matrix_.sub_scales, first / format.group);
        if (format.minimums) minimum *= -put_step(random, row, matrix_.sub_minimums, first / format.group);
      }
      for (int c = first; c < std::min(first + format.group, columns); ++c) {
        const float term = scale * (float)(put_quant(random, row, c) - zero);
        set(row, c, term + minimum, std::fabs(term) + std::fabs(minimum));
      }
    }
  }

  float put_half(Random& random, int row, int64_t part, int index) {
    const uint16_t half = random_half(random);
    std::memcpy(tile_of(row) + part + (index * 16 + row % 16) * 2, &half, 2);
    return half_value(half);
  }

  float put_step(Random& random, int row, int64_t part, int group) {
    const int most = 1 << (format.step_bits - 1);
    const int step = extreme_ ? random.one_of({-most, most - 1}) : random.integer(-most, most - 1);
    uint8_t* to = tile_of(row) + part + row % 16;
    if (format.step_bits == 8)
      to[group * 16] = (uint8_t)step;
    else
      to[group / 2 * 16] |= (step & 15) << group % 2 * 4;
    return (float)step;
  }

  int put_quant(Random& random, int row, int column) {
    const int most = (1 << format.bits) - 1, q = extreme_ ? random.one_of({0, most}) : random.integer(0, most);
    uint8_t* to = tile_of(row) + row % 16 * 4 + column % 4;
    if (format.bits == 8)
      to[column / 4 * 64] = (uint8_t)q;
    else
      to[column / 8 * 64] |= q << (column % 8 < 4 ? 0 : 4);
    return q;
  }

  const bool extreme_;  // quants and steps at the ends of their ranges: where a sum of 16 bits would saturate
  std::vector<uint8_t> data_;
  tenth::Matrix matrix_{};
};

// Rows at a stride, in memory that ends with the last of them: a sanitizer sees who reads or writes behind it.
struct Rows {
  static constexpr float kGap = -777.0f;  // what lies between rows
  int count, columns, stride;
  std::vector<float> data;

  Rows(int count, int columns)
      : count(count), columns(columns), stride(columns + 3), data((size_t)(count - 1) * stride + columns, kGap) {}
  float* row(int i) { return &data[(size_t)i * stride]; }
  const float* row(int i) const { return &data[(size_t)i * stride]; }
  Rows part(int first, int many) const {
    Rows some(many, columns);
    std::copy_n(row(first), some.data.size(), some.data.begin());
    return some;
  }
};

inline bool same_row(const Rows& a, int i, const Rows& b, int j) {
  auto cut = [](const Rows& rows, int at) { return std::vector<float>(rows.row(at), rows.row(at) + rows.columns); };
  return check::same_bits(cut(a, i), cut(b, j));
}

// whether y is the rows of `whole` from `first` on, bit for bit, and nothing was written between them
inline bool is_part(const Rows& y, const Rows& whole, int first) {
  for (int i = 0; i < y.count; ++i) {
    if (!same_row(y, i, whole, first + i)) return false;
    for (int c = y.columns; c < y.stride && i + 1 < y.count; ++c)
      if (y.row(i)[c] != Rows::kGap) return false;
  }
  return true;
}

// tokens of several sizes (1e-33 counts as zero beside integer weights), some with a run of zeros, some with nothing
// but the ends of their range
inline Rows random_tokens(Random& random, int count, int columns) {
  Rows x(count, columns);
  for (int t = 0; t < count; ++t) {
    const float scale = random.one_of({1.0f, 1.0f, 1e-3f, 1e4f, 1e-33f});
    const bool ends = !random.integer(0, 5);
    const int zeros = random.integer(0, 3) ? columns : random.integer(0, columns);
    for (int c = 0; c < columns; ++c) {
      const float value = ends ? random.one_of({-1.0f, 1.0f}) : random.normal();
      x.row(t)[c] = c >= zeros && c < zeros + 70 ? 0.0f : scale * value;
    }
  }
  return x;
}

inline void spoil(Random& random, Rows& x, int token) {
  x.row(token)[random.integer(0, x.columns - 1)] = random.one_of({NAN, INFINITY, -INFINITY});
}

// what a spoiled token's results are: NaN beside integer weights, beside floats what IEEE makes of it
inline bool is_spoiled(const float* y, int columns, bool integers) {
  return std::all_of(y, y + columns, [&](float v) { return integers ? std::isnan(v) : !std::isfinite(v); });
}

// a row of activations as a format's weights meet it
inline std::vector<double> as_taken(const Format& f, const float* x, int columns) {
  std::vector<double> taken(x, x + columns);
  const int size = f.taken_by();
  for (int first = 0; size && first < columns; first += size) {
    const int end = std::min(first + size, columns);
    float most = 0;
    for (int c = first; c < end; ++c) most = std::max(most, std::fabs(x[c]));
    for (int c = first; c < end; ++c)
      taken[c] = most > 0x1p-100f ? (double)std::nearbyint(x[c] * (127.0f / most)) * (most / 127.0f) : 0.0;
  }
  return taken;
}

inline Rows product(const Machine& machine, const Weights& w, const Rows& x, const float* bias = nullptr) {
  Rows y(x.count, w.rows);
  machine.run(machine.ops->linear,
              tenth::LinearArgs{x.count, x.row(0), x.stride, 1, {{&w.matrix(), bias, y.row(0), y.stride}}});
  return y;
}

}  // namespace packed
