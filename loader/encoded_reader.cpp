#include "loader/encoded_reader.h"

#include <cstring>

#include "kernels/base/check.h"
#include "loader/expected_tensors.h"
#include "loader/tensor_geometry.h"

namespace gantry {
namespace {

int64_t bytes_of(const TensorSource& source) {
  const TensorInfo& info = source.tensor->info;
  const bool per_expert = source.ref.expert >= 0 || !is_expert_part(source.ref.part) ||
                          info.shape.empty() || info.shape[0] == 0;
  return info.num_bytes() / (per_expert ? 1 : info.shape[0]);
}

// gpt-oss: blocks and scales are [out, in] although the unquantized parameter is [in, out].
bool is_row_first(const TensorSource& source) {
  return source.ref.suffix == "blocks" || source.ref.suffix == "scales";
}

}  // namespace

std::string_view suffix_of(const TensorSource& source) {
  return source.ref.kind == TensorKind::kWeight ? std::string_view("weight") : source.ref.suffix;
}

std::vector<const TensorSource*> encoded_sources(const LayerTensors& tensors, int expert,
                                                 Part part) {
  std::vector<const TensorSource*> sources;
  if (const TensorSource* weight = tensors.expert_source(expert, part, TensorKind::kWeight)) {
    sources.push_back(weight);
  }
  const auto& encoded = tensors.matrices(expert).encoded[expert_part_index(part)];
  for (const auto& [suffix, source] : encoded)
    sources.push_back(source);
  return sources;
}

int64_t encoded_bytes(const LayerTensors& tensors, int expert, Part part) {
  int64_t bytes = 0;
  for (const TensorSource* source : encoded_sources(tensors, expert, part))
    bytes += bytes_of(*source);
  return bytes;
}

std::byte* ReadScratch::take(size_t size) {
  if (next_ == blocks_.size()) blocks_.emplace_back();
  Block& block = blocks_[next_++];
  if (block.size < size) {
    block = {};  // first: two of them are not needed at once
    block.data = std::make_unique_for_overwrite<std::byte[]>(size);
    block.size = size;
  }
  return block.data.get();
}

EncodedTensor EncodedReader::read(const TensorSource& source) {
  const TensorInfo& info = source.tensor->info;
  EncodedTensor tensor{source.name, info.dtype, info.shape, nullptr, info.block_type};
  const int64_t size = bytes_of(source);
  int64_t begin = info.begin;
  if (source.ref.expert < 0 && is_expert_part(source.ref.part)) {
    const TensorPattern& pattern = family_.tensors[static_cast<size_t>(source.ref.pattern)];
    GANTRY_CHECK(pattern.stacking == Stacking::kStacked3d && info.shape.size() >= 2 &&
                     info.shape[0] == layer_.num_experts,
                 ErrorCode::kFormat, "{}: expected [{}, ...], found {}", source.name,
                 layer_.num_experts, shape_text(info.shape));
    GANTRY_CHECK(pattern.orientation == Orientation::kOutIn || is_row_first(source),
                 ErrorCode::kUnsupported, "{}: quantized experts stored [in, out]", source.name);
    begin += expert_ * size;
    tensor.shape.erase(tensor.shape.begin());
  }
  std::byte* data = scratch_.take(static_cast<size_t>(size));
  checkpoint_.files()[static_cast<size_t>(source.tensor->file)].read(begin, data, size);
  bytes_read_ += size;
  tensor.data = data;
  take_half(source, tensor, static_cast<size_t>(size));
  return tensor;
}

void EncodedReader::take_half(const TensorSource& source, EncodedTensor& tensor, size_t size) {
  const TensorPattern& pattern = family_.tensors[static_cast<size_t>(source.ref.pattern)];
  const bool holds_both = pattern.part == Part::kW13 || pattern.part == Part::kSharedW13;
  if (!holds_both || tensor.num_elements() == 1) return;  // one scale is that of both
  const int64_t rows = tensor.shape[0];
  GANTRY_CHECK(rows > 0 && rows % 2 == 0, ErrorCode::kFormat, "{}: {} rows for gate and up",
               source.name, rows);
  const size_t row_bytes = size / static_cast<size_t>(rows);
  const bool is_gate = part_ == Part::kW1 || part_ == Part::kSharedW1;
  tensor.shape[0] = rows / 2;
  if (pattern.gate_up != GateUp::kInterleaved) {
    if (!is_gate) tensor.data += static_cast<size_t>(rows / 2) * row_bytes;
    return;
  }
  std::byte* half = scratch_.take(size / 2);
  for (size_t r = 0; r < static_cast<size_t>(rows / 2); ++r) {
    std::memcpy(half + r * row_bytes, tensor.data + (2 * r + (is_gate ? 0 : 1)) * row_bytes,
                row_bytes);
  }
  tensor.data = half;
}

}  // namespace gantry
