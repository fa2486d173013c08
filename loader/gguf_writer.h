#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "kernels/base/export.h"
#include "loader/file_io.h"
#include "loader/gguf_header.h"
#include "loader/tensor_sink.h"

namespace gantry GANTRY_API {

/// A metadata key to be written: a flag, u32, f32 or string.
struct GgufKey {
  std::string name;
  std::variant<bool, uint32_t, float, std::string> value;
};

/// The first bytes of a GGUF file (version 3, little endian, alignment 32), up to its data.
///
/// Tensors follow each other in the order given. What the reader would refuse is refused here.
///
/// @param tensors names, dtypes (or block types) and row-major shapes in elements; begin and end
/// are
///        set to offsets in the file
/// @param file    name used in messages
/// @throws Error kUnsupported naming a tensor whose dtype ggml does not have, with more than 4 axes
///         or with a name of 64 bytes and more (ggml's limit)
/// @throws Error kInvalidArgument for what parse_gguf_header refuses
std::string gguf_header_bytes(const std::vector<GgufKey>& keys, std::vector<TensorInfo>& tensors,
                              const std::string& file);

/// Takes the bytes of a GGUF file's tensors, in any order and from any number of threads.
class GgufWriter : public TensorSink {
 public:
  /// @param header  of gguf_header_bytes, with its tensors
  /// @param file    as long as the last tensor's end; must outlive the writer
  GgufWriter(const std::string& header, const std::vector<TensorInfo>& tensors, AtomicFile& file);

  /// @throws Error kInvalidArgument for a tensor or range that is not there; kIo
  void write(std::string_view tensor, int64_t offset, std::span<const std::byte> data) override;

  /// Makes the file durable and visible.
  /// @throws Error kInternal unless as many bytes have come as there are; kIo
  void finish();

 private:
  AtomicFile* file_;
  std::unordered_map<std::string, TensorInfo> tensors_;
  int64_t expected_bytes_ = 0;
  std::mutex mutex_;
  int64_t written_bytes_ = 0;
};

}  // namespace gantry
