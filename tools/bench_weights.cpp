#include "tools/bench_weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "kernels/grouped_gemm/pack_codes.h"

namespace gantry::cli {
namespace {

constexpr float kDeviation = 0.03F;
constexpr int64_t kCount = int64_t{1} << 22;
constexpr int8_t kSubScale = 40;  // of two levels

// What real checkpoints of these kinds become in their slots.
constexpr std::array<BenchWeightFormat, 17> kFormats = {{
    {"bf16", DType::kBF16},
    {"f16", DType::kF16},
    {"f32", DType::kF32},
    {"fp8-block", DType::kF32, {WeightElement::kE4M3, ScaleType::kF32, 128}},
    {"fp8-channel",
     DType::kF32,
     {.element = WeightElement::kE4M3, .scale = ScaleType::kNone, .output_scale = true}},
    {"int8",
     DType::kF32,
     {.element = WeightElement::kInt8, .scale = ScaleType::kNone, .output_scale = true},
     {.kind = RowQuantization::kInt8Token}},
    {"int4-g128", DType::kF32, {WeightElement::kInt4, ScaleType::kBF16, 128}},
    {"int4-g64", DType::kF32, {WeightElement::kInt4, ScaleType::kBF16, 64}},
    {"int4-g32", DType::kF32, {WeightElement::kInt4, ScaleType::kBF16, 32}},
    {"w4a8",
     DType::kF32,
     {WeightElement::kInt4, ScaleType::kBF16, 128},
     {.kind = RowQuantization::kInt8Token}},
    {"awq", DType::kF32, {WeightElement::kInt4, ScaleType::kF16, 128, true}},
    {"gptq-asym", DType::kF32, {WeightElement::kInt4, ScaleType::kF16, 128, true}},
    {"mxfp4", DType::kF32, {WeightElement::kE2M1, ScaleType::kE8M0, 32}},
    {"nvfp4", DType::kF32, {WeightElement::kE2M1, ScaleType::kE4M3, 16, false, true}},
    {"q4_k",
     DType::kF32,
     {WeightElement::kUInt4, ScaleType::kInt8, 32, false, false, /*minimums=*/true, 256}},
    {"q6_k",
     DType::kF32,
     {WeightElement::kInt8, ScaleType::kInt8, 16, false, false, /*minimums=*/false, 256}},
    {"nf4", DType::kF32, {WeightElement::kNF4, ScaleType::kF32, 64}},
}};

// The scale that gives codes of deviation `code_deviation` that of weights.
float code_deviation(WeightElement element) {
  switch (element) {
    case WeightElement::kE4M3:
      return 100.0F;
    case WeightElement::kInt8:
      return 32.0F;
    case WeightElement::kNF4:
      return 0.4F;
    default:
      return 2.0F;
  }
}

float code_mean(WeightElement element) { return element == WeightElement::kUInt4 ? 7.5F : 0.0F; }

uint8_t nearest_code(WeightElement element, float value) {
  uint8_t best = 0;
  for (unsigned code = 0; code < (1u << bits_of(element)); ++code) {
    const float found = code_value(element, static_cast<uint8_t>(code));
    const float so_far = code_value(element, best);
    if (std::fabs(found - value) < std::fabs(so_far - value)) best = static_cast<uint8_t>(code);
  }
  return best;
}

template <typename T>
void fill_section(std::byte* section, int64_t count, T value) {
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(section + i * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

void fill_scales(std::byte* section, ScaleType type, int64_t count, float value) {
  switch (type) {
    case ScaleType::kF32:
      return fill_section(section, count, value);
    case ScaleType::kF16:
      return fill_section(section, count, f32_to_f16(value));
    case ScaleType::kBF16:
      return fill_section(section, count, f32_to_bf16(value));
    case ScaleType::kE8M0:
      return fill_section(section, count,
                          static_cast<uint8_t>(127 + std::lround(std::log2(value))));
    case ScaleType::kE4M3:
      return fill_section(section, count, uint8_t{0x38});  // 1.0
    case ScaleType::kInt8:
      return fill_section(section, count, kSubScale);
    case ScaleType::kNone:
      return;
  }
}

}  // namespace

const BenchWeightFormat& find_bench_format(std::string_view name) {
  const auto* found = std::find_if(kFormats.begin(), kFormats.end(),
                                   [&](const BenchWeightFormat& f) { return f.name == name; });
  std::string known;
  for (const BenchWeightFormat& format : kFormats) {
    if (!known.empty()) known += ", ";
    known += format.name;
  }
  GANTRY_CHECK(found != kFormats.end(), ErrorCode::kInvalidArgument,
               "--format: expected one of {}, found '{}'", known, name);
  return *found;
}

WeightSource::WeightSource(const BenchWeightFormat& format, uint64_t seed)
    : format_(format), engine_(seed) {
  std::normal_distribution<float> normal;
  if (!format.format.coded()) {
    std::vector<float> values(kCount);
    for (float& value : values)
      value = kDeviation * normal(engine_);
    plain_.resize(kCount * static_cast<size_t>(size_of(format.dtype)));
    convert_from_f32(values.data(), kCount, format.dtype, plain_.data());
    return;
  }
  const WeightElement element = format.format.element;
  std::array<uint8_t, 4096> drawn{};
  for (uint8_t& code : drawn)
    code = nearest_code(element, code_deviation(element) * normal(engine_) + code_mean(element));
  codes_.resize(kCount);
  for (std::byte& byte : codes_) {
    const uint64_t bits = engine_();
    const uint8_t low = drawn[bits & 0xfff];
    const uint8_t high = drawn[bits >> 12 & 0xfff];
    byte = static_cast<std::byte>(bits_of(element) == 4 ? low | high << 4 : low);
  }
}

SlotLayout WeightSource::layout(const MoeLayerSpec& spec) const {
  const int64_t j = spec.intermediate_size;
  const int64_t h = spec.expert_hidden_size;
  return format_.format.coded()
             ? SlotLayout::create(format_.format, format_.format, spec.gated(), false, j, h)
             : SlotLayout::create(format_.dtype, spec.gated(), false, j, h);
}

void WeightSource::fill(const PackedLayout& layout, std::byte* packed) {
  if (layout.format.coded()) {
    fill_coded(layout, packed);
  } else {
    fill_plain(layout, packed);
  }
}

// Matrices are cut from the values at random places: speed does not depend on the values, but zeros
// would be a special case.
void WeightSource::fill_plain(const PackedLayout& layout, std::byte* packed) {
  constexpr int64_t kStride = 1021;
  const int64_t stride = std::min(kStride, (kCount - layout.k) / (2 * layout.n));
  GANTRY_CHECK(stride >= 1, ErrorCode::kInvalidArgument, "bench: a matrix [{}, {}] is too large",
               layout.n, layout.k);
  const int64_t room = kCount - layout.k - layout.n * stride;
  const auto begin = static_cast<int64_t>(engine_() % static_cast<uint64_t>(room));
  pack_block(layout, {plain_.data() + begin * size_of(layout.dtype), layout.n, layout.k, stride, 1},
             0, 0, packed);
}

// Codes of padding are as random as the others: they meet zeros of x, or sums that nobody reads.
void WeightSource::fill_coded(const PackedLayout& layout, std::byte* packed) {
  const CodedPanel panel = layout.coded_panel();
  const WeightFormat& format = layout.format;
  const float scale = kDeviation / code_deviation(format.element);
  for (int64_t p = 0; p < layout.num_panels(); ++p) {
    std::byte* data = packed + p * panel.bytes;
    const int64_t values = panel.num_groups * kPanelWidth;
    fill_scales(data + panel.scales, format.scale, values, scale);
    // Minimums bring codes without a sign back to a mean of zero.
    if (format.minimums) fill_scales(data + panel.minimums, format.scale, values, 7.5F * scale);
    const int64_t supers = panel.num_supers * kPanelWidth;
    fill_scales(data + panel.super_scales, ScaleType::kF16, supers, scale / kSubScale);
    if (format.minimums) {
      fill_scales(data + panel.super_minimums, ScaleType::kF16, supers, 7.5F * scale / kSubScale);
    }
    if (format.zero_points)
      fill_section(data + panel.zeros, values, static_cast<int8_t>(1 - p % 3));
    if (format.output_scale) {
      fill_section(data + panel.output_scales, kPanelWidth, scale);
    }
    const int64_t bytes = panel.bytes - panel.codes;
    GANTRY_CHECK(bytes < kCount, ErrorCode::kInvalidArgument, "bench: rows of {} are too long",
                 layout.k);
    const auto from = static_cast<int64_t>(engine_() % static_cast<uint64_t>(kCount - bytes));
    std::memcpy(data + panel.codes, codes_.data() + from, static_cast<size_t>(bytes));
  }
}

}  // namespace gantry::cli
