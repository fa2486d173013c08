// POSIX file access of the loader: positional reads and writes that either move every byte or
// throw, and files that become visible in one step. The only retried error is EINTR: anything else
// (EIO of a failing disk, ESTALE of a network file system) is reported with file and offset.

#include "loader/file_io.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <string>
#include <system_error>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"

namespace gantry {
namespace {

std::string error_text(int error) { return std::generic_category().message(error); }

/// Calls `call` until it is not interrupted; returns its result.
template <typename Call>
auto retry_interrupted(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR)
    result = call();
  return result;
}

std::filesystem::path directory_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

}  // namespace

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) ::close(fd_);
}

void sync_directory(const std::filesystem::path& directory) {
  const FileDescriptor fd(retry_interrupted(
      [&] { return ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  GANTRY_CHECK(fd.get() >= 0, ErrorCode::kIo, "{}: cannot open the directory to sync it: {}",
               directory.string(), error_text(errno));
  // EINVAL: a file system (some network ones) that has no such operation, and nothing to promise.
  if (retry_interrupted([&] { return ::fsync(fd.get()); }) != 0 && errno != EINVAL) {
    fail(ErrorCode::kIo, "{}: cannot sync the directory: {}", directory.string(),
         error_text(errno));
  }
}

OpenedFile open_regular_file(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a FIFO would otherwise wait for a writer; it means nothing to regular
  // files.
  OpenedFile file{.fd = FileDescriptor(retry_interrupted(
                      [&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); }))};
  GANTRY_CHECK(file.fd.get() >= 0, ErrorCode::kIo, "{}: cannot open: {}", path.string(),
               error_text(errno));
  struct stat status = {};
  GANTRY_CHECK(::fstat(file.fd.get(), &status) == 0, ErrorCode::kIo, "{}: cannot stat: {}",
               path.string(), error_text(errno));
  GANTRY_CHECK(S_ISREG(status.st_mode), ErrorCode::kIo, "{}: not a regular file", path.string());
  file.size_bytes = status.st_size;
  return file;
}

void read_exactly(int fd, const std::filesystem::path& path, int64_t offset, void* destination,
                  int64_t size) {
  auto* bytes = static_cast<std::byte*>(destination);
  int64_t done = 0;
  while (done < size) {
    const ssize_t count = retry_interrupted(
        [&] { return ::pread(fd, bytes + done, static_cast<size_t>(size - done), offset + done); });
    GANTRY_CHECK(count >= 0, ErrorCode::kIo, "{}: cannot read {} bytes at offset {}: {}",
                 path.string(), size - done, offset + done, error_text(errno));
    GANTRY_CHECK(count != 0, ErrorCode::kIo,
                 "{}: expected {} bytes at offset {}, but the file ends at {}: it was cut short "
                 "after it was opened, or its storage lost data",
                 path.string(), size, offset, offset + done);
    done += count;
  }
}

AtomicFile::AtomicFile(std::filesystem::path path, int64_t size_bytes) : path_(std::move(path)) {
  // A killed process leaves its temporary file behind and its pid may come again, so the name is
  // only a first choice: O_EXCL decides, and the counter moves on.
  static std::atomic<uint64_t> counter = 0;
  constexpr int kAttempts = 1000;
  for (int attempt = 0; attempt < kAttempts && fd_.get() < 0; ++attempt) {
    temporary_ = directory_of(path_) / fmt::format(".{}.tmp.{}.{}", path_.filename().string(),
                                                   ::getpid(), counter.fetch_add(1));
    fd_ = FileDescriptor(retry_interrupted(
        [&] { return ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); }));
    if (fd_.get() < 0 && errno != EEXIST) break;
  }
  GANTRY_CHECK(fd_.get() >= 0, ErrorCode::kIo, "{}: cannot create {}: {}", path_.string(),
               temporary_.string(), error_text(errno));
  if (retry_interrupted([&] { return ::ftruncate(fd_.get(), size_bytes); }) != 0) {
    const int error = errno;
    ::unlink(temporary_.c_str());
    fail(ErrorCode::kIo, "{}: cannot make room for {} bytes: {}", path_.string(), size_bytes,
         error_text(error));
  }
}

AtomicFile::~AtomicFile() {
  if (temporary_.empty()) return;
  if (::unlink(temporary_.c_str()) != 0) {
    log(LogLevel::kWarn, "{}: cannot remove the temporary file: {}", temporary_.string(),
        error_text(errno));
  }
}

void AtomicFile::write(int64_t offset, std::span<const std::byte> data) {
  // Linux takes page cache for a call in pieces as large as the call, and large ones it has to
  // gather: 1.6 GB in calls of 2 MiB take twice as long as in calls of 512 KiB.
  constexpr size_t kCallBytes = size_t{512} << 10;
  size_t done = 0;
  while (done < data.size()) {
    const size_t piece = std::min(kCallBytes, data.size() - done);
    const int64_t position = offset + static_cast<int64_t>(done);
    const ssize_t count =
        retry_interrupted([&] { return ::pwrite(fd_.get(), data.data() + done, piece, position); });
    GANTRY_CHECK(count > 0, ErrorCode::kIo, "{}: cannot write {} bytes at offset {}: {}",
                 path_.string(), data.size() - done, position,
                 count < 0 ? error_text(errno) : "nothing was written");
    done += static_cast<size_t>(count);
  }
  // The disk starts now, while later bytes are computed, instead of in `commit`. Only a hint.
  constexpr size_t kWorthStarting = size_t{1} << 20;
  if (data.size() >= kWorthStarting) {
    (void)::sync_file_range(fd_.get(), offset, static_cast<off64_t>(data.size()),
                            SYNC_FILE_RANGE_WRITE);
  }
}

void AtomicFile::commit() {
  GANTRY_CHECK(retry_interrupted([&] { return ::fdatasync(fd_.get()); }) == 0, ErrorCode::kIo,
               "{}: cannot sync: {}", path_.string(), error_text(errno));
  // Some file systems report a failed write only here; EINTR from close still closes.
  GANTRY_CHECK(::close(fd_.release()) == 0 || errno == EINTR, ErrorCode::kIo,
               "{}: cannot close: {}", path_.string(), error_text(errno));
  GANTRY_CHECK(::rename(temporary_.c_str(), path_.c_str()) == 0, ErrorCode::kIo,
               "{}: cannot rename {} into place: {}", path_.string(), temporary_.string(),
               error_text(errno));
  temporary_.clear();
  sync_directory(directory_of(path_));
}

}  // namespace gantry
