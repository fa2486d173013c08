// Directories that become visible in one rename. The partial directory is locked while a process
// writes to it, so that two commands with one output cannot mix their files.

#include "loader/output_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"

namespace gantry {
namespace {

namespace fs = std::filesystem;

std::string error_text(int error) { return std::generic_category().message(error); }

fs::path absolute_path(const fs::path& path) {
  std::error_code error;
  fs::path result = fs::weakly_canonical(fs::absolute(path, error), error);
  GANTRY_CHECK(!error, ErrorCode::kIo, "{}: cannot resolve the path: {}", path.string(),
               error.message());
  // A trailing slash leaves an empty last part.
  return result.has_filename() ? result : result.parent_path();
}

bool is_same_or_inside(const fs::path& path, const fs::path& directory) {
  return std::mismatch(directory.begin(), directory.end(), path.begin(), path.end()).first ==
         directory.end();
}

void refuse_inputs(const fs::path& output, std::span<const fs::path> inputs) {
  for (const fs::path& input : inputs) {
    const fs::path source = absolute_path(input);
    GANTRY_CHECK(
        !is_same_or_inside(output, source) && !is_same_or_inside(source, output),
        ErrorCode::kInvalidArgument,
        "{}: expected an output directory apart from the input, found one that is, holds or lies "
        "inside {}",
        output.string(), source.string());
  }
}

void require_empty(const fs::path& output) {
  std::error_code error;
  const fs::file_status status = fs::status(output, error);
  if (status.type() == fs::file_type::not_found) return;
  GANTRY_CHECK(fs::is_directory(status), ErrorCode::kInvalidArgument,
               "{}: expected no file of that name, or an empty directory", output.string());
  GANTRY_CHECK(fs::is_empty(output, error) && !error, ErrorCode::kInvalidArgument,
               "{}: the directory is not empty; nothing is overwritten", output.string());
  struct stat own = {};
  struct stat parent = {};
  const bool known =
      ::stat(output.c_str(), &own) == 0 && ::stat(output.parent_path().c_str(), &parent) == 0;
  GANTRY_CHECK(known && own.st_dev == parent.st_dev, ErrorCode::kInvalidArgument,
               "{}: is a mount point, which cannot be replaced in one step: name a directory "
               "inside it",
               output.string());
}

void make_directory(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  GANTRY_CHECK(!error, ErrorCode::kIo, "{}: cannot create the directory: {}", path.string(),
               error.message());
}

void remove_tree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  GANTRY_CHECK(!error, ErrorCode::kIo, "{}: cannot remove what an unfinished run left: {}",
               path.string(), error.message());
}

/// Held until the descriptor is closed, also by the end of the process.
FileDescriptor lock_file(const fs::path& path, const fs::path& output) {
  FileDescriptor fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  GANTRY_CHECK(fd.get() >= 0, ErrorCode::kIo, "{}: cannot create: {}", path.string(),
               error_text(errno));
  GANTRY_CHECK(::flock(fd.get(), LOCK_EX | LOCK_NB) == 0, ErrorCode::kIo,
               "{}: another process is writing it (lock on {}: {})", output.string(), path.string(),
               error_text(errno));
  return fd;
}

}  // namespace

OutputDirectory::OutputDirectory(const fs::path& directory, std::span<const fs::path> inputs,
                                 bool resume)
    : path_(absolute_path(directory)) {
  GANTRY_CHECK(path_.has_filename(), ErrorCode::kInvalidArgument, "{}: cannot be an output",
               path_.string());
  refuse_inputs(path_, inputs);
  require_empty(path_);
  partial_ = path_.parent_path() / fmt::format(".{}.partial", path_.filename().string());
  data_ = partial_ / "data";
  make_directory(partial_);
  lock_ = lock_file(partial_ / "lock", path_);
  const bool found = fs::exists(data_);
  if (found && !resume) {
    log(LogLevel::kWarn, "{}: removing what an unfinished run left (--resume would continue it)",
        partial_.string());
    for (const fs::directory_entry& entry : fs::directory_iterator(partial_)) {
      if (entry.path().filename() != "lock") remove_tree(entry.path());
    }
  }
  resumed_ = found && resume;
  keep_ = resumed_;
  make_directory(data_);
}

OutputDirectory::~OutputDirectory() {
  if (keep_ && !committed_) return;
  std::error_code error;
  fs::remove_all(partial_, error);
  if (error) {
    log(LogLevel::kWarn, "{}: cannot be removed: {}", partial_.string(), error.message());
  }
}

void OutputDirectory::commit() {
  std::error_code error;
  for (auto entry = fs::recursive_directory_iterator(data_, error);
       !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    if (entry->is_directory()) sync_directory(entry->path());
  }
  GANTRY_CHECK(!error, ErrorCode::kIo, "{}: cannot list the directory: {}", data_.string(),
               error.message());
  sync_directory(data_);
  // Replaces an empty directory; fails on one that somebody has put files into meanwhile.
  GANTRY_CHECK(::rename(data_.c_str(), path_.c_str()) == 0, ErrorCode::kIo,
               "{}: cannot rename {} into place: {}", path_.string(), data_.string(),
               error_text(errno));
  committed_ = true;
  sync_directory(path_.parent_path());
}

}  // namespace gantry
