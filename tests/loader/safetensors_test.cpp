#include "loader/safetensors.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <string>
#include <utility>

#include "tests/support/expect_error.h"
#include "tests/support/safetensors_bytes.h"
#include "tests/support/seeded_rng.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

constexpr const char* kTwoTensors = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                                    R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})";

/// A valid file of several pages: 1024 tensors of 16 bytes and their header.
std::string file_of_many_pages() {
  std::string json = "{";
  for (int i = 0; i < 1024; ++i) {
    json += (i == 0 ? "\"t" : ",\"t") + std::to_string(i) +
            R"(":{"dtype":"F32","shape":[4],"data_offsets":[)" + std::to_string(i * 16) + "," +
            std::to_string(i * 16 + 16) + "]}";
  }
  return safetensors_bytes(json + "}", std::string(1024 * 16, 'x'));
}

class SafetensorsFileTest : public testing::Test {
 protected:
  /// Expects that a file of those bytes is refused.
  void expect_refused(const std::string& bytes, std::initializer_list<std::string_view> parts) {
    const auto path = dir.write("bad.safetensors", bytes);
    expect_error([&] { SafetensorsFile file(path); }, ErrorCode::kFormat, parts);
  }

  TempDir dir;
};

TEST_F(SafetensorsFileTest, ReadsTensors) {
  const SafetensorsFile file(
      dir.write("f.safetensors", safetensors_bytes(kTwoTensors, "abcdefgh")));
  const TensorInfo* b = file.find("b");
  ASSERT_NE(b, nullptr);
  std::string bytes(4, '\0');
  file.read(b->begin, bytes.data(), b->num_bytes());
  EXPECT_EQ(bytes, "efgh");
  EXPECT_EQ(file.find("c"), nullptr);
  EXPECT_EQ(file.file_bytes(), static_cast<int64_t>(8 + std::string(kTwoTensors).size() + 8));
}

TEST_F(SafetensorsFileTest, MovesWithItsDescriptor) {
  SafetensorsFile first(dir.write("f.safetensors", safetensors_bytes(kTwoTensors, "abcdefgh")));
  SafetensorsFile second(std::move(first));
  SafetensorsFile third(dir.write("g.safetensors", safetensors_bytes("{}")));
  third = std::move(second);
  char byte = 0;
  third.read(third.find("a")->begin, &byte, 1);
  EXPECT_EQ(byte, 'a');
  EXPECT_EQ(third.path().filename(), "f.safetensors");
}

TEST_F(SafetensorsFileTest, RefusesAFileShorterThanTheLength) {
  expect_refused("", {"bad.safetensors", "at least the 8 bytes", "has 0"});
  expect_refused("1234567", {"has 7"});
}

TEST_F(SafetensorsFileTest, RefusesAHeaderLengthOfZero) {
  expect_refused(header_length(0), {"begins with '{'"});
}

TEST_F(SafetensorsFileTest, RefusesAHeaderLongerThanTheFile) {
  expect_refused(header_length(3) + "{}", {"expected 11 bytes", "has 10", "truncated"});
}

TEST_F(SafetensorsFileTest, RefusesAHeaderLengthOverTheLimit) {
  expect_refused(header_length(100'000'001) + "{}", {"at most 100000000", "found 100000001"});
  expect_refused(header_length(uint64_t{1} << 62) + "{}", {"found 4611686018427387904"});
  expect_refused(header_length(~uint64_t{0}) + "{}", {"found 18446744073709551615"});
}

TEST_F(SafetensorsFileTest, RefusesAFileThatGrew) {
  expect_refused(safetensors_bytes(kTwoTensors, "abcdefghi"), {"expected 8 bytes", "found 9"});
}

TEST_F(SafetensorsFileTest, RefusesAFileCutAtAnyPage) {
  const std::string bytes = file_of_many_pages();
  ASSERT_NO_THROW(SafetensorsFile{dir.write("whole.safetensors", bytes)});
  ASSERT_GT(bytes.size(), 16u * 4096);
  for (size_t size = 0; size < bytes.size(); size += 4096) {
    expect_refused(bytes.substr(0, size), {"bad.safetensors"});
  }
}

TEST_F(SafetensorsFileTest, RefusesAFileCutAtARandomByte) {
  const std::string bytes = file_of_many_pages();
  SeededRng rng;
  for (int i = 0; i < 64; ++i) {
    const auto size = rng.integer(0, static_cast<int64_t>(bytes.size()) - 1);
    SCOPED_TRACE("seed " + std::to_string(rng.seed()) + ", size " + std::to_string(size));
    expect_refused(bytes.substr(0, static_cast<size_t>(size)), {"bad.safetensors"});
  }
}

TEST_F(SafetensorsFileTest, ReportsAFileThatShrankAfterOpening) {
  const auto path = dir.write("f.safetensors", safetensors_bytes(kTwoTensors, "abcdefgh"));
  const SafetensorsFile file(path);
  const TensorInfo& b = *file.find("b");
  std::filesystem::resize_file(path, static_cast<uintmax_t>(b.begin + 1));
  char bytes[4] = {};
  expect_error([&] { file.read(b.begin, bytes, 4); }, ErrorCode::kIo,
               {"f.safetensors", "expected 4 bytes at offset " + std::to_string(b.begin),
                "ends at " + std::to_string(b.begin + 1)});
}

TEST_F(SafetensorsFileTest, RefusesToReadANegativeRange) {
  const SafetensorsFile file(dir.write("f.safetensors", safetensors_bytes("{}")));
  char byte = 0;
  expect_error([&] { file.read(-1, &byte, 1); }, ErrorCode::kIo, {"offset -1"});
  expect_error([&] { file.read(0, &byte, -1); }, ErrorCode::kIo, {"-1 bytes"});
}

TEST_F(SafetensorsFileTest, ReportsAMissingFile) {
  expect_error([&] { SafetensorsFile file(dir / "none.safetensors"); }, ErrorCode::kIo,
               {"none.safetensors", "No such file"});
}

TEST_F(SafetensorsFileTest, RefusesADirectory) {
  expect_error([&] { SafetensorsFile file(dir.path()); }, ErrorCode::kIo, {"not a regular file"});
}

TEST_F(SafetensorsFileTest, RefusesAFifoWithoutWaitingForAWriter) {
  const auto path = dir / "fifo.safetensors";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  expect_error([&] { SafetensorsFile file(path); }, ErrorCode::kIo, {"not a regular file"});
}

}  // namespace
}  // namespace gantry::test
