// A safetensors file: 8 bytes with the length of the header (little endian), the header's JSON, the
// tensors' bytes. Opening reads and checks the header; tensors are read on request.

#include "loader/safetensors.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "kernels/base/check.h"
#include "loader/file_io.h"

namespace gantry {

static_assert(std::endian::native == std::endian::little, "safetensors bytes are little endian");

int64_t TensorInfo::num_elements() const noexcept {
  int64_t count = 1;  // headers whose product overflows were refused
  for (const int64_t size : shape)
    count *= size;
  return count;
}

std::string type_text(const TensorInfo& tensor) {
  return tensor.block_type.empty() ? std::string(to_string(tensor.dtype)) : tensor.block_type;
}

std::string describe(const TensorInfo& tensor) {
  return fmt::format("[{}] {}", fmt::join(tensor.shape, ", "), type_text(tensor));
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : path_(path) {
  OpenedFile file = open_regular_file(path);
  GANTRY_CHECK(file.size_bytes >= 8, ErrorCode::kFormat,
               "{}: expected at least the 8 bytes of the header's length, the file has {}",
               path.string(), file.size_bytes);
  uint64_t header_bytes = 0;
  read_exactly(file.fd.get(), path, 0, &header_bytes, sizeof(header_bytes));
  GANTRY_CHECK(header_bytes <= static_cast<uint64_t>(kMaxHeaderBytes), ErrorCode::kFormat,
               "{}: expected a header of at most {} bytes, found {}: not a safetensors file?",
               path.string(), kMaxHeaderBytes, header_bytes);
  GANTRY_CHECK(static_cast<int64_t>(header_bytes) <= file.size_bytes - 8, ErrorCode::kFormat,
               "{}: expected {} bytes for the header, the file has {}: it is truncated",
               path.string(), 8 + header_bytes, file.size_bytes);
  std::string json(header_bytes, '\0');
  read_exactly(file.fd.get(), path, 8, json.data(), static_cast<int64_t>(json.size()));

  header_ = parse_safetensors_header(json, file.size_bytes, path.string());
  by_name_.resize(header_.tensors.size());
  std::iota(by_name_.begin(), by_name_.end(), size_t{0});
  std::sort(by_name_.begin(), by_name_.end(), [this](size_t a, size_t b) {
    return header_.tensors[a].name < header_.tensors[b].name;
  });
  file_bytes_ = file.size_bytes;
  fd_ = file.fd.release();
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept { *this = std::move(other); }

SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(header_, other.header_);
  std::swap(by_name_, other.by_name_);
  std::swap(file_bytes_, other.file_bytes_);
  std::swap(fd_, other.fd_);
  return *this;
}

SafetensorsFile::~SafetensorsFile() { const FileDescriptor closes(fd_); }

const TensorInfo* SafetensorsFile::find(std::string_view name) const noexcept {
  const auto found = std::lower_bound(
      by_name_.begin(), by_name_.end(), name,
      [this](size_t i, std::string_view wanted) { return header_.tensors[i].name < wanted; });
  if (found == by_name_.end() || header_.tensors[*found].name != name) return nullptr;
  return &header_.tensors[*found];
}

void SafetensorsFile::read(int64_t offset, void* destination, int64_t size) const {
  GANTRY_CHECK(offset >= 0 && size >= 0, ErrorCode::kIo, "{}: cannot read {} bytes at offset {}",
               path_.string(), size, offset);
  read_exactly(fd_, path_, offset, destination, size);
}

}  // namespace gantry
