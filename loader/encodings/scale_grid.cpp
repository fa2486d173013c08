#include "loader/encodings/scale_grid.h"

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "kernels/quant/element_formats.h"

namespace gantry {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void check_count(const EncodedTensor& tensor, const MatrixSize& size, int64_t rows_per,
                 int64_t cols_per) {
  const int64_t rows = ceil_div(size.out, rows_per);
  const int64_t cols = ceil_div(size.in, cols_per);
  GANTRY_CHECK(tensor.num_elements() == rows * cols, ErrorCode::kFormat,
               "{}: expected {} scales ({} x {} of [{}, {}] by {} x {}), found {}", tensor.name,
               rows * cols, rows, cols, size.out, size.in, rows_per, cols_per,
               shape_text(tensor.shape));
}

ScaleValues read_grid(const EncodedTensor& tensor, const MatrixSize& size, int64_t rows_per,
                      int64_t cols_per) {
  ScaleValues scales;
  scales.rows_per = rows_per;
  scales.cols_per = cols_per;
  scales.cols = ceil_div(size.in, cols_per);
  check_count(tensor, size, rows_per, cols_per);
  scales.values = scale_values(tensor);
  return scales;
}

}  // namespace

std::vector<float> scale_values(const EncodedTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  const auto* bytes = reinterpret_cast<const uint8_t*>(tensor.data);
  const auto convert = [&](float (*value_of)(uint8_t)) {
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = value_of(bytes[i]);
  };
  switch (tensor.dtype) {
    case DType::kF8E4M3:
      convert([](uint8_t code) { return e4m3_to_f32(code); });
      break;
    case DType::kF8E5M2:
      convert([](uint8_t code) { return e5m2_to_f32(code); });
      break;
    case DType::kU8:
    case DType::kF8E8M0:
      convert([](uint8_t code) { return e8m0_to_f32(code); });
      break;
    default:
      GANTRY_CHECK(is_plain_float(tensor.dtype), ErrorCode::kFormat,
                   "{}: expected scales, found {} {}", tensor.name, shape_text(tensor.shape),
                   to_string(tensor.dtype));
      convert_to_f32(tensor.data, tensor.dtype, tensor.num_elements(), values.data());
  }
  return values;
}

ScaleValues read_scales(const EncodedTensor& tensor, const MatrixSize& size,
                        const QuantScheme& scheme) {
  switch (scheme.grid) {
    case ScaleGrid::kTensor:
      return read_grid(tensor, size, size.out, size.in);
    case ScaleGrid::kChannel:
      return read_grid(tensor, size, 1, size.in);
    case ScaleGrid::kBlock:
      return read_grid(tensor, size, scheme.block_rows, scheme.block_cols);
    case ScaleGrid::kGroup:
      return read_grid(tensor, size, 1, scheme.group_size > 0 ? scheme.group_size : size.in);
  }
  fail(ErrorCode::kInternal, "scale grid {}", static_cast<int>(scheme.grid));
}

ScaleValues read_group_scales(const EncodedTensor& tensor, const MatrixSize& size, int64_t group) {
  return read_grid(tensor, size, 1, group);
}

ScaleType scale_type_of(const EncodedTensor& tensor) {
  switch (tensor.dtype) {
    case DType::kF32:
      return ScaleType::kF32;
    case DType::kF16:
      return ScaleType::kF16;
    case DType::kBF16:
      return ScaleType::kBF16;
    case DType::kF8E4M3:
      return ScaleType::kE4M3;
    case DType::kU8:
    case DType::kF8E8M0:
      return ScaleType::kE8M0;
    default:
      fail(ErrorCode::kUnsupported, "{}: scales of type {}", tensor.name, to_string(tensor.dtype));
  }
}

void set_grid(WeightFormat& format, const QuantScheme& scheme, const MatrixSize& size,
              const EncodedTensor& scales) {
  const bool grouped =
      scheme.grid == ScaleGrid::kBlock ||
      (scheme.grid == ScaleGrid::kGroup && scheme.group_size > 0 && scheme.group_size < size.in);
  format.output_scale = !grouped;
  if (!grouped) return;
  format.group = scheme.grid == ScaleGrid::kBlock ? scheme.block_cols : scheme.group_size;
  format.scale = scale_type_of(scales);
}

void set_file_scales(CodedMatrix& coded, const EncodedTensor& tensor) {
  check_count(tensor, coded.size, 1, coded.format.group);
  GANTRY_CHECK(scale_type_of(tensor) == coded.format.scale, ErrorCode::kFormat,
               "{}: scales of type {}", tensor.name, to_string(tensor.dtype));
  coded.file_scales = tensor.data;
}

void set_scales(CodedMatrix& coded, const EncodedTensor& tensor, const QuantScheme& scheme) {
  const int64_t groups = coded.num_groups();
  const int64_t out = coded.size.out;
  if (groups > 0 && scheme.grid == ScaleGrid::kGroup) return set_file_scales(coded, tensor);
  const ScaleValues scales = read_scales(tensor, coded.size, scheme);
  if (groups == 0) {
    coded.output_scales.resize(static_cast<size_t>(out));
    for (int64_t o = 0; o < out; ++o)
      coded.output_scales[static_cast<size_t>(o)] = scales.at(o, 0);
    return;
  }
  coded.scales.resize(static_cast<size_t>(out * groups));
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t g = 0; g < groups; ++g)
      coded.scales[static_cast<size_t>(o * groups + g)] = scales.at(o, g * coded.format.group);
  }
}

void require_tensor(const EncodedTensor& tensor, DType dtype, const std::vector<int64_t>& shape) {
  GANTRY_CHECK(tensor.dtype == dtype && tensor.shape == shape, ErrorCode::kFormat,
               "{}: expected {} {}, found {} {}", tensor.name, shape_text(shape), to_string(dtype),
               shape_text(tensor.shape), to_string(tensor.dtype));
}

}  // namespace gantry
