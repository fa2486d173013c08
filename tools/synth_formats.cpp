#include "tools/synth_formats.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/quant/element_formats.h"
#include "tools/synth_quant_config.h"

// One function a way of writing. Codes are as large as a quantizer would make them, which divides
// by the largest magnitude that a scale covers; scales are what is left of 1/sqrt(in).

namespace gantry::cli {
namespace {

constexpr int64_t kBlock = 128;
constexpr double kLargestE4M3 = 448.0;
constexpr double kLargestE2M1 = 6.0;

using Tensors = std::vector<MatrixTensor>;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

double weight_deviation(const MatrixSize& size) {
  return 1.0 / std::sqrt(static_cast<double>(size.in));
}

MatrixTensor tensor(std::string suffix, DType dtype, std::vector<int64_t> shape, Content content) {
  return {std::move(suffix), dtype, std::move(shape),
          std::make_shared<const Content>(std::move(content))};
}

template <typename T>
Content given(const std::vector<T>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return Content::given(std::move(bytes));
}

float int8_value(uint8_t code) { return static_cast<float>(static_cast<int8_t>(code)); }
// Packed as code + 8, the middle of an asymmetric range too.
float int4_value(uint8_t code) { return static_cast<float>(code) - 8.0F; }

Codes int4_codes(int64_t group) { return nibble_codes(int4_value, 7.5 / typical_largest(group)); }

// DeepSeek: weight_scale_inv multiplies, all the same.
Tensors fp8_block(const MatrixSize& size, int64_t /*group*/) {
  Codes codes = byte_codes(e4m3_to_f32, kLargestE4M3 / typical_largest(kBlock * kBlock));
  const double scale = weight_deviation(size) / codes.rms;
  return {
      tensor("weight", DType::kF8E4M3, {size.out, size.in}, std::move(codes.content)),
      tensor("weight_scale_inv", DType::kF32,
             {ceil_div(size.out, kBlock), ceil_div(size.in, kBlock)}, scales(DType::kF32, scale))};
}

Tensors per_channel(const MatrixSize& size, DType dtype, Codes codes) {
  const double scale = weight_deviation(size) / codes.rms;
  return {tensor("weight", dtype, {size.out, size.in}, std::move(codes.content)),
          tensor("weight_scale", DType::kBF16, {size.out, 1}, scales(DType::kBF16, scale))};
}

Tensors fp8_channel(const MatrixSize& size, int64_t /*group*/) {
  return per_channel(size, DType::kF8E4M3,
                     byte_codes(e4m3_to_f32, kLargestE4M3 / typical_largest(size.in)));
}

Tensors int8_channel(const MatrixSize& size, int64_t /*group*/) {
  return per_channel(size, DType::kI8, byte_codes(int8_value, 127.0 / typical_largest(size.in)));
}

Tensors pack_quantized(const MatrixSize& size, int64_t group) {
  Codes codes = int4_codes(group);
  const double scale = weight_deviation(size) / codes.rms;
  return {tensor("weight_packed", DType::kI32, {size.out, size.in / 8}, std::move(codes.content)),
          tensor("weight_scale", DType::kBF16, {size.out, size.in / group},
                 scales(DType::kBF16, scale)),
          tensor("weight_shape", DType::kI64, {2}, given<int64_t>({size.out, size.in}))};
}

// Of asymmetric integers: a zero point is another number than the codes, so variances add.
double asymmetric_scale(const MatrixSize& size, const Codes& codes) {
  constexpr double kZeroVariance = 0.5;
  return weight_deviation(size) / std::sqrt(codes.rms * codes.rms + kZeroVariance);
}

Tensors awq(const MatrixSize& size, int64_t group) {
  Codes codes = int4_codes(group);
  const double scale = asymmetric_scale(size, codes);
  const int64_t groups = size.in / group;
  return {tensor("qweight", DType::kI32, {size.in, size.out / 8}, std::move(codes.content)),
          tensor("qzeros", DType::kI32, {groups, size.out / 8}, nibbles_around(8)),
          tensor("scales", DType::kBF16, {groups, size.out}, scales(DType::kBF16, scale))};
}

// The first GPTQ format stores zero points less one.
Tensors gptq(const MatrixSize& size, int64_t group) {
  Codes codes = int4_codes(group);
  const double scale = asymmetric_scale(size, codes);
  const int64_t groups = size.in / group;
  std::vector<int32_t> g_idx(static_cast<size_t>(size.in));
  for (size_t i = 0; i < g_idx.size(); ++i)
    g_idx[i] = static_cast<int32_t>(static_cast<int64_t>(i) / group);
  return {tensor("qweight", DType::kI32, {size.in / 8, size.out}, std::move(codes.content)),
          tensor("qzeros", DType::kI32, {groups, size.out / 8}, nibbles_around(7)),
          tensor("scales", DType::kF16, {groups, size.out}, scales(DType::kF16, scale)),
          tensor("g_idx", DType::kI32, {size.in}, given(g_idx))};
}

struct Mxfp4 {
  Codes codes;
  Content scales;
};

// The power of two that leaves codes a deviation of 1.75 to 3.5, as in real groups of 32: their
// largest is between 4 and 8 before it saturates at 6 (OCP MX 1.0). The largest codes are used, and
// saturation takes less than a tenth off the weights' deviation.
Mxfp4 mxfp4(const MatrixSize& size) {
  constexpr double kSpread = 1.25;  // see e8m0_scales
  const double deviation = weight_deviation(size) / kSpread;
  const int exponent = static_cast<int>(std::floor(std::log2(deviation / 1.75)));
  return {nibble_codes(e2m1_to_f32, std::ldexp(deviation, -exponent)), e8m0_scales(exponent)};
}

Tensors mxfp4_packed(const MatrixSize& size, int64_t group) {
  Mxfp4 parts = mxfp4(size);
  return {
      tensor("weight_packed", DType::kU8, {size.out, size.in / 2}, std::move(parts.codes.content)),
      tensor("weight_scale", DType::kU8, {size.out, size.in / group}, std::move(parts.scales))};
}

Tensors mxfp4_blocks(const MatrixSize& size, int64_t group) {
  Mxfp4 parts = mxfp4(size);
  return {tensor("blocks", DType::kU8, {size.out, size.in / group, group / 2},
                 std::move(parts.codes.content)),
          tensor("scales", DType::kU8, {size.out, size.in / group}, std::move(parts.scales))};
}

// weight_scale_2 maps the matrix' largest magnitude to the largest that both levels reach. Gate and
// up share it, as ModelOpt has it, and so does here every matrix of a size.
Tensors nvfp4(const MatrixSize& size, int64_t group) {
  Codes codes = nibble_codes(e2m1_to_f32, kLargestE2M1 / typical_largest(group));
  const double deviation = weight_deviation(size);
  const double largest = deviation * typical_largest(size.out * size.in);
  const double scale_2 = largest / (kLargestE4M3 * kLargestE2M1);
  constexpr double kLargestInput = 5.0;
  constexpr double kInputScale = kLargestInput / (kLargestE4M3 * kLargestE2M1);
  return {tensor("weight", DType::kU8, {size.out, size.in / 2}, std::move(codes.content)),
          tensor("weight_scale", DType::kF8E4M3, {size.out, size.in / group},
                 scales(DType::kF8E4M3, deviation / (codes.rms * scale_2))),
          tensor("weight_scale_2", DType::kF32, {}, given<float>({static_cast<float>(scale_2)})),
          tensor("input_scale", DType::kF32, {}, given<float>({static_cast<float>(kInputScale)}))};
}

// The first row of a name that the family may have is taken.
constexpr std::array<SynthFormat, 11> kFormats = {{
    {.name = "bf16"},
    {.name = "fp8-block", .tensors = fp8_block, .config = fp8_block_config},
    {.name = "fp8-channel",
     .names = ExpertNames::kGateUpDown,
     .tensors = fp8_channel,
     .config = fp8_dynamic_config},
    {.name = "int8",
     .names = ExpertNames::kGateUpDown,
     .tensors = int8_channel,
     .config = w8a8_config},
    {.name = "int4-g128",
     .group = 128,
     .names = ExpertNames::kGateUpDown,
     .tensors = pack_quantized,
     .config = w4a16_config},
    {.name = "int4-g32",
     .group = 32,
     .names = ExpertNames::kGateUpDown,
     .tensors = pack_quantized,
     .config = w4a16_config},
    {.name = "awq",
     .group = 128,
     .out_multiple = 8,
     .names = ExpertNames::kGateUpDown,
     .tensors = awq,
     .config = awq_config},
    {.name = "gptq-asym",
     .group = 128,
     .out_multiple = 8,
     .names = ExpertNames::kGateUpDown,
     .tensors = gptq,
     .config = gptq_config},
    {.name = "mxfp4",
     .family = "gpt_oss",
     .group = 32,
     .stacked = true,
     .tensors = mxfp4_blocks,
     .config = gpt_oss_mxfp4_config},
    {.name = "mxfp4",
     .group = 32,
     .names = ExpertNames::kGateUpDown,
     .tensors = mxfp4_packed,
     .config = mxfp4_config},
    {.name = "nvfp4", .group = 16, .tensors = nvfp4, .config = nvfp4_config},
}};

}  // namespace

std::vector<std::string_view> synth_format_names() {
  std::vector<std::string_view> names;
  for (const SynthFormat& format : kFormats) {
    if (std::find(names.begin(), names.end(), format.name) == names.end())
      names.push_back(format.name);
  }
  return names;
}

const SynthFormat& find_synth_format(std::string_view name, std::string_view family) {
  const auto* found = std::find_if(kFormats.begin(), kFormats.end(), [&](const SynthFormat& f) {
    return f.name == name && (f.family.empty() || f.family == family);
  });
  GANTRY_CHECK(found != kFormats.end(), ErrorCode::kInvalidArgument,
               "--format: expected one of {}, found '{}'", fmt::join(synth_format_names(), ", "),
               name);
  return *found;
}

void check_fits(const SynthFormat& format, const MatrixSize& size, std::string_view what) {
  GANTRY_CHECK(format.group == 0 || size.in % format.group == 0, ErrorCode::kInvalidArgument,
               "--format {}: {} is [{}, {}]: rows of {} do not divide into groups of {}",
               format.name, what, size.out, size.in, size.in, format.group);
  GANTRY_CHECK(size.out % format.out_multiple == 0, ErrorCode::kInvalidArgument,
               "--format {}: {} is [{}, {}]: {} outputs do not fill words of {}", format.name, what,
               size.out, size.in, size.out, format.out_multiple);
}

}  // namespace gantry::cli
