#include "kernels/grouped_gemm/pack_codes.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/float_convert.h"
#include "kernels/quant/element_formats.h"

namespace gantry {
namespace {

// Byte of a code within the codes of a panel; of nibbles, the byte that holds it.
int64_t code_byte(WeightElement element, int64_t lane, int64_t k) noexcept {
  const int64_t depth = line_depth(element);
  const int64_t line = k / depth * 128 + lane / kHalfPanel * 64;
  const int64_t l = lane % kHalfPanel;
  switch (element) {
    case WeightElement::kE4M3:
      return line + l / 4 * 16 + k % 4 / 2 * 8 + l % 4 * 2 + k % 2;
    case WeightElement::kInt8:
      return line + l * 4 + k % 4;
    default:
      return line + (l * 2 + k % 2) * 2 + k % 8 / 4;
  }
}

int nibble_shift(int64_t k) noexcept { return static_cast<int>(k % 4 / 2 * 4); }

// Smallest e4m3 code of a non-negative value, or -1.
int e4m3_code(float value) noexcept {
  for (int code = 0; code < 0x7f; ++code) {
    if (e4m3_to_f32(static_cast<uint8_t>(code)) == std::fabs(value)) {
      return code | (std::signbit(value) ? 0x80 : 0);
    }
  }
  return -1;
}

template <typename T>
void store_value(std::byte* target, int64_t index, T value) noexcept {
  std::memcpy(target + index * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

bool store_scale(std::byte* target, ScaleType type, int64_t index, float value) noexcept {
  switch (type) {
    case ScaleType::kF32:
      store_value(target, index, value);
      return true;
    case ScaleType::kF16:
      store_value(target, index, f32_to_f16(value));
      break;
    case ScaleType::kBF16:
      store_value(target, index, f32_to_bf16(value));
      break;
    case ScaleType::kE8M0: {
      int exponent = 0;
      if (std::frexp(value, &exponent) != 0.5F || exponent < -126 || exponent > 128) return false;
      store_value(target, index, static_cast<uint8_t>(exponent + 126));
      break;
    }
    case ScaleType::kE4M3: {
      const int code = e4m3_code(value);
      if (code < 0) return false;
      store_value(target, index, static_cast<uint8_t>(code));
      break;
    }
    case ScaleType::kNone:
      return false;
  }
  return load_scale(target, type, index) == value;
}

// Codes of up to 16 rows of one half panel: all of a line at a time.
void pack_half(const PackedLayout& layout, const CodedPanel& panel, const CodedBlock& block,
               int64_t first_row, int64_t count, int64_t lane, std::byte* codes) noexcept {
  const WeightElement element = layout.format.element;
  const bool nibbles = bits_of(element) == 4;
  (void)panel;
  for (int64_t r = 0; r < count; ++r) {
    const uint8_t* source = block.codes + (first_row + r) * block.stride;
    for (int64_t k = 0; k < block.cols; ++k) {
      std::byte& target = codes[code_byte(element, lane + r, k)];
      if (nibbles) {
        target |= static_cast<std::byte>((source[k] & 0xfu) << nibble_shift(k));
      } else {
        target = static_cast<std::byte>(source[k]);
      }
    }
  }
}

}  // namespace

float code_value(WeightElement element, uint8_t code) noexcept {
  switch (element) {
    case WeightElement::kE4M3:
      return e4m3_to_f32(code);
    case WeightElement::kInt8:
      return static_cast<float>(static_cast<int8_t>(code));
    case WeightElement::kInt4:
      return static_cast<float>(sign_extend(code & 0xfu, 4));
    case WeightElement::kE2M1:
      return e2m1_to_f32(code & 0xfu);
    case WeightElement::kPlain:
      break;
  }
  return 0.0F;
}

float load_scale(const std::byte* scales, ScaleType type, int64_t index) noexcept {
  switch (type) {
    case ScaleType::kF32:
      return load_as_f32(scales, DType::kF32, index);
    case ScaleType::kF16:
      return load_as_f32(scales, DType::kF16, index);
    case ScaleType::kBF16:
      return load_as_f32(scales, DType::kBF16, index);
    case ScaleType::kE8M0:
      return e8m0_to_f32(static_cast<uint8_t>(scales[index]));
    case ScaleType::kE4M3:
      return e4m3_to_f32(static_cast<uint8_t>(scales[index]));
    case ScaleType::kNone:
      break;
  }
  return 1.0F;
}

uint8_t code_at(const CodedPanel& panel, const std::byte* data, int64_t lane, int64_t k) noexcept {
  const WeightElement element = panel.format.element;
  const auto byte = static_cast<uint8_t>(data[panel.codes + code_byte(element, lane, k)]);
  return bits_of(element) == 4 ? static_cast<uint8_t>((byte >> nibble_shift(k)) & 0xfu) : byte;
}

bool pack_coded_rows(const PackedLayout& layout, const CodedBlock& block, int64_t row_begin,
                     std::byte* packed) noexcept {
  const CodedPanel sections = layout.coded_panel();
  const WeightFormat& format = layout.format;
  const int64_t groups = format.grouped() ? (layout.k + format.group - 1) / format.group : 0;
  bool exact = true;
  for (int64_t row = 0; row < block.rows;) {
    const PackedLayout::Place place = layout.place_of(row_begin + row);
    int64_t count = std::min(block.rows - row, kHalfPanel - place.lane % kHalfPanel);
    if (layout.gated && row_begin + row < layout.n / 2) {
      count = std::min(count, layout.n / 2 - row_begin - row);
    }
    std::byte* panel = packed + place.panel * sections.bytes;
    pack_half(layout, sections, block, row, count, place.lane, panel + sections.codes);
    for (int64_t r = row; r < row + count; ++r) {
      const int64_t lane = place.lane + r - row;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t at = g * kPanelWidth + lane;
        exact &=
            store_scale(panel + sections.scales, format.scale, at, block.scales[r * groups + g]);
        if (format.zero_points)
          store_value(panel + sections.zeros, at, block.zeros[r * groups + g]);
      }
      if (format.output_scale) {
        store_value(panel + sections.output_scales, lane, block.output_scales[r]);
      }
    }
    row += count;
  }
  return exact;
}

}  // namespace gantry
