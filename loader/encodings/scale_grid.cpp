#include "loader/encodings/scale_grid.h"

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "kernels/quant/element_formats.h"

namespace gantry {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

ScaleValues read_grid(const EncodedTensor& tensor, const MatrixSize& size, int64_t rows_per,
                      int64_t cols_per) {
  ScaleValues scales;
  scales.rows_per = rows_per;
  scales.cols_per = cols_per;
  scales.cols = ceil_div(size.in, cols_per);
  const int64_t expected = ceil_div(size.out, rows_per) * scales.cols;
  GANTRY_CHECK(tensor.num_elements() == expected, ErrorCode::kFormat,
               "{}: expected {} scales ({} x {} of [{}, {}] by {} x {}), found {}", tensor.name,
               expected, ceil_div(size.out, rows_per), scales.cols, size.out, size.in, rows_per,
               cols_per, shape_text(tensor.shape));
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

void require_tensor(const EncodedTensor& tensor, DType dtype, const std::vector<int64_t>& shape) {
  GANTRY_CHECK(tensor.dtype == dtype && tensor.shape == shape, ErrorCode::kFormat,
               "{}: expected {} {}, found {} {}", tensor.name, shape_text(shape), to_string(dtype),
               shape_text(tensor.shape), to_string(tensor.dtype));
}

}  // namespace gantry
