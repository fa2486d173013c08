#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/export.h"
#include "loader/safetensors.h"

namespace gantry GANTRY_API {

/// Writes one safetensors file, tensor by tensor, and makes it visible only when it is whole.
///
/// The bytes go to a temporary file in the same directory; `finish` syncs it and renames it into
/// place. A writer that is destroyed before `finish` removes the temporary file.
class SafetensorsWriter {
 public:
  /// Lays out the file: tensors are ordered by descending element size, then by name, as the
  /// reference writer does; the header is padded with spaces to 8 bytes.
  /// @param tensors name, dtype and shape are read; begin and end are computed
  /// @throws Error kInvalidArgument for whatever the reader would refuse: duplicate or empty names,
  ///         negative sizes, more than kMaxTensorRank dimensions ...
  /// @throws Error kIo
  SafetensorsWriter(std::filesystem::path path, std::vector<TensorInfo> tensors,
                    const std::map<std::string, std::string>& metadata);
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;
  ~SafetensorsWriter();

  /// The tensors with their final byte ranges, in file order.
  [[nodiscard]] std::span<const TensorInfo> tensors() const noexcept { return tensors_; }

  /// Writes bytes [offset, offset + data.size()) of one tensor. Different ranges may be written by
  /// different threads at once.
  /// @throws Error kInvalidArgument if the tensor is unknown, the range leaves it, or a byte of it
  ///         was written before
  /// @throws Error kIo
  void write(const std::string& name, int64_t offset, std::span<const std::byte> data);

  /// Syncs, renames into place and syncs the directory.
  /// @throws Error kInternal if not every byte was written, or a write failed or is under way
  /// @throws Error kIo
  void finish();

 private:
  struct State;
  std::filesystem::path path_;
  std::vector<TensorInfo> tensors_;
  std::unique_ptr<State> state_;
};

/// Writes `text` to `path` the same way: temporary file, sync, rename.
void write_text_file(const std::filesystem::path& path, std::string_view text);

}  // namespace gantry
