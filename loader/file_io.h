#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <utility>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// Owns a file descriptor.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) noexcept : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.release()) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor();

  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

/// A regular file open for reading, and its size when it was opened.
struct OpenedFile {
  FileDescriptor fd;
  int64_t size_bytes = 0;
};

/// Opens a regular file. Never blocks on a FIFO or device: those are refused.
/// @throws Error kIo naming the path
OpenedFile open_regular_file(const std::filesystem::path& path);

/// Reads `size` bytes at `offset`; retries EINTR and short reads.
/// @param path name used in messages
/// @throws Error kIo naming path and offset, also when the file ends before the last byte
void read_exactly(int fd, const std::filesystem::path& path, int64_t offset, void* destination,
                  int64_t size);

/// Makes what was created, renamed or removed in `directory` survive a power cut.
/// @throws Error kIo naming the path
void sync_directory(const std::filesystem::path& directory);

/// A file that appears under its name only when it is whole.
///
/// Bytes go to `.<name>.tmp.<pid>.<n>` beside it. `commit` makes them durable and renames; without
/// `commit` the destructor removes the temporary file and what was under the name stays untouched.
class AtomicFile {
 public:
  /// Creates the temporary file, `size_bytes` long.
  /// @throws Error kIo naming the path
  AtomicFile(std::filesystem::path path, int64_t size_bytes);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  /// Writes all of `data` at `offset`. Any number of threads may write different ranges at once.
  /// @throws Error kIo naming path and offset
  void write(int64_t offset, std::span<const std::byte> data);

  /// fdatasync, rename, fsync of the directory.
  /// @throws Error kIo naming the path
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  FileDescriptor fd_;
};

}  // namespace gantry
