#include "kernels/grouped_gemm/pack_codes.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/base/cpu_features.h"
#include "kernels/base/float_convert.h"
#include "kernels/grouped_gemm/pack_words.h"
#include "kernels/quant/code_books.h"
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
    case WeightElement::kE5M2:
      return line + l / 4 * 16 + k % 4 / 2 * 8 + l % 4 * 2 + k % 2;
    case WeightElement::kInt8:
      return line + l * 4 + k % 4;
    default:
      return line + (l * 2 + k % 2) * 2 + k % 8 / 4;
  }
}

int nibble_shift(int64_t k) noexcept { return static_cast<int>(k % 4 / 2 * 4); }

// Direct inverses of e4m3_to_f32 and e8m0_to_f32, of finite values that they can give.
uint8_t e4m3_code(float value) noexcept {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 24 & 0x80u;
  const uint32_t exponent = bits >> 23 & 0xffu;
  // Below 2^-6 the code is a multiple of 2^-9. What is no e4m3 does not come back as it was.
  const uint32_t magnitude = exponent < 121u
                                 ? static_cast<uint32_t>(std::fabs(value) * 0x1p9F)
                                 : (std::min(exponent, 135u) - 120u) << 3 | (bits >> 20 & 7u);
  return static_cast<uint8_t>(sign | magnitude);
}

uint8_t e8m0_code(float value) noexcept {
  return static_cast<uint8_t>(std::bit_cast<uint32_t>(value) >> 23);
}

template <typename T>
void store_value(std::byte* target, int64_t index, T value) noexcept {
  std::memcpy(target + index * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

// Scales [count, groups] of neighbouring lanes, `target` the first lane's of group 0.
template <typename Encode, typename Decode>
bool store_scales(const float* scales, int64_t count, int64_t groups, std::byte* target,
                  const Encode& encode, const Decode& decode) noexcept {
  bool exact = true;
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t r = 0; r < count; ++r) {
      const float value = scales[r * groups + g];
      const auto code = encode(value);
      store_value(target, g * kPanelWidth + r, code);
      exact &= decode(code) == value;
    }
  }
  return exact;
}

bool store_scales(ScaleType type, const float* scales, int64_t count, int64_t groups,
                  std::byte* target) noexcept {
  switch (type) {
    case ScaleType::kF32:
      return store_scales(
          scales, count, groups, target, [](float v) { return v; }, [](float v) { return v; });
    case ScaleType::kF16:
      return store_scales(scales, count, groups, target, f32_to_f16, f16_to_f32);
    case ScaleType::kBF16:
      return store_scales(scales, count, groups, target, f32_to_bf16, bf16_to_f32);
    case ScaleType::kE8M0:
      return store_scales(scales, count, groups, target, e8m0_code, e8m0_to_f32);
    case ScaleType::kE4M3:
      return store_scales(scales, count, groups, target, e4m3_code, e4m3_to_f32);
    case ScaleType::kInt8:
      return store_scales(
          scales, count, groups, target,
          [](float v) { return static_cast<int8_t>(std::clamp(v, -128.0F, 127.0F)); },
          [](int8_t code) { return static_cast<float>(code); });
    case ScaleType::kNone:
      break;
  }
  return false;
}

// The same of scales that are in the layout's type already.
template <typename T>
void copy_scales(const std::byte* scales, int64_t stride, int64_t count, int64_t groups,
                 std::byte* target) noexcept {
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t r = 0; r < count; ++r) {
      std::memcpy(target + (g * kPanelWidth + r) * static_cast<int64_t>(sizeof(T)),
                  scales + r * stride + g * static_cast<int64_t>(sizeof(T)), sizeof(T));
    }
  }
}

void copy_scales(ScaleType type, const std::byte* scales, int64_t stride, int64_t count,
                 int64_t groups, std::byte* target) noexcept {
  switch (size_of(type)) {
    case 1:
      return copy_scales<uint8_t>(scales, stride, count, groups, target);
    case 2:
      return copy_scales<uint16_t>(scales, stride, count, groups, target);
    default:
      return copy_scales<uint32_t>(scales, stride, count, groups, target);
  }
}

WordOrder word_order(WeightElement element) noexcept {
  if (bits_of(element) == 4) return WordOrder::kNibblePairs;
  return element == WeightElement::kInt8 ? WordOrder::kBytes : WordOrder::kPairs;
}

void pack_words(const PackWords& call) noexcept {
  static const auto run =
      host_isas().contains(Isa::kAvx512) ? avx512::pack_words : scalar::pack_words;
  run(call);
}

// Up to 16 rows of one half panel.
struct HalfRows {
  int64_t first_row;  // in the block
  int64_t count;
  int64_t lane;  // of the first row
};

// Code by code, from column `first` on: the plain way.
void pack_each(WeightElement element, const CodedBlock& block, const HalfRows& rows, int64_t first,
               std::byte* codes) noexcept {
  for (int64_t r = 0; r < rows.count; ++r) {
    const uint8_t* source = block.codes + (rows.first_row + r) * block.stride;
    for (int64_t k = first; k < block.cols; ++k) {
      std::byte& target = codes[code_byte(element, rows.lane + r, k)];
      if (bits_of(element) == 8) {
        target = static_cast<std::byte>(source[k] ^ block.flip);
        continue;
      }
      const unsigned code = block.nibbles ? (source[k / 2] ^ block.flip) >> (k % 2 * 4)
                                          : static_cast<unsigned>(source[k] ^ block.flip);
      const int shift = nibble_shift(k);
      target =
          (target & ~(std::byte{0xf} << shift)) | static_cast<std::byte>((code & 0xfu) << shift);
    }
  }
}

