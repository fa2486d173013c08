#pragma once

#include <cstdint>
#include <filesystem>
#include <utility>
#include <variant>
#include <vector>

#include "kernels/base/export.h"
#include "loader/gguf.h"
#include "loader/safetensors.h"

namespace gantry GANTRY_API {

/// A file of a checkpoint, whichever format it has, open for reading by any number of threads.
class WeightFile {
 public:
  explicit WeightFile(SafetensorsFile file) : file_(std::move(file)) {}
  explicit WeightFile(GgufFile file) : file_(std::move(file)) {}

  [[nodiscard]] const std::filesystem::path& path() const noexcept;
  [[nodiscard]] int64_t file_bytes() const noexcept;
  [[nodiscard]] const std::vector<TensorInfo>& tensors() const noexcept;

  /// Reads `size` bytes at `offset`, as the tensors' begin and end count them.
  /// @throws Error kIo naming file and offset if the bytes cannot be had
  void read(int64_t offset, void* destination, int64_t size) const;

 private:
  std::variant<SafetensorsFile, GgufFile> file_;
};

}  // namespace gantry
