#include "loader/gguf_writer.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/check.h"
#include "loader/checked_math.h"
#include "loader/encodings/ggml_types.h"
#include "loader/untrusted_name.h"

namespace gantry {
namespace {

constexpr uint32_t kVersion = 3;
constexpr int64_t kAlignment = 32;
constexpr size_t kMaxAxes = 4;        // ggml's GGML_MAX_DIMS
constexpr size_t kMaxNameBytes = 63;  // and GGML_MAX_NAME with its end

template <typename T>
void append(std::string& to, const T& value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void append_text(std::string& to, std::string_view text) {
  append(to, static_cast<uint64_t>(text.size()));
  to.append(text);
}

/// The value's type by GGUF's number, and its bytes.
struct ValueWriter {
  std::string& to;
  void operator()(bool value) const {
    append(to, uint32_t{7});
    append(to, static_cast<uint8_t>(value ? 1 : 0));
  }
  void operator()(uint32_t value) const {
    append(to, uint32_t{4});
    append(to, value);
  }
  void operator()(float value) const {
    append(to, uint32_t{6});
    append(to, value);
  }
  void operator()(const std::string& value) const {
    append(to, uint32_t{8});
    append_text(to, value);
  }
};

uint32_t ggml_type_of(const TensorInfo& tensor, const std::string& file) {
  if (const GgmlType* blocks = find_ggml_type(tensor.block_type)) return blocks->id;
  constexpr uint32_t kNumTypes = 64;
  for (uint32_t id = 0; id < kNumTypes; ++id) {
    const GgmlType* type = find_ggml_type(id);
    if (type != nullptr && type->dtype == tensor.dtype) return id;
  }
  fail(ErrorCode::kUnsupported, "{}: tensor {}: ggml has no type for {}", file,
       quote_name(tensor.name), to_string(tensor.dtype));
}

int64_t aligned(int64_t offset) { return (offset + kAlignment - 1) / kAlignment * kAlignment; }

int64_t bytes_of(const TensorInfo& tensor, const std::string& file) {
  const GgmlType* blocks = find_ggml_type(tensor.block_type);
  std::optional<int64_t> bytes = blocks != nullptr ? blocks->block_bytes : size_of(tensor.dtype);
  for (size_t axis = 0; axis < tensor.shape.size(); ++axis) {
    int64_t size = tensor.shape[axis];
    if (blocks != nullptr && axis + 1 == tensor.shape.size()) {
      GANTRY_CHECK(size % blocks->block_elements == 0, ErrorCode::kUnsupported,
                   "{}: tensor {}: {}: expected rows of whole blocks of {}", file,
                   quote_name(tensor.name), describe(tensor), blocks->block_elements);
      size /= blocks->block_elements;
    }
    bytes = bytes && size > 0 ? checked_mul(*bytes, size) : std::nullopt;
  }
  GANTRY_CHECK(bytes.has_value(), ErrorCode::kUnsupported,
               "{}: tensor {}: {}: expected sizes above 0 whose product fits in 64 bits", file,
               quote_name(tensor.name), describe(tensor));
  return *bytes;
}

}  // namespace

std::string gguf_header_bytes(const std::vector<GgufKey>& keys, std::vector<TensorInfo>& tensors,
                              const std::string& file) {
  std::string header = "GGUF";
  append(header, kVersion);
  append(header, static_cast<uint64_t>(tensors.size()));
  append(header, static_cast<uint64_t>(keys.size()));
  for (const GgufKey& key : keys) {
    append_text(header, key.name);
    std::visit(ValueWriter{header}, key.value);
  }
  int64_t offset = 0;
  for (TensorInfo& tensor : tensors) {
    GANTRY_CHECK(tensor.name.size() <= kMaxNameBytes && tensor.shape.size() <= kMaxAxes,
                 ErrorCode::kUnsupported,
                 "{}: tensor {}: ggml has names of at most {} bytes and {} axes, found {} and {}",
                 file, quote_name(tensor.name), kMaxNameBytes, kMaxAxes, tensor.name.size(),
                 tensor.shape.size());
    append_text(header, tensor.name);
    append(header, static_cast<uint32_t>(std::max<size_t>(1, tensor.shape.size())));
    if (tensor.shape.empty()) append(header, uint64_t{1});
    for (auto axis = tensor.shape.rbegin(); axis != tensor.shape.rend(); ++axis)
      append(header, static_cast<uint64_t>(*axis));
    append(header, ggml_type_of(tensor, file));
    append(header, static_cast<uint64_t>(offset));
    tensor.begin = offset;
    tensor.end = offset + bytes_of(tensor, file);
    offset = aligned(tensor.end);
  }
  header.resize(static_cast<size_t>(aligned(static_cast<int64_t>(header.size()))), '\0');
  const auto begin = static_cast<int64_t>(header.size());
  for (TensorInfo& tensor : tensors) {
    tensor.begin += begin;
    tensor.end += begin;
  }
  // The reader's checks are the writer's. It reads in windows that may reach into the tensors'
  // data, which are not there yet.
  const auto source = [&](int64_t at, void* destination, int64_t size) {
    const int64_t known = std::clamp<int64_t>(begin - at, 0, size);
    std::memset(destination, 0, static_cast<size_t>(size));
    std::copy_n(header.data() + std::min(at, begin), known, static_cast<char*>(destination));
  };
  try {
    (void)parse_gguf_header(source, tensors.empty() ? begin : tensors.back().end, file);
  } catch (const Error& error) {
    fail(ErrorCode::kInvalidArgument, "{}", error.what());
  }
  return header;
}

GgufWriter::GgufWriter(const std::string& header, const std::vector<TensorInfo>& tensors,
                       AtomicFile& file)
    : file_(&file) {
  for (const TensorInfo& tensor : tensors) {
    tensors_.emplace(tensor.name, tensor);
    expected_bytes_ += tensor.num_bytes();
  }
  file_->write(0, std::as_bytes(std::span(header.data(), header.size())));
}

void GgufWriter::write(std::string_view name, int64_t offset, std::span<const std::byte> data) {
  const auto found = tensors_.find(std::string(name));
  const auto size = static_cast<int64_t>(data.size());
  GANTRY_CHECK(found != tensors_.end() && offset >= 0 && offset <= found->second.num_bytes() &&
                   size <= found->second.num_bytes() - offset,
               ErrorCode::kInvalidArgument, "no {} bytes at offset {} of a tensor {}", size, offset,
               quote_name(name));
  file_->write(found->second.begin + offset, data);
  const std::scoped_lock lock(mutex_);
  written_bytes_ += size;
}

void GgufWriter::finish() {
  const std::scoped_lock lock(mutex_);
  GANTRY_CHECK(written_bytes_ == expected_bytes_, ErrorCode::kInternal,
               "{} of {} bytes of tensors have come", written_bytes_, expected_bytes_);
  file_->commit();
}

}  // namespace gantry
