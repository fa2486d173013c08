#include "loader/encodings/scale_views.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "kernels/base/check.h"
#include "loader/encodings/scale_grid.h"

namespace gantry {
namespace {

// Index of the scale that covers element (out, in).
using ScaleIndex = std::function<int64_t(int64_t out, int64_t in)>;

ScaleIndex grid_index(const ScaleValues& grid) {
  return [rows_per = grid.rows_per, cols_per = grid.cols_per, cols = grid.cols](
             int64_t o, int64_t i) { return o / rows_per * cols + i / cols_per; };
}

ScaleIndex index_by_scheme(const QuantScheme& scheme, const EncodedMatrix& matrix,
                           const EncodedTensor& scales) {
  return grid_index(read_scales(scales, matrix.size, scheme));
}

template <int64_t kGroup>
ScaleIndex index_by_group(const QuantScheme& /*scheme*/, const EncodedMatrix& matrix,
                          const EncodedTensor& scales) {
  return grid_index(read_group_scales(scales, matrix.size, kGroup));
}

// Groups of inputs that the matrix lists itself.
int64_t listed_group(const EncodedTensor& g_idx, int64_t in) {
  int32_t group = 0;
  std::memcpy(&group, g_idx.data + in * 4, 4);
  return group;
}

// scales [groups, out] of GPTQ and AWQ.
ScaleIndex index_groups_first(const QuantScheme& scheme, const EncodedMatrix& matrix,
                              const EncodedTensor& /*scales*/) {
  const int64_t group = scheme.group_size > 0 ? scheme.group_size : matrix.size.in;
  const EncodedTensor* g_idx =
      scheme.int_packing == IntPacking::kGptq ? matrix.find("g_idx") : nullptr;
  return [group, g_idx, out = matrix.size.out](int64_t o, int64_t i) {
    return (g_idx != nullptr ? listed_group(*g_idx, i) : i / group) * out + o;
  };
}

ScaleIndex index_packed_int(const QuantScheme& scheme, const EncodedMatrix& matrix,
                            const EncodedTensor& scales) {
  const EncodedTensor* g_idx = matrix.find("weight_g_idx");
  const ScaleValues grid = read_scales(scales, matrix.size, scheme);
  if (g_idx == nullptr || grid.cols == 1) return grid_index(grid);
  return [g_idx, cols = grid.cols](int64_t o, int64_t i) {
    return o * cols + listed_group(*g_idx, i);
  };
}

ScaleIndex index_flat(const QuantScheme& /*scheme*/, const EncodedMatrix& matrix,
                      const EncodedTensor& scales) {
  const int64_t block = matrix.size.out * matrix.size.in / scales.num_elements();
  return [block, in = matrix.size.in](int64_t o, int64_t i) { return (o * in + i) / block; };
}

ScaleIndex index_rows(const QuantScheme& /*scheme*/, const EncodedMatrix& /*matrix*/,
                      const EncodedTensor& /*scales*/) {
  return [](int64_t o, int64_t /*i*/) { return o; };
}

// A row for each of the encodings that encoded_matrix.cpp lists.
struct Row {
  std::string_view encoding;
  std::array<std::string_view, 2> scales;  // the first that is there is the one that is read
  bool integer;
  ScaleIndex (*index)(const QuantScheme& scheme, const EncodedMatrix& matrix,
                      const EncodedTensor& scales);
};
constexpr std::array<Row, 13> kRows = {
    {{"gptq", {"scales"}, true, index_groups_first},
     {"awq", {"scales"}, true, index_groups_first},
     {"pack-quantized", {"weight_scale"}, true, index_packed_int},
     {"int4 row pairs", {"weight_scale"}, true, index_by_scheme},
     {"fp8", {"weight_scale_inv", "weight_scale"}, false, index_by_scheme},
     {"fp8 e5m2", {"weight_scale_inv", "weight_scale"}, false, index_by_scheme},
     {"mxfp8", {"weight_scale"}, false, index_by_group<32>},
     {"int8", {"weight_scale"}, true, index_by_scheme},
     {"mxfp4", {"scales", "weight_scale"}, false, index_by_group<32>},
     {"nvfp4", {"weight_scale"}, false, index_by_group<16>},
     {"bitsandbytes 4 bits", {"weight.absmax"}, false, index_flat},
     {"bitsandbytes int8", {"SCB"}, false, index_rows},
     {"gguf", {}, true, nullptr}}};  // inside the blocks

constexpr std::array<std::string_view, 2> kGlobalScales = {"weight_scale_2", "weight_global_scale"};

// The number 1 in a dtype of scales, little endian.
std::vector<std::byte> ones(const EncodedTensor& tensor) {
  uint32_t bits = 0;
  switch (tensor.dtype) {
    case DType::kF32:
      bits = 0x3f800000u;
      break;
    case DType::kF16:
      bits = 0x3c00u;
      break;
    case DType::kBF16:
      bits = 0x3f80u;
      break;
    case DType::kF8E4M3:
      bits = 0x38u;
      break;
    case DType::kF8E5M2:
      bits = 0x3cu;
      break;
    default:
      bits = 127u;  // e8m0
  }
  const auto size = static_cast<size_t>(size_of(tensor.dtype));
  std::vector<std::byte> bytes(static_cast<size_t>(tensor.num_elements()) * size);
  for (size_t at = 0; at < bytes.size(); at += size)
    std::memcpy(bytes.data() + at, &bits, size);
  return bytes;
}

// Codes less their zero points: the matrix decoded as if each of its scales were 1 (code books keep
// their values).
std::vector<float> unscaled(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  EncodedMatrix plain = matrix;
  std::vector<std::vector<std::byte>> memory;
  const auto neutralize = [&](std::string_view suffix) {
    const auto found = plain.tensors.find(suffix);
    if (found == plain.tensors.end()) return;
    memory.push_back(ones(found->second));
    found->second.data = memory.back().data();
  };
  for (const Row& row : kRows) {
    for (const std::string_view suffix : row.scales)
      neutralize(suffix);
  }
  for (const std::string_view suffix : kGlobalScales)
    neutralize(suffix);
  return decode_matrix(scheme, plain);
}

std::function<std::vector<float>()> peaks(const QuantScheme& scheme, const EncodedMatrix& matrix,
                                          size_t count, ScaleIndex index) {
  return [&scheme, &matrix, count, index = std::move(index)] {
    const std::vector<float> codes = unscaled(scheme, matrix);
    std::vector<float> largest(count, 0.0F);
    for (int64_t o = 0; o < matrix.size.out; ++o) {
      for (int64_t i = 0; i < matrix.size.in; ++i) {
        const float code = std::fabs(codes[static_cast<size_t>(o * matrix.size.in + i)]);
        float& peak = largest[static_cast<size_t>(index(o, i))];
        if (code > peak) peak = code;  // not true of NaN, which is found as a weight
      }
    }
    return largest;
  };
}

}  // namespace

std::vector<ScaleView> scale_views(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  const std::string_view encoding = find_encoding(scheme, matrix).name;
  const auto* row = std::find_if(kRows.begin(), kRows.end(),
                                 [&](const Row& r) { return r.encoding == encoding; });
  GANTRY_CHECK(row != kRows.end(), ErrorCode::kInternal, "scales of encoding '{}'", encoding);
  std::vector<ScaleView> views;
  const auto add = [&](std::string_view suffix, const EncodedTensor& tensor) -> ScaleView& {
    ScaleView& view = views.emplace_back();
    view.suffix = suffix;
    view.tensor = &tensor;
    view.values = scale_values(tensor);
    return view;
  };
  // Double quantization: the scales are codes themselves, with an offset, so that a zero among
  // their scales erases nothing.
  const bool nested = matrix.find("weight.nested_absmax") != nullptr;
  if (nested) {
    add("weight.nested_absmax", matrix.require("weight.nested_absmax"));
    add("weight.nested_quant_map", matrix.require("weight.nested_quant_map")).may_be_negative =
        true;
  }
  for (const std::string_view suffix : row->scales) {
    const EncodedTensor* tensor = nested || suffix.empty() ? nullptr : matrix.find(suffix);
    if (tensor == nullptr) continue;
    ScaleView& view = add(suffix, *tensor);
    view.may_be_negative = row->integer;
    view.code_peaks =
        peaks(scheme, matrix, view.values.size(), row->index(scheme, matrix, *tensor));
    break;
  }
  for (const std::string_view suffix : kGlobalScales) {
    const EncodedTensor* tensor = matrix.find(suffix);
    if (tensor == nullptr) continue;
    ScaleView& view = add(suffix, *tensor);
    view.is_divisor = suffix == "weight_global_scale";
    view.code_peaks = peaks(scheme, matrix, view.values.size(), [](int64_t, int64_t) { return 0; });
  }
  if (const EncodedTensor* tensor = matrix.find("pre_quant_scale")) {  // [in]
    ScaleView& view = add("pre_quant_scale", *tensor);
    view.code_peaks =
        peaks(scheme, matrix, view.values.size(), [](int64_t, int64_t i) { return i; });
  }
  if (const EncodedTensor* tensor = matrix.find("weight.quant_map")) {
    add("weight.quant_map", *tensor).may_be_negative = true;
  }
  return views;
}

std::string index_text(const EncodedTensor& tensor, int64_t index) {
  std::string text;
  for (size_t d = tensor.shape.size(); d-- > 0;) {
    std::string position = std::to_string(index % tensor.shape[d]);
    if (!text.empty()) position += ", ";
    position += text;
    text = std::move(position);
    index /= tensor.shape[d];
  }
  std::string bracketed = "[";
  bracketed += text;
  bracketed += "]";
  return bracketed;
}

}  // namespace gantry
