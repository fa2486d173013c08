#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// One tensor of a file, as its header declares it.
struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t begin = 0;  ///< first byte, from the start of the file
  int64_t end = 0;    ///< one past the last byte
  /// GGUF: the ggml type of a tensor whose rows are blocks ("q4_k"). `shape` counts elements; dtype
  /// is u8, or f32 if reading the file dequantizes (see GgufFile).
  std::string block_type = {};

  [[nodiscard]] int64_t num_bytes() const noexcept { return end - begin; }
  [[nodiscard]] int64_t num_elements() const noexcept;
};

/// "bf16", "q4_k"
std::string type_text(const TensorInfo& tensor);

/// "[8, 48, 64] bf16"
std::string describe(const TensorInfo& tensor);

/// The checked header of a safetensors file.
struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;              ///< in ascending byte order
  std::map<std::string, std::string> metadata;  ///< "__metadata__"
  int64_t data_begin = 0;                       ///< 8 + length of the JSON
};

/// Limits of what is read from a file that nobody vouches for.
inline constexpr int64_t kMaxHeaderBytes = 100'000'000;  // the reference reader's own limit
inline constexpr int kMaxTensorRank = 8;

/// Parses and checks a header.
///
/// Stricter than the reference reader: besides holes, overlaps, trailing bytes, bad sizes,
/// overflow, unknown dtypes, bad UTF-8 and junk after the JSON it refuses duplicate keys, NUL and
/// other control characters in names, names that are empty, a first byte other than '{', unknown
/// fields in an entry, and tensors that are not aligned to their element size.
///
/// @param json       the header's JSON text
/// @param file_bytes size of the whole file: 8 + json.size() + data
/// @param file       name used in messages
/// @throws Error kFormat, naming the file, the tensor, what was expected and what was found
SafetensorsHeader parse_safetensors_header(std::string_view json, int64_t file_bytes,
                                           const std::string& file);

/// A safetensors file open for reading. Reads are positional (`pread`): any number of threads may
/// read at once, and a file that shrinks gives an error, never a fault or zeros.
class SafetensorsFile {
 public:
  /// @throws Error kIo if the file cannot be opened or is not a regular file
  /// @throws Error kFormat if the header is not valid (see parse_safetensors_header)
  explicit SafetensorsFile(const std::filesystem::path& path);
  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&& other) noexcept;
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;
  ~SafetensorsFile();

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  [[nodiscard]] const SafetensorsHeader& header() const noexcept { return header_; }
  [[nodiscard]] int64_t file_bytes() const noexcept { return file_bytes_; }
  /// The tensor of that name, or null.
  [[nodiscard]] const TensorInfo* find(std::string_view name) const noexcept;

  /// Reads `size` bytes at `offset` of the file. Retries EINTR and short reads.
  /// @throws Error kIo naming file and offset if the bytes cannot be had
  void read(int64_t offset, void* destination, int64_t size) const;

 private:
  std::filesystem::path path_;
  SafetensorsHeader header_;
  std::vector<size_t> by_name_;  ///< indices of header_.tensors in ascending order of name
  int64_t file_bytes_ = 0;
  int fd_ = -1;
};

}  // namespace gantry
