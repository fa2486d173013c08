#include "kernels/grouped_gemm/packed_layout.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/base/cpu_features.h"
#include "kernels/base/float_convert.h"
#include "kernels/grouped_gemm/pack_codes.h"
#include "kernels/grouped_gemm/pack_pairs.h"

namespace gantry {
namespace {

template <typename Element>
void copy_element(const std::byte* source, std::byte* target) {
  std::memcpy(target, source, sizeof(Element));
}

// Rows that follow each other in one half of a panel.
struct RowGroup {
  int64_t begin;  // in the block
  int64_t count;
  std::byte* target;  // lane of the first row, column 0
};

RowGroup group_at(const PackedLayout& layout, const StridedBlock& block, int64_t row_begin,
                  int64_t begin, std::byte* packed) {
  const int64_t row = row_begin + begin;
  return {begin, std::min(block.rows - begin, layout.rows_in_half(row)),
          packed + layout.offset_bytes(row, 0)};
}

void pack_pairs(const PackPairs& call) noexcept {
  static const auto run =
      host_isas().contains(Isa::kAvx512) ? avx512::pack_pairs : scalar::pack_pairs;
  run(call);
}

template <typename Element>
void pack_elements(const PackedLayout& layout, const StridedBlock& block, const RowGroup& group,
                   int64_t col_begin, int64_t first, int64_t last) {
  const int64_t lane_bytes = (layout.offset_in_panel(1, 0) - layout.offset_in_panel(0, 0)) *
                             static_cast<int64_t>(sizeof(Element));
  for (int64_t c = first; c < last; ++c) {
    std::byte* target = group.target + layout.offset_in_panel(0, col_begin + c) *
                                           static_cast<int64_t>(sizeof(Element));
    const std::byte* source = block.data + (group.begin * block.row_stride + c * block.col_stride) *
                                               static_cast<int64_t>(sizeof(Element));
    for (int64_t r = 0; r < group.count; ++r) {
      copy_element<Element>(source + r * block.row_stride * static_cast<int64_t>(sizeof(Element)),
                            target + r * lane_bytes);
    }
  }
}

// Columns in steps that keep the lines of all rows in the L1 cache.
template <typename Element>
void pack_group(const PackedLayout& layout, const StridedBlock& block, const RowGroup& group,
                int64_t col_begin) {
  const bool pairs = layout.dtype == DType::kBF16 && block.col_stride == 1 && col_begin % 2 == 0;
  const int64_t paired = pairs ? block.cols / 2 * 2 : 0;
  if (pairs) {
    pack_pairs({.source = block.data + group.begin * block.row_stride * 2,
                .row_stride = block.row_stride * 2,
                .num_rows = group.count,
                .num_pairs = paired / 2,
                .target = group.target + layout.offset_in_panel(0, col_begin) * 2});
  }
  constexpr int64_t kStep = 64;
  for (int64_t c = paired; c < block.cols; c += kStep) {
    pack_elements<Element>(layout, block, group, col_begin, c, std::min(block.cols, c + kStep));
  }
}

std::string_view to_string(WeightElement element) {
  switch (element) {
    case WeightElement::kE4M3:
      return "e4m3";
    case WeightElement::kInt8:
      return "int8";
    case WeightElement::kInt4:
      return "int4";
    case WeightElement::kE2M1:
      return "e2m1";
    case WeightElement::kE5M2:
      return "e5m2";
    case WeightElement::kUInt4:
      return "uint4";
    case WeightElement::kNF4:
      return "nf4";
    case WeightElement::kFP4:
      return "fp4";
    case WeightElement::kIQ4:
      return "iq4";
    case WeightElement::kPlain:
      break;
  }
  return "plain";
}

std::string_view to_string(ScaleType type) {
  switch (type) {
    case ScaleType::kF32:
      return "f32";
    case ScaleType::kF16:
      return "f16";
    case ScaleType::kBF16:
      return "bf16";
    case ScaleType::kE8M0:
      return "e8m0";
    case ScaleType::kE4M3:
      return "e4m3";
    case ScaleType::kInt8:
      return "int8";
    case ScaleType::kNone:
      break;
  }
  return "no";
}

int64_t align_line(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

std::string to_string(const WeightFormat& format) {
  std::string text(to_string(format.element));
  if (format.grouped()) text += fmt::format(" g{} {}", format.group, to_string(format.scale));
  if (format.super_group > 0) text += fmt::format(" x f16 g{}", format.super_group);
  if (format.zero_points) text += " zero points";
  if (format.minimums) text += " minimums";
  if (format.output_scale) text += format.grouped() ? " + f32 a row" : " f32 a row";
  return text;
}

std::string to_string(const PackedLayout& layout) {
  return layout.format.coded() ? to_string(layout.format) : std::string(to_string(layout.dtype));
}

CodedPanel PackedLayout::coded_panel() const noexcept {
  CodedPanel panel{.format = format};
  if (format.grouped()) panel.num_groups = (padded_k() + format.group - 1) / format.group;
  panel.scale_bytes = kPanelWidth * size_of(format.scale);
  const int64_t scales = align_line(panel.num_groups * panel.scale_bytes);
  panel.zeros = scales;
  panel.minimums =
      panel.zeros + (format.zero_points ? align_line(panel.num_groups * kPanelWidth) : 0);
  panel.super_scales = panel.minimums + (format.minimums ? scales : 0);
  if (format.super_group > 0) {
    panel.num_supers = (padded_k() + format.super_group - 1) / format.super_group;
    while (format.group << panel.super_shift < format.super_group)
      ++panel.super_shift;
  }
  const int64_t supers = panel.num_supers * kPanelWidth * 2;
  panel.super_minimums = panel.super_scales + supers;
  panel.output_scales = panel.super_minimums + (format.minimums ? supers : 0);
  panel.codes = panel.output_scales + (format.output_scale ? kPanelWidth * 4 : 0);
  panel.bytes = panel.codes + padded_k() * kPanelWidth * bits_of(format.element) / 8;
  return panel;
}

int64_t PackedLayout::owned_bytes() const noexcept {
  if (!format.coded()) return n * k * size_of(dtype);
  const int64_t groups = format.grouped() ? (k + format.group - 1) / format.group : 0;
  const int64_t pair = format.minimums ? 2 : 1;
  const int64_t group_bytes = pair * size_of(format.scale) + (format.zero_points ? 1 : 0);
  const int64_t supers =
      format.super_group > 0 ? (k + format.super_group - 1) / format.super_group : 0;
  return n * ((k * bits_of(format.element) + 7) / 8 + groups * group_bytes + supers * pair * 2 +
              (format.output_scale ? 4 : 0));
}

void pack_block(const PackedLayout& layout, const StridedBlock& block, int64_t row_begin,
                int64_t col_begin, std::byte* packed) noexcept {
  for (int64_t row = 0; row < block.rows;) {
    const RowGroup group = group_at(layout, block, row_begin, row, packed);
    if (layout.dtype == DType::kF32) {
      pack_group<uint32_t>(layout, block, group, col_begin);
    } else {
      pack_group<uint16_t>(layout, block, group, col_begin);
    }
    row += group.count;
  }
}

void pack_matrix(const PackedLayout& layout, const float* matrix, std::byte* packed) {
  std::vector<std::byte> rounded(static_cast<size_t>(layout.n * layout.k * size_of(layout.dtype)));
  convert_from_f32(matrix, layout.n * layout.k, layout.dtype, rounded.data());
  pack_block(layout, {rounded.data(), layout.n, layout.k, layout.k, 1}, 0, 0, packed);
}

namespace {

std::vector<float> unpack_coded(const PackedLayout& layout, const std::byte* packed) {
  const CodedPanel panel = layout.coded_panel();
  std::vector<float> matrix(static_cast<size_t>(layout.n * layout.k));
  for (int64_t row = 0; row < layout.n; ++row) {
    const PackedLayout::Place place = layout.place_of(row);
    const std::byte* data = packed + place.panel * panel.bytes;
    const float output = layout.format.output_scale
                             ? load_as_f32(data + panel.output_scales, DType::kF32, place.lane)
                             : 1.0F;
    for (int64_t k = 0; k < layout.k; ++k) {
      matrix[static_cast<size_t>(row * layout.k + k)] =
          weight_at(panel, data, place.lane, k) * output;
    }
  }
  return matrix;
}

}  // namespace

std::vector<float> unpack_matrix(const PackedLayout& layout, const std::byte* packed) {
  if (layout.format.coded()) return unpack_coded(layout, packed);
  std::vector<float> matrix(static_cast<size_t>(layout.n * layout.k));
  for (int64_t row = 0; row < layout.n; ++row) {
    const PackedLayout::Place place = layout.place_of(row);
    const std::byte* panel = packed + place.panel * layout.panel_bytes();
    for (int64_t k = 0; k < layout.k; ++k) {
      matrix[static_cast<size_t>(row * layout.k + k)] =
          load_as_f32(panel, layout.dtype, layout.offset_in_panel(place.lane, k));
    }
  }
  return matrix;
}

}  // namespace gantry
