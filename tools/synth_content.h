#pragma once

// Random contents of tensors for `gantry synth`: tables of equally likely elements from which
// codes, scales and plain weights are drawn. Nothing is quantized: the tables are such that codes
// times scales are normal numbers of the wanted deviation, so gigabytes cost one look-up an
// element.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/base/dtype.h"

namespace gantry::cli {

/// What fills a tensor: elements drawn from a table, or the same bytes whatever the seed.
class Content {
 public:
  using Table = std::variant<std::vector<uint8_t>, std::vector<uint16_t>, std::vector<uint32_t>>;

  /// @param table equally likely elements; a power of two of them, at most 65536
  static Content drawn(Table table);
  /// @param bytes all of the tensor
  static Content given(std::vector<std::byte> bytes);

  /// Of a drawn element, or of all that is given.
  [[nodiscard]] int64_t element_bytes() const noexcept;

  /// Writes elements from `begin` on. The bytes depend on seed, begin and the table alone.
  void fill(uint64_t seed, int64_t begin, std::span<std::byte> out) const;

 private:
  std::variant<std::vector<uint8_t>, std::vector<uint16_t>, std::vector<uint32_t>,
               std::vector<std::byte>>
      elements_;
};

/// FNV-1a of a tensor's name: each tensor has its own stream of numbers.
uint64_t hash_name(std::string_view name, uint64_t seed) noexcept;

/// The value below which a normal number lies with probability p, in deviations.
double normal_quantile(double p) noexcept;
/// The largest magnitude that one expects among `count` normal numbers, in deviations.
double typical_largest(int64_t count) noexcept;

/// Normal numbers of this deviation in bf16.
Content bf16_normals(double deviation);

/// Scales of this root mean square, which spread by a quarter up and down as those of real groups
/// do.
/// @param dtype f32, f16, bf16 or f8_e4m3
Content scales(DType dtype, double rms);

/// Codes whose values are normal numbers, rounded to what the element can hold.
struct Codes {
  Content content;
  double rms;  ///< root mean square of the values
};

/// One code a byte. @param value of a code; NaN where the code has none
Codes byte_codes(float (*value)(uint8_t code), double deviation);
/// Two 4-bit codes a byte.
Codes nibble_codes(float (*value)(uint8_t code), double deviation);
/// 4-bit integers around `middle`, two a byte: `middle` half the time, else one more or less.
/// Their variance is 1/2.
Content nibbles_around(uint8_t middle);

/// Exponents for MX scales (e8m0, a byte each) around `exponent`: a quarter each one more and one
/// less. Their root mean square is 1.25 * 2^exponent.
Content e8m0_scales(int exponent);

}  // namespace gantry::cli
