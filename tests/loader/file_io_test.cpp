// Faults of the operating system, injected by replacing the C library's calls in this binary: what
// a slow or failing disk does must end in all bytes or in an error that names file and offset.

#include "loader/file_io.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>

#include "loader/safetensors_writer.h"
#include "tests/support/expect_error.h"
#include "tests/support/seeded_rng.h"
#include "tests/support/temp_dir.h"

namespace {

/// What the replaced calls do next.
struct Faults {
  int interruptions = 0;        ///< calls that fail with EINTR first
  size_t max_bytes = SIZE_MAX;  ///< most bytes that one call moves
  int read_error = 0;           ///< errno of every read
  int write_error = 0;          ///< errno of every write past `write_limit`
  off_t write_limit = 0;
  int sync_error = 0;
};
Faults faults;

template <typename Function>
Function* next_symbol(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

/// Fails a call that is to fail; returns false if it is to go on.
bool inject(int error) {
  errno = faults.interruptions > 0 ? EINTR : error;
  return faults.interruptions-- > 0 || error != 0;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) ssize_t pread(int fd, void* bytes, size_t size,
                                                     off_t offset) {
  static auto* const real = next_symbol<ssize_t(int, void*, size_t, off_t)>("pread");
  if (inject(faults.read_error)) return -1;
  return real(fd, bytes, std::min(size, faults.max_bytes), offset);
}

__attribute__((visibility("default"))) ssize_t pwrite(int fd, const void* bytes, size_t size,
                                                      off_t offset) {
  static auto* const real = next_symbol<ssize_t(int, const void*, size_t, off_t)>("pwrite");
  if (inject(offset >= faults.write_limit ? faults.write_error : 0)) return -1;
  return real(fd, bytes, std::min(size, faults.max_bytes), offset);
}

__attribute__((visibility("default"))) int fdatasync(int /*fd*/) {
  return inject(faults.sync_error) ? -1 : 0;
}

}  // extern "C"

namespace gantry::test {
namespace {

class FileIoTest : public testing::Test {
 protected:
  void SetUp() override { faults = {}; }
  void TearDown() override { faults = {}; }

  std::string read(const std::filesystem::path& path, int64_t offset, int64_t size) {
    const OpenedFile file = open_regular_file(path);
    std::string bytes(static_cast<size_t>(size), '\0');
    read_exactly(file.fd.get(), path, offset, bytes.data(), size);
    return bytes;
  }

  [[nodiscard]] size_t files_in_dir() const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(dir.path()), {}));
  }

  TempDir dir;
};

TEST_F(FileIoTest, ReadsOnAfterInterruptionsAndShortReads) {
  const auto path = dir.write("f", "0123456789");
  faults = {.interruptions = 3, .max_bytes = 2};
  EXPECT_EQ(read(path, 1, 8), "12345678");
}

TEST_F(FileIoTest, NamesFileAndOffsetOfAReadError) {
  const auto path = dir.write("f", "0123456789");
  faults.read_error = EIO;
  expect_error([&] { read(path, 3, 4); }, ErrorCode::kIo,
               {"/f: cannot read 4 bytes at offset 3", "Input/output error"});
}

TEST_F(FileIoTest, ReportsAFileThatEndsEarly) {
  const auto path = dir.write("f", "0123456789");
  expect_error([&] { read(path, 8, 4); }, ErrorCode::kIo,
               {"expected 4 bytes at offset 8", "the file ends at 10"});
}

TEST_F(FileIoTest, WritesOnAfterInterruptionsAndShortWrites) {
  faults = {.interruptions = 3, .max_bytes = 3};
  write_text_file(dir / "f", "0123456789");
  EXPECT_EQ(read_bytes(dir / "f"), "0123456789");
}

TEST_F(FileIoTest, LeavesTheOldFileWhenTheDiskIsFull) {
  dir.write("f", "old");
  faults.write_error = ENOSPC;
  expect_error([&] { write_text_file(dir / "f", "new"); }, ErrorCode::kIo,
               {"/f: cannot write 3 bytes at offset 0", "No space left"});
  EXPECT_EQ(read_bytes(dir / "f"), "old");
  EXPECT_EQ(files_in_dir(), 1u);
}

TEST_F(FileIoTest, LeavesTheOldFileWhenSyncFails) {
  dir.write("f", "old");
  faults.sync_error = EIO;
  expect_error([&] { write_text_file(dir / "f", "new"); }, ErrorCode::kIo, {"/f: cannot sync"});
  EXPECT_EQ(read_bytes(dir / "f"), "old");
  EXPECT_EQ(files_in_dir(), 1u);
}

TEST_F(FileIoTest, DoesNotPublishASafetensorsFileAfterAFailedWrite) {
  SafetensorsWriter writer(dir / "f.safetensors",
                           {TensorInfo{.name = "a", .dtype = DType::kU8, .shape = {4}}}, {});
  const std::byte bytes[4] = {};
  faults = {.write_error = ENOSPC, .write_limit = 9};
  expect_error([&] { writer.write("a", 0, bytes); }, ErrorCode::kIo, {"f.safetensors", "No space"});
  faults = {};
  expect_error([&] { writer.finish(); }, ErrorCode::kInternal, {"1 writes failed"});
  EXPECT_FALSE(std::filesystem::exists(dir / "f.safetensors"));
}

TEST_F(FileIoTest, TakesAnotherTemporaryNameIfOneIsLeftFromAKilledProcess) {
  // The counter in the name is process-wide and unknown here: leave the next few names.
  for (int i = 0; i < 50; ++i) {
    dir.write(".f.tmp." + std::to_string(::getpid()) + "." + std::to_string(i), "stale");
  }
  write_text_file(dir / "f", "new");
  EXPECT_EQ(read_bytes(dir / "f"), "new");
  EXPECT_EQ(files_in_dir(), 51u);
}

TEST_F(FileIoTest, ShowsOneOfTheWholeFilesAfterAKillAtAnyMoment) {
  const auto path = dir.write("f", std::string(100'000, 'a'));
  SeededRng rng;
  for (int trial = 0; trial < 50; ++trial) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      faults.max_bytes = 1000;  // many writes: many moments between them
      for (char c = 'b';; c = c == 'z' ? 'b' : static_cast<char>(c + 1)) {
        write_text_file(path, std::string(100'000, c));
      }
    }
    ::usleep(static_cast<useconds_t>(rng.integer(0, 3000)));
    ::kill(child, SIGKILL);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
    const std::string bytes = read_bytes(path);
    ASSERT_EQ(bytes, std::string(100'000, bytes.at(0))) << "seed " << rng.seed();
  }
}

TEST_F(FileIoTest, ReportsADirectoryThatDoesNotExist) {
  expect_error([&] { write_text_file(dir / "none/f", "x"); }, ErrorCode::kIo,
               {"none/f: cannot create", "No such file"});
}

TEST_F(FileIoTest, ReportsANameTakenByADirectory) {
  dir.write("f/x", "");
  expect_error([&] { write_text_file(dir / "f", "x"); }, ErrorCode::kIo, {"cannot rename"});
  EXPECT_EQ(files_in_dir(), 1u);
}

}  // namespace
}  // namespace gantry::test
