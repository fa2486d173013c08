#include "loader/gguf.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "kernels/base/check.h"
#include "loader/checked_math.h"
#include "loader/encodings/ggml_types.h"

namespace gantry {
namespace {

// Names are those of llama.cpp for every architecture.
bool is_router_or_shared_expert(const std::string& name) {
  return name.find(".ffn_gate_inp") != std::string::npos ||
         name.find("_shexp.") != std::string::npos;
}

}  // namespace

GgufFile::GgufFile(const std::filesystem::path& path) : path_(path) {
  OpenedFile file = open_regular_file(path);
  fd_ = std::move(file.fd);
  file_bytes_ = file.size_bytes;
  const auto source = [this](int64_t offset, void* destination, int64_t size) {
    read_exactly(fd_.get(), path_, offset, destination, size);
  };
  header_ = parse_gguf_header(source, file_bytes_, path.string());
  // To ggml ne = [H] and [H, 1] are the same; the gate of the shared experts is a matrix here.
  for (TensorInfo& info : header_.tensors) {
    if (info.name.ends_with(".ffn_gate_inp_shexp.weight") && info.shape.size() == 1) {
      info.shape.insert(info.shape.begin(), 1);
    }
  }
  add_dequantized();
}

void GgufFile::add_dequantized() {
  constexpr int64_t kFloatBytes = sizeof(float);
  std::optional<int64_t> begin = (file_bytes_ / kFloatBytes + 1) * kFloatBytes;
  for (TensorInfo& info : header_.tensors) {
    const GgmlType* type = find_ggml_type(info.block_type);
    if (type == nullptr || type->decode == nullptr || !is_router_or_shared_expert(info.name)) {
      continue;
    }
    const auto bytes = checked_mul(info.num_elements(), kFloatBytes);
    const auto end = bytes ? checked_add(*begin, *bytes) : std::nullopt;
    GANTRY_CHECK(end.has_value(), ErrorCode::kFormat, "{}: {}: too many elements", path_.string(),
                 info.name);
    dequantized_.push_back({*begin, *end, info.begin, type});
    info.dtype = DType::kF32;
    info.begin = *begin;
    info.end = *end;
    begin = end;
  }
}

void GgufFile::read(int64_t offset, void* destination, int64_t size) const {
  GANTRY_CHECK(offset >= 0 && size >= 0, ErrorCode::kIo, "{}: cannot read {} bytes at offset {}",
               path_.string(), size, offset);
  const auto found =
      std::upper_bound(dequantized_.begin(), dequantized_.end(), offset,
                       [](int64_t at, const Dequantized& tensor) { return at < tensor.end; });
  if (found == dequantized_.end() || offset < found->begin) {
    return read_exactly(fd_.get(), path_, offset, destination, size);
  }
  GANTRY_CHECK(size <= found->end - offset && offset % 4 == 0 && size % 4 == 0, ErrorCode::kIo,
               "{}: cannot read {} bytes at offset {}: they are not of one tensor", path_.string(),
               size, offset);
  read_dequantized(*found, offset - found->begin, static_cast<std::byte*>(destination), size);
}

// Whole blocks around what is asked for, some at a time.
void GgufFile::read_dequantized(const Dequantized& tensor, int64_t offset, std::byte* destination,
                                int64_t size) const {
  constexpr int64_t kElements = int64_t{1} << 16;  // in memory at a time
  const GgmlType& type = *tensor.type;
  std::vector<std::byte> blocks;
  std::vector<float> values;
  int64_t element = offset / 4;
  const int64_t end = element + size / 4;
  while (element < end) {
    const int64_t first = element / type.block_elements;
    const int64_t chunk_end = std::min(end, element + kElements);
    const int64_t last = (chunk_end + type.block_elements - 1) / type.block_elements;
    blocks.resize(static_cast<size_t>((last - first) * type.block_bytes));
    values.resize(static_cast<size_t>((last - first) * type.block_elements));
    read_exactly(fd_.get(), path_, tensor.file_begin + first * type.block_bytes, blocks.data(),
                 static_cast<int64_t>(blocks.size()));
    decode_ggml_blocks(type, blocks.data(), last - first, values.data());
    const int64_t count = chunk_end - element;
    std::memcpy(destination, values.data() + (element - first * type.block_elements),
                static_cast<size_t>(count) * sizeof(float));
    destination += count * static_cast<int64_t>(sizeof(float));
    element = chunk_end;
  }
}

}  // namespace gantry
