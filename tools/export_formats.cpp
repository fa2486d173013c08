#include "tools/export_formats.h"

#include <algorithm>

#include "kernels/base/check.h"

// One row a way of writing. The names, dtypes and shapes are those of the exporters' own files,
// which tests compare.

namespace gantry::cli {
namespace {

using Tensors = std::vector<ExportTensor>;
using Layout = ExportLayout;
using Role = ExportRole;

const ExportTensor kByteWeight{"weight", Role::kCodes, DType::kF8E4M3, Layout::kBytes};
const ExportTensor kInt8Weight{"weight", Role::kCodes, DType::kI8, Layout::kBytes};
const ExportTensor kGridScale{"weight_scale", Role::kScales, DType::kBF16, Layout::kGrid};
const ExportTensor kPackedFp4{"weight_packed", Role::kCodes, DType::kU8, Layout::kNibbles};
const ExportTensor kPackedInt{"weight_packed", Role::kCodes, DType::kI32, Layout::kRowWords};
const ExportTensor kWeightShape{"weight_shape", Role::kShape, DType::kI64, Layout::kPair};
const ExportTensor kExponents{"weight_scale", Role::kScales, DType::kU8, Layout::kGrid};
const ExportTensor kFp8GroupScale{"weight_scale", Role::kScales, DType::kF8E4M3, Layout::kGrid};
const ExportTensor kInputDivisor{"input_global_scale", Role::kInputScale, DType::kF32,
                                 Layout::kOne};
const ExportTensor kInputScale{"input_scale", Role::kInputScale, DType::kF32, Layout::kScalar};
const ExportTensor kPreQuantScale{"pre_quant_scale", Role::kInputFactors, DType::kBF16,
                                  Layout::kInputs};
const ExportTensor kGptqIndex{"g_idx", Role::kGroupIndex, DType::kI32, Layout::kInputs};

WeightQuantization fp8(ScaleType scale, int64_t group, int64_t rows) {
  return {.element = WeightElement::kE4M3, .scale = scale, .group = group, .rows = rows};
}

WeightQuantization integers(WeightElement element, ScaleType scale, int64_t group, bool zeros) {
  return {.element = element, .scale = scale, .group = group, .zero_points = zeros};
}

WeightQuantization fp4(ScaleType scale, int64_t group, bool divides = false) {
  return {.element = WeightElement::kE2M1, .scale = scale, .group = group, .divides = divides};
}

// ---- compressed-tensors (llm-compressor 0.14) -------------------------------------------------

ExportFormat compressed(std::string_view name, std::string_view algorithm,
                        const WeightQuantization& quantization, Tensors tensors,
                        ExportActivations activations) {
  return {.name = name,
          .matrix = {quantization, std::move(tensors)},
          .names = ExpertNames::kGateUpDown,
          .share_gate_up = quantization.two_levels(),
          .activations = activations,
          .algorithm = algorithm,
          .config = compressed_tensors_config};
}

ExportFormat packed_integers(std::string_view name, WeightElement element, int64_t group,
                             bool zeros) {
  Tensors tensors = {kPackedInt, kGridScale, kWeightShape};
  if (zeros)
    tensors.push_back({"weight_zero_point", Role::kZeros, DType::kI32, Layout::kZeroColumns});
  return compressed(name, "pack-quantized", integers(element, ScaleType::kBF16, group, zeros),
                    std::move(tensors), ExportActivations::kNone);
}

ExportFormat nvfp4_compressed(std::string_view name, bool quantized_inputs) {
  Tensors tensors = {
      kPackedFp4, kFp8GroupScale,
      ExportTensor{"weight_global_scale", Role::kSecondScale, DType::kF32, Layout::kOne}};
  if (quantized_inputs) tensors.push_back(kInputDivisor);
  return compressed(name, "nvfp4-pack-quantized", fp4(ScaleType::kE4M3, 16, /*divides=*/true),
                    std::move(tensors),
                    quantized_inputs ? ExportActivations::kStatic : ExportActivations::kNone);
}

// ---- GPTQModel 7.7 ----------------------------------------------------------------------------

// The first format stores zero points less one.
ExportFormat gptq(std::string_view name, WeightElement element, bool zeros) {
  WeightQuantization quantization = integers(element, ScaleType::kF16, 128, zeros);
  quantization.smallest_zero = 1;
  return {.name = name,
          .matrix = {quantization,
                     {{"qweight", Role::kCodes, DType::kI32, Layout::kInWords},
                      {"qzeros", Role::kZeros, DType::kI32, Layout::kZeroRows},
                      {"scales", Role::kScales, DType::kF16, Layout::kGroupsFirst},
                      kGptqIndex}},
          .names = ExpertNames::kGateUpDown,
          .algorithm = "gptq",
          .config = gptqmodel_config};
}

ExportFormat awq() {
  return {.name = "awq",
          .matrix = {integers(WeightElement::kInt4, ScaleType::kBF16, 128, /*zeros=*/true),
                     {{"qweight", Role::kCodes, DType::kI32, Layout::kOutWords},
                      {"qzeros", Role::kZeros, DType::kI32, Layout::kZeroAwq},
                      {"scales", Role::kScales, DType::kBF16, Layout::kGroupsFirst}}},
          .names = ExpertNames::kGateUpDown,
          .algorithm = "awq",
          .config = gptqmodel_config};
}

// ---- ModelOpt 0.47 ----------------------------------------------------------------------------

ExportFormat modelopt(std::string_view name, std::string_view algorithm,
                      const WeightQuantization& quantization, Tensors tensors,
                      bool quantized_inputs) {
  if (quantized_inputs) tensors.push_back(kInputScale);
  const bool shares = quantization.two_levels() || quantization.group == 0;
  return {.name = name,
          .matrix = {quantization, std::move(tensors)},
          .share_gate_up = shares,
          .activations = quantized_inputs ? ExportActivations::kStatic : ExportActivations::kNone,
          .algorithm = algorithm,
          .config = modelopt_config};
}

ExportFormat nvfp4_modelopt(std::string_view name, std::string_view algorithm,
                            bool quantized_inputs) {
  return modelopt(
      name, algorithm, fp4(ScaleType::kE4M3, 16),
      {ExportTensor{"weight", Role::kCodes, DType::kU8, Layout::kNibbles}, kFp8GroupScale,
       ExportTensor{"weight_scale_2", Role::kSecondScale, DType::kF32, Layout::kScalar}},
      quantized_inputs);
}

// With a multiplier of the inputs for AWQ's scales, so that they need not be folded into what is in
// front of the matrix.
ExportFormat with_input_factors(ExportFormat format) {
  format.matrix.tensors.push_back(kPreQuantScale);
  return format;
}

// -------------------------------------------------------------------------------------------------

std::vector<ExportFormat> make_formats() {
  std::vector<ExportFormat> formats;
  formats.push_back({.name = "bf16"});
  formats.push_back(
      {.name = "fp8-block",
       .matrix = {fp8(ScaleType::kF32, 128, 128),
                  {kByteWeight, {"weight_scale_inv", Role::kScales, DType::kF32, Layout::kGrid}}},
       .activations = ExportActivations::kGroup,
       .config = fp8_block_config});
  formats.push_back(compressed("fp8-channel", "float-quantized", fp8(ScaleType::kBF16, 0, 1),
                               {kByteWeight, kGridScale}, ExportActivations::kToken));
  formats.push_back(modelopt(
      "fp8-tensor", "FP8", fp8(ScaleType::kF32, 0, 0),
      {kByteWeight, ExportTensor{"weight_scale", Role::kScales, DType::kF32, Layout::kScalar}},
      /*quantized_inputs=*/true));
  formats.push_back(compressed(
      "fp8-static", "float-quantized", fp8(ScaleType::kBF16, 0, 0),
      {kByteWeight, ExportTensor{"weight_scale", Role::kScales, DType::kBF16, Layout::kOne},
       ExportTensor{"input_scale", Role::kInputScale, DType::kBF16, Layout::kOne}},
      ExportActivations::kStatic));
  formats.push_back(compressed("int8", "int-quantized",
                               integers(WeightElement::kInt8, ScaleType::kBF16, 0, false),
                               {kInt8Weight, kGridScale}, ExportActivations::kToken));
  formats.push_back(packed_integers("int8-g128", WeightElement::kInt8, 128, false));
  formats.push_back(packed_integers("int4-g128", WeightElement::kInt4, 128, false));
  formats.push_back(packed_integers("int4-g32", WeightElement::kInt4, 32, false));
  formats.push_back(packed_integers("int4-asym", WeightElement::kInt4, 128, true));
  formats.push_back(awq());
  formats.push_back(gptq("gptq", WeightElement::kInt4, false));
  formats.push_back(gptq("gptq-asym", WeightElement::kInt4, true));
  formats.push_back(gptq("gptq-int8", WeightElement::kInt8, false));
  formats.push_back({.name = "mxfp4",
                     .family = "gpt_oss",
                     .matrix = {fp4(ScaleType::kE8M0, 32),
                                {{"blocks", Role::kCodes, DType::kU8, Layout::kBlocks},
                                 {"scales", Role::kScales, DType::kU8, Layout::kGrid}}},
                     .stacked = true,
                     .config = gpt_oss_mxfp4_config});
  formats.push_back(compressed("mxfp4", "mxfp4-pack-quantized", fp4(ScaleType::kE8M0, 32),
                               {kPackedFp4, kExponents}, ExportActivations::kGroup));
  formats.push_back(compressed("mxfp4-a16", "mxfp4-pack-quantized", fp4(ScaleType::kE8M0, 32),
                               {kPackedFp4, kExponents}, ExportActivations::kNone));
  formats.push_back(compressed("mxfp8", "mxfp8-quantized", fp8(ScaleType::kE8M0, 32, 1),
                               {kByteWeight, kExponents}, ExportActivations::kGroup));
  formats.push_back(nvfp4_modelopt("nvfp4", "NVFP4", true));
  formats.push_back(nvfp4_modelopt("nvfp4-a16", "W4A16_NVFP4", false));
  formats.push_back(with_input_factors(nvfp4_modelopt("nvfp4-awq", "NVFP4_AWQ", true)));
  formats.push_back(with_input_factors(
      modelopt("int4-awq", "W4A16_AWQ",
               integers(WeightElement::kInt4, ScaleType::kF32, 128, /*zeros=*/false),
               {ExportTensor{"weight", Role::kCodes, DType::kU8, Layout::kRowPairs},
                ExportTensor{"weight_scale", Role::kScales, DType::kF32, Layout::kGrid}},
               /*quantized_inputs=*/false)));
  formats.push_back(nvfp4_compressed("nvfp4-ct", true));
  formats.push_back(nvfp4_compressed("nvfp4-ct-a16", false));
  return formats;
}

}  // namespace

const std::vector<ExportFormat>& export_formats() {
  static const std::vector<ExportFormat> formats = make_formats();
  return formats;
}

std::vector<std::string_view> export_format_names() {
  std::vector<std::string_view> names;
  for (const ExportFormat& format : export_formats()) {
    if (std::find(names.begin(), names.end(), format.name) == names.end())
      names.push_back(format.name);
  }
  return names;
}

ExportFormat find_export_format(std::string_view name, std::string_view family, int64_t group) {
  const auto& formats = export_formats();
  const auto found = std::find_if(formats.begin(), formats.end(), [&](const ExportFormat& f) {
    return f.name == name && (f.family.empty() || f.family == family);
  });
  GANTRY_CHECK(found != formats.end(), ErrorCode::kInvalidArgument,
               "--format: expected one of {}, found '{}'", fmt::join(export_format_names(), ", "),
               name);
  ExportFormat format = *found;
  WeightQuantization& quantization = format.matrix.quantization;
  if (group == 0 || group == quantization.group) return format;
  GANTRY_CHECK(quantization.is_integer() && quantization.group > 0, ErrorCode::kInvalidArgument,
               "--group-size: the groups of {} are as they are", name);
  GANTRY_CHECK(group >= 16 && group % 8 == 0, ErrorCode::kInvalidArgument,
               "--group-size: expected a multiple of 8 from 16 on, found {}", group);
  quantization.group = group;
  return format;
}

void check_fits(const ExportFormat& format, const MatrixSize& size, std::string_view what) {
  const std::string reason = misfit(format.matrix, size);
  GANTRY_CHECK(reason.empty(), ErrorCode::kInvalidArgument, "--format {}: {} is [{}, {}]: {}",
               format.name, what, size.out, size.in, reason);
}

TensorRef respelled(const ExportFormat& format, const FamilySpec& family, TensorRef ref) {
  if (format.names == ExpertNames::kFamily) return ref;
  const auto& patterns = family.tensors;
  const Stacking stacking = patterns[static_cast<size_t>(ref.pattern)].stacking;
  for (size_t p = 0; p < patterns.size(); ++p) {
    if (patterns[p].part == ref.part && patterns[p].stacking == stacking &&
        patterns[p].name.ends_with("_proj")) {
      ref.pattern = static_cast<int>(p);
      break;
    }
  }
  return ref;
}

}  // namespace gantry::cli
