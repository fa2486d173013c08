#include "loader/safetensors_writer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/expect_error.h"
#include "tests/support/seeded_rng.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

TensorInfo tensor(std::string name, DType dtype, std::vector<int64_t> shape) {
  return {.name = std::move(name), .dtype = dtype, .shape = std::move(shape)};
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string read(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo& info = *file.find(name);
  std::string bytes(static_cast<size_t>(info.num_bytes()), '\0');
  file.read(info.begin, bytes.data(), info.num_bytes());
  return bytes;
}

class SafetensorsWriterTest : public testing::Test {
 protected:
  void expect_invalid(std::vector<TensorInfo> tensors,
                      std::initializer_list<std::string_view> parts) {
    expect_error([&] { SafetensorsWriter(path, std::move(tensors), {}); },
                 ErrorCode::kInvalidArgument, parts);
    EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
  }

  TempDir dir;
  std::filesystem::path path = dir / "f.safetensors";
};

TEST_F(SafetensorsWriterTest, WritesWhatTheReaderReads) {
  SafetensorsWriter writer(path,
                           {tensor("a", DType::kU8, {3}), tensor("b", DType::kF32, {1, 2}),
                            tensor("scalar", DType::kBF16, {}), tensor("ä\"", DType::kU8, {0, 5})},
                           {{"format", "pt"}, {"note", "line 1\nline 2"}});
  writer.write("scalar", 0, bytes_of("BF"));
  writer.write("a", 0, bytes_of("xyz"));
  writer.write("b", 0, bytes_of("01234567"));
  writer.finish();

  const SafetensorsFile file(path);
  EXPECT_EQ(read(file, "a"), "xyz");
  EXPECT_EQ(read(file, "b"), "01234567");
  EXPECT_EQ(read(file, "scalar"), "BF");
  EXPECT_EQ(describe(*file.find("b")), "[1, 2] f32");
  EXPECT_EQ(file.header().metadata.at("note"), "line 1\nline 2");
}

TEST_F(SafetensorsWriterTest, OrdersByDescendingElementSizeThenName) {
  SafetensorsWriter writer(path,
                           {tensor("a", DType::kU8, {1}), tensor("d", DType::kI64, {1}),
                            tensor("c", DType::kBF16, {1}), tensor("b", DType::kF16, {1})},
                           {});
  std::string order;
  for (const TensorInfo& info : writer.tensors())
    order += info.name;
  EXPECT_EQ(order, "dbca");
}

TEST_F(SafetensorsWriterTest, BeginsTheDataAtAMultipleOf8) {
  for (const std::string name : {"a", "ab", "abc", "abcd", "abcde"}) {
    SafetensorsWriter writer(path, {tensor(name, DType::kF64, {0})}, {});
    EXPECT_EQ(writer.tensors()[0].begin % 8, 0) << name;
  }
}

TEST_F(SafetensorsWriterTest, WritesAFileWithoutTensors) {
  SafetensorsWriter(path, {}, {}).finish();
  EXPECT_TRUE(SafetensorsFile(path).header().tensors.empty());
}

TEST_F(SafetensorsWriterTest, TakesPiecesInAnyOrderFromSeveralThreads) {
  constexpr int64_t kBytes = 1 << 20;
  constexpr int64_t kPiece = 4099;  // prime: pieces end anywhere
  SeededRng rng;
  std::string bytes(kBytes, '\0');
  for (char& byte : bytes)
    byte = static_cast<char>(rng.integer(0, 127));
  std::vector<int64_t> offsets;
  for (int64_t offset = 0; offset < kBytes; offset += kPiece)
    offsets.push_back(offset);
  std::shuffle(offsets.begin(), offsets.end(), rng.engine());

  SafetensorsWriter writer(path, {tensor("a", DType::kU8, {kBytes})}, {});
  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (size_t i = thread; i < offsets.size(); i += 4) {
        writer.write(
            "a", offsets[i],
            bytes_of(std::string_view(bytes).substr(static_cast<size_t>(offsets[i]), kPiece)));
      }
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  writer.finish();
  EXPECT_EQ(read(SafetensorsFile(path), "a"), bytes);
}

TEST_F(SafetensorsWriterTest, ShowsNothingUnderTheNameBeforeFinish) {
  path = dir.write("f.safetensors", "old");
  SafetensorsWriter writer(path, {tensor("a", DType::kU8, {1})}, {});
  writer.write("a", 0, bytes_of("x"));
  EXPECT_EQ(read_bytes(path), "old");
  writer.finish();
  EXPECT_EQ(read(SafetensorsFile(path), "a"), "x");
}

TEST_F(SafetensorsWriterTest, RemovesTheTemporaryFileWhenNotFinished) {
  { SafetensorsWriter writer(path, {tensor("a", DType::kU8, {1})}, {}); }
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST_F(SafetensorsWriterTest, RefusesToFinishWithAGap) {
  SafetensorsWriter writer(path, {tensor("a", DType::kU8, {4}), tensor("b", DType::kU8, {4})}, {});
  writer.write("a", 0, bytes_of("0123"));
  writer.write("b", 0, bytes_of("0"));
  writer.write("b", 2, bytes_of("23"));
  expect_error([&] { writer.finish(); }, ErrorCode::kInternal,
               {"tensor \"b\": byte 1 of 4 was never written"});
  EXPECT_FALSE(std::filesystem::exists(path));
  writer.write("b", 1, bytes_of("1"));
  EXPECT_NO_THROW(writer.finish());
}

TEST_F(SafetensorsWriterTest, RefusesBytesThatWereWrittenBefore) {
  SafetensorsWriter writer(path, {tensor("a", DType::kU8, {8})}, {});
  writer.write("a", 2, bytes_of("23"));
  writer.write("a", 4, bytes_of("45"));
  for (const int64_t offset : {1, 2, 3, 5}) {
    expect_error([&] { writer.write("a", offset, bytes_of("xx")); }, ErrorCode::kInvalidArgument,
                 {"were written before"});
  }
  expect_error([&] { writer.write("a", 0, bytes_of("01234567")); }, ErrorCode::kInvalidArgument,
               {"were written before"});
  writer.write("a", 0, bytes_of("01"));
  writer.write("a", 6, bytes_of("67"));
  writer.finish();
  EXPECT_EQ(read(SafetensorsFile(path), "a"), "01234567");
}

TEST_F(SafetensorsWriterTest, RefusesARangeThatLeavesTheTensor) {
  SafetensorsWriter writer(path, {tensor("a", DType::kU8, {4}), tensor("b", DType::kU8, {4})}, {});
  for (const int64_t offset : {int64_t{-1}, int64_t{3}, int64_t{5}, INT64_MAX}) {
    expect_error([&] { writer.write("a", offset, bytes_of("xx")); }, ErrorCode::kInvalidArgument,
                 {"inside its 4 bytes"});
  }
  expect_error([&] { writer.write("c", 0, bytes_of("x")); }, ErrorCode::kInvalidArgument,
               {"no tensor \"c\""});
}

TEST_F(SafetensorsWriterTest, RefusesToGoOnAfterFinish) {
  SafetensorsWriter writer(path, {tensor("a", DType::kU8, {1})}, {});
  writer.write("a", 0, bytes_of("x"));
  writer.finish();
  expect_error([&] { writer.write("a", 0, bytes_of("x")); }, ErrorCode::kInvalidArgument,
               {"after finish"});
  expect_error([&] { writer.finish(); }, ErrorCode::kInvalidArgument, {"finished twice"});
}

TEST_F(SafetensorsWriterTest, RefusesTensorsThatTheReaderWouldRefuse) {
  expect_invalid({tensor("", DType::kU8, {1})}, {"the name is empty"});
  expect_invalid({tensor("a", DType::kU8, {1}), tensor("a", DType::kU8, {1})}, {"duplicate key"});
  expect_invalid({tensor("a", DType::kU8, {-1})}, {"negative size"});
  expect_invalid({tensor("a", DType::kU8, {0, -1})}, {"negative size"});
  expect_invalid({tensor("a", DType::kF32, {int64_t{1} << 62})}, {"overflows"});
  expect_invalid({tensor("a", DType::kU8, {0, INT64_MAX, 2})}, {"overflows"});
  expect_invalid({tensor("a", DType::kU8, {INT64_MAX})}, {"overflows"});
  expect_invalid({tensor("a", DType::kU8, {1, 1, 1, 1, 1, 1, 1, 1, 1})}, {"8 dimensions"});
  expect_invalid({tensor("a\xff", DType::kU8, {1})}, {"not valid UTF-8"});
  expect_invalid({tensor("a\n", DType::kU8, {1})}, {"control character"});
  expect_invalid({tensor("__metadata__", DType::kU8, {1})}, {"__metadata__"});
}

}  // namespace
}  // namespace gantry::test