void pack_half(WeightElement element, const CodedBlock& block, const HalfRows& rows,
               std::byte* codes) noexcept {
  const bool in_words = bits_of(element) == 8 || block.nibbles;
  const int64_t num_words = in_words ? block.cols / line_depth(element) : 0;
  pack_words({.source = block.codes + rows.first_row * block.stride,
              .row_stride = block.stride,
              .num_rows = rows.count,
              .num_words = num_words,
              .first_lane = rows.lane % kHalfPanel,
              .flip = block.flip * 0x01010101u,
              .order = word_order(element),
              .target = codes + rows.lane / kHalfPanel * 64});
  pack_each(element, block, rows, num_words * line_depth(element), codes);
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
    case WeightElement::kE5M2:
      return e5m2_to_f32(code);
    case WeightElement::kUInt4:
      return static_cast<float>(code & 0xfu);
    case WeightElement::kNF4:
      return kNF4Values[code & 0xfu];
    case WeightElement::kFP4:
      return kFP4Values[code & 0xfu];
    case WeightElement::kIQ4:
      return static_cast<float>(kIQ4Values[code & 0xfu]);
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
    case ScaleType::kInt8:
      return static_cast<float>(static_cast<int8_t>(scales[index]));
    case ScaleType::kNone:
      break;
  }
  return 1.0F;
}

namespace {

// A factor of a lane's group, times what its super-group has.
float both_levels(const CodedPanel& panel, const std::byte* factors, const std::byte* supers,
                  int64_t lane, int64_t group) noexcept {
  const float factor = load_scale(factors, panel.format.scale, group * kPanelWidth + lane);
  if (panel.format.super_group == 0) return factor;
  const int64_t super = group >> panel.super_shift;
  return factor * load_scale(supers, ScaleType::kF16, super * kPanelWidth + lane);
}

}  // namespace

float group_scale(const CodedPanel& panel, const std::byte* data, int64_t lane,
                  int64_t group) noexcept {
  return both_levels(panel, data + panel.scales, data + panel.super_scales, lane, group);
}

float group_minimum(const CodedPanel& panel, const std::byte* data, int64_t lane,
                    int64_t group) noexcept {
  return both_levels(panel, data + panel.minimums, data + panel.super_minimums, lane, group);
}

uint8_t code_at(const CodedPanel& panel, const std::byte* data, int64_t lane, int64_t k) noexcept {
  const WeightElement element = panel.format.element;
  const auto byte = static_cast<uint8_t>(data[panel.codes + code_byte(element, lane, k)]);
  return bits_of(element) == 4 ? static_cast<uint8_t>((byte >> nibble_shift(k)) & 0xfu) : byte;
}

float weight_at(const CodedPanel& panel, const std::byte* data, int64_t lane, int64_t k) noexcept {
  const WeightFormat& format = panel.format;
  const float value = code_value(format.element, code_at(panel, data, lane, k));
  if (!format.grouped()) return value;
  const int64_t g = k / format.group;
  const int64_t at = g * kPanelWidth + lane;
  const float less_zero =
      format.zero_points ? value - static_cast<float>(static_cast<int8_t>(data[panel.zeros + at]))
                         : value;
  const float product = less_zero * group_scale(panel, data, lane, g);
  return format.minimums ? product - group_minimum(panel, data, lane, g) : product;
}

bool pack_coded_rows(const PackedLayout& layout, const CodedBlock& block, int64_t row_begin,
                     std::byte* packed) noexcept {
  const CodedPanel sections = layout.coded_panel();
  const WeightFormat& format = layout.format;
  const int64_t groups = format.grouped() ? (layout.k + format.group - 1) / format.group : 0;
  const int64_t supers =
      format.super_group > 0 ? (layout.k + format.super_group - 1) / format.super_group : 0;
  bool exact = true;
  for (int64_t row = 0; row < block.rows;) {
    const PackedLayout::Place place = layout.place_of(row_begin + row);
    const int64_t count = std::min(block.rows - row, layout.rows_in_half(row_begin + row));
    std::byte* panel = packed + place.panel * sections.bytes;
    pack_half(format.element, block, {row, count, place.lane}, panel + sections.codes);
    std::byte* scales = panel + sections.scales + place.lane * size_of(format.scale);
    if (groups > 0 && block.stored_scales != nullptr) {
      copy_scales(format.scale, block.stored_scales + row * block.scale_stride, block.scale_stride,
                  count, groups, scales);
    } else if (groups > 0) {
      exact &= store_scales(format.scale, block.scales + row * groups, count, groups, scales);
    }
    if (groups > 0 && format.minimums) {
      exact &= store_scales(format.scale, block.minimums + row * groups, count, groups,
                            panel + sections.minimums + place.lane * size_of(format.scale));
    }
    if (supers > 0) {
      exact &= store_scales(ScaleType::kF16, block.super_scales + row * supers, count, supers,
                            panel + sections.super_scales + place.lane * 2);
    }
    if (supers > 0 && format.minimums) {
      exact &= store_scales(ScaleType::kF16, block.super_minimums + row * supers, count, supers,
                            panel + sections.super_minimums + place.lane * 2);
    }
    for (int64_t g = 0; format.zero_points && g < groups; ++g) {
      for (int64_t r = 0; r < count; ++r) {
        store_value(panel + sections.zeros, g * kPanelWidth + place.lane + r,
                    block.zeros[(row + r) * groups + g]);
      }
    }
    if (format.output_scale) {
      std::memcpy(panel + sections.output_scales + place.lane * 4, block.output_scales + row,
                  static_cast<size_t>(count) * 4);
    }
    row += count;
  }
  return exact;
}

}  // namespace gantry
