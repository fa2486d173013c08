#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "kernels/base/export.h"
#include "loader/file_io.h"
#include "loader/gguf_header.h"

namespace gantry GANTRY_API {

struct GgmlType;

/// A GGUF file open for reading. Reads are positional: any number of threads may read at once.
///
/// Routed experts are read as they are stored (`block_type`, dtype u8). Routers and shared experts,
/// which are small and which nothing but f32 is computed from here, are dequantized by `read`: such
/// a tensor has dtype f32, and its begin and end lie behind the end of the file.
class GgufFile {
 public:
  /// @throws Error kIo if the file cannot be opened or is not a regular file
  /// @throws Error kFormat, kUnsupported if the header is not valid (see parse_gguf_header)
  explicit GgufFile(const std::filesystem::path& path);

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  [[nodiscard]] const GgufHeader& header() const noexcept { return header_; }
  [[nodiscard]] int64_t file_bytes() const noexcept { return file_bytes_; }

  /// Reads `size` bytes at `offset` of the file, or of what is dequantized behind it.
  /// @throws Error kIo naming file and offset if the bytes cannot be had
  void read(int64_t offset, void* destination, int64_t size) const;

 private:
  // A tensor that is dequantized when it is read.
  struct Dequantized {
    int64_t begin;       // of its f32
    int64_t end;         //
    int64_t file_begin;  // of its blocks
    const GgmlType* type;
  };
  void add_dequantized();
  void read_dequantized(const Dequantized& tensor, int64_t offset, std::byte* destination,
                        int64_t size) const;

  std::filesystem::path path_;
  FileDescriptor fd_;
  int64_t file_bytes_ = 0;
  GgufHeader header_;
  std::vector<Dequantized> dequantized_;  // ascending
};

}  // namespace gantry
