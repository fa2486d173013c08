#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "kernels/base/export.h"
#include "loader/file_io.h"

namespace gantry GANTRY_API {

/// A directory that appears under its name only when it is whole.
///
/// Files are put into `.<name>.partial/data` beside it; `commit` makes them durable and renames
/// that directory into place. Until then nothing is to be seen under the name, also after a kill or
/// a power cut. What a run that did not finish leaves in the partial directory, a later one with
/// `resume` continues; one without starts over.
class OutputDirectory {
 public:
  /// @param directory must not exist, or be empty
  /// @param inputs    directories that are read: the output may not be one of them, nor lie inside
  ///                  one or around it
  /// @throws Error kInvalidArgument for these, and where the name is a mount point
  /// @throws Error kIo if it cannot be created, or another process writes to it
  OutputDirectory(const std::filesystem::path& directory,
                  std::span<const std::filesystem::path> inputs, bool resume);
  OutputDirectory(const OutputDirectory&) = delete;
  OutputDirectory& operator=(const OutputDirectory&) = delete;
  /// Keeps what is there if `keep_partial` was called, else removes it.
  ~OutputDirectory();

  /// The final name, absolute.
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  /// Where files are put.
  [[nodiscard]] const std::filesystem::path& data() const noexcept { return data_; }
  /// A file beside the data for the writer's own notes; it is not part of the result.
  [[nodiscard]] std::filesystem::path note_path(std::string_view name) const {
    return partial_ / name;
  }
  /// Whether an unfinished run was found and is continued.
  [[nodiscard]] bool resumed() const noexcept { return resumed_; }

  /// From now on an unfinished directory is worth something: the destructor leaves it.
  void keep_partial() noexcept { keep_ = true; }

  /// Syncs every directory and renames the data into place.
  /// @throws Error kIo
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path partial_;
  std::filesystem::path data_;
  FileDescriptor lock_;
  bool resumed_ = false;
  bool keep_ = false;
  bool committed_ = false;
};

}  // namespace gantry
