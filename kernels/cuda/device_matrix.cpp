#include "kernels/cuda/device_matrix.h"

#include "kernels/base/check.h"

namespace gantry {
namespace {

DeviceElement device_element(const PackedLayout& layout) {
  switch (layout.format.element) {
    case WeightElement::kE4M3:
      return DeviceElement::kE4M3;
    case WeightElement::kInt8:
      return DeviceElement::kInt8;
    case WeightElement::kInt4:
      return DeviceElement::kInt4;
    case WeightElement::kE2M1:
      return DeviceElement::kE2M1;
    case WeightElement::kPlain:
      break;
    default:
      fail(ErrorCode::kUnsupported, "GPU kernels do not read {}", to_string(layout.format));
  }
  return layout.dtype == DType::kF16 ? DeviceElement::kF16 : DeviceElement::kBF16;
}

}  // namespace

DeviceMatrix device_matrix(const PackedLayout& layout) {
  const WeightFormat& format = layout.format;
  GANTRY_CHECK(!format.grouped() || format.group % kTileRows == 0, ErrorCode::kUnsupported,
               "GPU kernels read groups of a multiple of 16 inputs, found {}", to_string(format));
  GANTRY_CHECK(!format.minimums && format.super_group == 0, ErrorCode::kUnsupported,
               "GPU kernels do not read {}", to_string(format));
  const bool integers =
      format.element == WeightElement::kInt4 || format.element == WeightElement::kInt8;
  // A code less its zero point must be exact in bf16: integers up to 256 are.
  GANTRY_CHECK(!format.zero_points || integers, ErrorCode::kUnsupported,
               "GPU kernels read zero points of integers only, found {}", to_string(format));
  DeviceMatrix m;
  m.element = device_element(layout);
  m.scale = format.scale;
  m.gated = layout.gated;
  m.zero_points = format.grouped() && format.zero_points;
  m.output_scale = format.output_scale;
  m.group = format.grouped() ? format.group : 0;
  m.n = layout.n;
  m.k = layout.k;
  m.padded_k = align_to(layout.k, kDeviceDepth);
  const int64_t outputs = align_to(layout.num_outputs(), kDeviceDepth);
  m.num_tiles = outputs / (m.gated ? kTileRows / 2 : kTileRows);
  m.num_groups = m.group > 0 ? ceil_div(m.padded_k, m.group) : 0;
  const int64_t places = m.num_tiles * m.num_groups * kTileRows;
  m.zeros = align_to(places * size_of(m.scale), kDeviceAlignment);
  m.output_scales = align_to(m.zeros + (m.zero_points ? places : 0), kDeviceAlignment);
  m.codes = align_to(m.output_scales + (m.output_scale ? m.num_tiles * kTileRows * 4 : 0),
                     kDeviceAlignment);
  m.bytes = m.codes + align_to(m.num_tiles * m.num_chunks() * 512, kDeviceAlignment);
  return m;
}

DeviceSlotLayout device_slot_layout(const PackedLayout& w13, const PackedLayout& w2, bool bias) {
  DeviceSlotLayout layout;
  layout.w13 = device_matrix(w13);
  layout.w2 = device_matrix(w2);
  layout.w2_offset = layout.w13.bytes;
  int64_t end = layout.w2_offset + layout.w2.bytes;
  if (bias) {
    layout.b13_offset = end;
    end = align_to(end + w13.n * 4, kDeviceAlignment);
    layout.b2_offset = end;
    end = align_to(end + w2.n * 4, kDeviceAlignment);
  }
  layout.stride_bytes = end;
  return layout;
}

}  // namespace gantry
