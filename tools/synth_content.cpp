#include "tools/synth_content.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "kernels/quant/element_formats.h"

namespace gantry::cli {
namespace {

// Equally likely normal numbers: of bytes and bf16 (tails of 3.7 deviations), and of 4-bit codes,
// of which two share a draw (2.9 deviations, beyond what 16 values tell apart).
constexpr int kQuantiles = 4096;
constexpr int kNibbleQuantiles = 256;

uint64_t splitmix64(uint64_t& state) {
  state += 0x9e3779b97f4a7c15u;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

template <typename T>
void draw(const std::vector<T>& table, uint64_t seed, std::span<std::byte> out) {
  const int bits = std::countr_zero(table.size());
  const uint64_t mask = table.size() - 1;
  const int draws = bits == 0 ? 64 : 64 / bits;  // of one random word
  const size_t count = out.size() / sizeof(T);
  std::byte* target = out.data();
  uint64_t state = seed;
  size_t i = 0;
  while (i < count) {
    uint64_t word = splitmix64(state);
    for (int k = 0; k < draws && i < count; ++k, ++i, word >>= bits) {
      std::memcpy(target, &table[word & mask], sizeof(T));
      target += sizeof(T);
    }
  }
}

const std::vector<double>& normals(int count) {
  const auto make = [](int n) {
    std::vector<double> values(static_cast<size_t>(n));
    for (int i = 0; i < n; ++i)
      values[static_cast<size_t>(i)] = normal_quantile((i + 0.5) / n);
    return values;
  };
  static const std::vector<double> many = make(kQuantiles);
  static const std::vector<double> few = make(kNibbleQuantiles);
  return count == kQuantiles ? many : few;
}

// The code below `count` whose value is nearest.
uint8_t nearest_code(float (*value)(uint8_t), int count, double wanted) {
  int best = 0;
  double best_distance = std::numeric_limits<double>::infinity();
  for (int code = 0; code < count; ++code) {
    const double distance = std::fabs(value(static_cast<uint8_t>(code)) - wanted);
    if (distance < best_distance) {  // never for NaN
      best = code;
      best_distance = distance;
    }
  }
  return static_cast<uint8_t>(best);
}

struct CodeList {
  std::vector<uint8_t> codes;
  double rms = 0.0;
};

CodeList normal_codes(float (*value)(uint8_t), int num_codes, int quantiles, double deviation) {
  CodeList list;
  double squares = 0.0;
  for (const double x : normals(quantiles)) {
    list.codes.push_back(nearest_code(value, num_codes, x * deviation));
    const double y = value(list.codes.back());
    squares += y * y;
  }
  list.rms = std::sqrt(squares / quantiles);
  return list;
}

// Every pair of two equally likely nibbles.
std::vector<uint8_t> pairs_of(const std::vector<uint8_t>& nibbles) {
  std::vector<uint8_t> bytes;
  bytes.reserve(nibbles.size() * nibbles.size());
  for (const uint8_t high : nibbles) {
    for (const uint8_t low : nibbles)
      bytes.push_back(static_cast<uint8_t>(high << 4 | low));
  }
  return bytes;
}

template <typename T, typename Convert>
Content converted(const std::vector<double>& values, Convert convert) {
  std::vector<T> table;
  table.reserve(values.size());
  for (const double value : values)
    table.push_back(convert(static_cast<float>(value)));
  return Content::drawn(std::move(table));
}

}  // namespace

Content Content::drawn(Table table) {
  Content content;
  std::visit(
      [&](auto& elements) {
        GANTRY_CHECK(std::has_single_bit(elements.size()) && elements.size() <= 65536,
                     ErrorCode::kInternal, "a table of {} elements", elements.size());
        content.elements_ = std::move(elements);
      },
      table);
  return content;
}

Content Content::given(std::vector<std::byte> bytes) {
  Content content;
  content.elements_ = std::move(bytes);
  return content;
}

int64_t Content::element_bytes() const noexcept {
  if (const auto* bytes = std::get_if<std::vector<std::byte>>(&elements_))
    return static_cast<int64_t>(bytes->size());
  constexpr std::array<int64_t, 3> kSizes = {1, 2, 4};
  return kSizes[elements_.index()];
}

void Content::fill(uint64_t seed, int64_t begin, std::span<std::byte> out) const {
  if (const auto* bytes = std::get_if<std::vector<std::byte>>(&elements_)) {
    GANTRY_CHECK(begin == 0 && out.size() == bytes->size(), ErrorCode::kInternal,
                 "{} given bytes for {}", bytes->size(), out.size());
    std::copy(bytes->begin(), bytes->end(), out.begin());
    return;
  }
  const uint64_t stream = seed + static_cast<uint64_t>(begin);
  if (const auto* table = std::get_if<std::vector<uint8_t>>(&elements_)) draw(*table, stream, out);
  if (const auto* table = std::get_if<std::vector<uint16_t>>(&elements_)) draw(*table, stream, out);
  if (const auto* table = std::get_if<std::vector<uint32_t>>(&elements_)) draw(*table, stream, out);
}

uint64_t hash_name(std::string_view name, uint64_t seed) noexcept {
  uint64_t hash = 0xcbf29ce484222325u ^ seed;
  for (const char c : name)
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

// Bisection on the error function.
double normal_quantile(double p) noexcept {
  double low = -8.0;
  double high = 8.0;
  for (int i = 0; i < 60; ++i) {
    const double middle = 0.5 * (low + high);
    (0.5 * std::erfc(-middle / std::sqrt(2.0)) < p ? low : high) = middle;
  }
  return low;
}

double typical_largest(int64_t count) noexcept {
  return normal_quantile(1.0 - 0.5 / static_cast<double>(count));
}

Content bf16_normals(double deviation) {
  return converted<uint16_t>(
      normals(kQuantiles), [&](float x) { return f32_to_bf16(static_cast<float>(x * deviation)); });
}

Content scales(DType dtype, double rms) {
  constexpr int kCount = 256;
  std::vector<double> values(kCount);
  double squares = 0.0;
  for (int i = 0; i < kCount; ++i) {
    double& value = values[static_cast<size_t>(i)];
    value = std::pow(1.25, 2.0 * (i + 0.5) / kCount - 1.0);  // 0.8 to 1.25
    squares += value * value;
  }
  for (double& value : values)
    value *= rms / std::sqrt(squares / kCount);
  switch (dtype) {
    case DType::kF32:
      return converted<uint32_t>(values, [](float x) { return std::bit_cast<uint32_t>(x); });
    case DType::kF16:
      return converted<uint16_t>(values, [](float x) { return f32_to_f16(x); });
    case DType::kBF16:
      return converted<uint16_t>(values, [](float x) { return f32_to_bf16(x); });
    case DType::kF8E4M3:
      return converted<uint8_t>(values, [](float x) { return nearest_code(e4m3_to_f32, 256, x); });
    default:
      fail(ErrorCode::kInternal, "scales of type {}", to_string(dtype));
  }
}

Codes byte_codes(float (*value)(uint8_t code), double deviation) {
  CodeList list = normal_codes(value, 256, kQuantiles, deviation);
  return {Content::drawn(std::move(list.codes)), list.rms};
}

Codes nibble_codes(float (*value)(uint8_t code), double deviation) {
  const CodeList list = normal_codes(value, 16, kNibbleQuantiles, deviation);
  return {Content::drawn(pairs_of(list.codes)), list.rms};
}

Content nibbles_around(uint8_t middle) {
  const auto less = static_cast<uint8_t>(middle - 1);
  const auto more = static_cast<uint8_t>(middle + 1);
  return Content::drawn(pairs_of({less, middle, middle, more}));
}

Content e8m0_scales(int exponent) {
  const auto code = static_cast<uint8_t>(exponent + 127);
  return Content::drawn(std::vector<uint8_t>{static_cast<uint8_t>(code - 1), code, code,
                                             static_cast<uint8_t>(code + 1)});
}

}  // namespace gantry::cli
