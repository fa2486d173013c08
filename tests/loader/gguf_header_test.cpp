#include "loader/gguf_header.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <functional>
#include <limits>

#include "tests/support/expect_error.h"
#include "tests/support/gguf_builder.h"

namespace gantry::test {
namespace {

GgufHeader parse(const std::string& bytes) {
  const auto source = [&](int64_t offset, void* destination, int64_t size) {
    ASSERT_GE(offset, 0);
    ASSERT_LE(offset + size, static_cast<int64_t>(bytes.size()));
    std::memcpy(destination, bytes.data() + offset, static_cast<size_t>(size));
  };
  return parse_gguf_header(source, static_cast<int64_t>(bytes.size()), "m.gguf");
}

/// A file with two tensors and some keys, changed.
std::string sample(const std::function<void(GgufBuilder&)>& change = {}) {
  GgufBuilder builder;
  builder.string("general.architecture", "qwen3moe").u32("qwen3moe.expert_count", 4);
  builder.zeros("a.weight", {3, 5});
  builder.tensor({"b.weight", {32, 2, 3}, 8, std::string(6 * 34, '\1')});
  if (change) change(builder);
  return builder.bytes();
}

void expect_refused(const std::string& bytes, std::initializer_list<std::string_view> parts,
                    ErrorCode code = ErrorCode::kFormat) {
  expect_error([&] { (void)parse(bytes); }, code, parts);
}

template <typename T>
T value_of(const GgufHeader& header, std::string_view key) {
  const auto found = header.metadata.find(key);
  EXPECT_NE(found, header.metadata.end()) << key;
  if (found == header.metadata.end()) return {};
  const T* value = std::get_if<T>(&found->second);
  EXPECT_NE(value, nullptr) << key << " has another type";
  return value == nullptr ? T{} : *value;
}

TEST(GgufHeaderTest, ReadsNamesReversedShapesTypesAndPlaces) {
  const GgufHeader header = parse(sample());
  EXPECT_EQ(header.version, 3U);
  ASSERT_EQ(header.tensors.size(), 2U);
  const TensorInfo& a = header.tensors[0];
  EXPECT_EQ(a.name, "a.weight");
  EXPECT_EQ(a.shape, (std::vector<int64_t>{5, 3}));
  EXPECT_EQ(a.dtype, DType::kF32);
  EXPECT_EQ(a.block_type, "");
  EXPECT_EQ(a.begin, header.data_begin);
  EXPECT_EQ(a.num_bytes(), 60);
  const TensorInfo& b = header.tensors[1];
  EXPECT_EQ(b.shape, (std::vector<int64_t>{3, 2, 32}));
  EXPECT_EQ(b.block_type, "q8_0");
  EXPECT_EQ(b.begin, header.data_begin + 64);
  EXPECT_EQ(b.num_bytes(), 6 * 34);
}

TEST(GgufHeaderTest, ReadsVersionTwo) {
  EXPECT_EQ(parse(sample([](GgufBuilder& b) { b.version = 2; })).version, 2U);
}

TEST(GgufHeaderTest, ReadsValuesOfEveryType) {
  const GgufHeader header = parse(sample([](GgufBuilder& b) {
    const auto bytes = [](const auto& value) { return GgufBuilder::bytes_of(value); };
    b.raw("u8", 0, bytes(uint8_t{200})).raw("i8", 1, bytes(int8_t{-3}));
    b.raw("u16", 2, bytes(uint16_t{60000})).raw("i16", 3, bytes(int16_t{-300}));
    b.raw("u32", 4, bytes(uint32_t{4000000000U})).raw("i32", 5, bytes(int32_t{-70000}));
    b.f32("f32", 2.5F).flag("yes", true).flag("no", false).string("text", "h\xc3\xa9");
    b.raw("u64", 10, bytes(uint64_t{1} << 40)).raw("i64", 11, bytes(int64_t{-5}));
    b.raw("f64", 12, bytes(0.1));
    b.raw("large", 10, bytes(std::numeric_limits<uint64_t>::max()));
    b.list("shorts", 3, 2, bytes(int16_t{-1}) + bytes(int16_t{7}));
    b.list("halves", 12, 1, bytes(0.5)).list("flags", 7, 2, std::string("\1\0", 2));
    b.list("nothing", 4, 0, "");
  }));
  EXPECT_EQ(value_of<int64_t>(header, "u8"), 200);
  EXPECT_EQ(value_of<int64_t>(header, "i8"), -3);
  EXPECT_EQ(value_of<int64_t>(header, "u16"), 60000);
  EXPECT_EQ(value_of<int64_t>(header, "i16"), -300);
  EXPECT_EQ(value_of<int64_t>(header, "u32"), 4000000000);
  EXPECT_EQ(value_of<int64_t>(header, "i32"), -70000);
  EXPECT_EQ(value_of<double>(header, "f32"), 2.5);
  EXPECT_EQ(value_of<bool>(header, "yes"), true);
  EXPECT_EQ(value_of<bool>(header, "no"), false);
  EXPECT_EQ(value_of<std::string>(header, "text"), "h\xc3\xa9");
  EXPECT_EQ(value_of<int64_t>(header, "u64"), int64_t{1} << 40);
  EXPECT_EQ(value_of<int64_t>(header, "i64"), -5);
  EXPECT_EQ(value_of<double>(header, "f64"), 0.1);
  EXPECT_TRUE(std::holds_alternative<std::monostate>(header.metadata.at("large")));
  EXPECT_EQ(value_of<std::vector<int64_t>>(header, "shorts"), (std::vector<int64_t>{-1, 7}));
  EXPECT_EQ(value_of<std::vector<double>>(header, "halves"), std::vector<double>{0.5});
  EXPECT_EQ(value_of<std::vector<int64_t>>(header, "flags"), (std::vector<int64_t>{1, 0}));
  EXPECT_TRUE(value_of<std::vector<int64_t>>(header, "nothing").empty());
}

// Vocabularies are larger than the reader's window and are not kept.
TEST(GgufHeaderTest, WalksOverLongListsAndStrings) {
  const GgufHeader header = parse(sample([](GgufBuilder& b) {
    std::string words;
    for (int i = 0; i < 30000; ++i)
      words += GgufBuilder::text("word " + std::to_string(i));
    b.list("tokens", 8, 30000, words);
    b.list("scores", 6, 50000, std::string(50000 * 4, '\1'));
    b.string("template", std::string(100000, 'x'));
    b.u32("last", 17);
  }));
  for (const char* key : {"tokens", "scores", "template"})
    EXPECT_TRUE(std::holds_alternative<std::monostate>(header.metadata.at(key))) << key;
  EXPECT_EQ(value_of<int64_t>(header, "last"), 17);
  EXPECT_EQ(header.tensors.size(), 2U);
}

TEST(GgufHeaderTest, FollowsTheDeclaredAlignment) {
  const GgufHeader header = parse(sample([](GgufBuilder& b) {
    b.alignment = 256;
    b.u32("general.alignment", 256);
  }));
  EXPECT_EQ(header.data_begin % 256, 0);
  EXPECT_EQ(header.tensors[1].begin, header.data_begin + 256);
}

TEST(GgufHeaderTest, KeepsTensorsOfUnknownTypes) {
  const GgufHeader header = parse(sample([](GgufBuilder& b) {
    b.tensor({"odd", {7, 2}, 77, std::string(100, '\1')});
    b.zeros("after", {4});
    b.tensor({"last", {5}, 78, std::string(9, '\1')});
  }));
  EXPECT_EQ(header.tensors[2].block_type, "type 77");
  EXPECT_EQ(header.tensors[2].num_bytes(), 128);  // up to the next one
  EXPECT_EQ(header.tensors[3].num_bytes(), 16);
  EXPECT_EQ(header.tensors[4].num_bytes(), 9);  // up to the end
}

TEST(GgufHeaderTest, ReadsTensorsInAnyOrderOfTheirData) {
  GgufBuilder builder;
  builder.tensor({"second", {8}, 0, std::string(32, '\1'), 32});
  builder.tensor({"first", {8}, 0, std::string(32, '\1'), 0});
  const GgufHeader header = parse(builder.bytes());
  EXPECT_EQ(header.tensors[0].begin, header.data_begin + 32);
  EXPECT_EQ(header.tensors[1].begin, header.data_begin);
}

TEST(GgufHeaderTest, ReadsAFileWithoutTensors) {
  EXPECT_TRUE(parse(GgufBuilder().bytes()).tensors.empty());
}

TEST(GgufHeaderTest, RefusesEveryTruncation) {
  const std::string whole = sample();
  for (size_t size = 0; size < whole.size(); ++size)
    expect_refused(whole.substr(0, size), {"m.gguf", "truncated"});
}

TEST(GgufHeaderTest, RefusesOtherFilesAndVersions) {
  expect_refused(sample([](GgufBuilder& b) { b.magic = 0x6c6d6767; }), {"GGUF"});
  for (const uint32_t version : {1U, 4U, 0xffffU}) {
    expect_refused(sample([&](GgufBuilder& b) { b.version = version; }),
                   {"version 2 or 3", std::to_string(version)}, ErrorCode::kUnsupported);
  }
  expect_refused(sample([](GgufBuilder& b) { b.version = 0x03000000; }), {"big-endian"},
                 ErrorCode::kUnsupported);
}

TEST(GgufHeaderTest, RefusesCountsBeyondTheLimits) {
  expect_refused(sample([](GgufBuilder& b) { b.num_tensors = uint64_t{1} << 63; }),
                 {"tensors", "9223372036854775808"});
  expect_refused(sample([](GgufBuilder& b) { b.num_keys = kMaxGgufKeys + 1; }),
                 {"keys", std::to_string(kMaxGgufKeys + 1)});
  expect_refused(sample([](GgufBuilder& b) { b.num_tensors = 1000; }), {"m.gguf"});
}

TEST(GgufHeaderTest, RefusesBadKeys) {
  expect_refused(sample([](GgufBuilder& b) { b.u32("", 1); }), {"key \"\"", "empty"});
  expect_refused(sample([](GgufBuilder& b) { b.u32("a\nb", 1); }), {"\\x0a", "control"});
  expect_refused(sample([](GgufBuilder& b) { b.u32("qwen3moe.expert_count", 8); }),
                 {"qwen3moe.expert_count", "twice"});
  expect_refused(sample([](GgufBuilder& b) { b.u32(std::string(70000, 'k'), 8); }),
                 {"65535", "70000"});
}

TEST(GgufHeaderTest, RefusesBadValues) {
  const auto with = [](uint32_t type, const std::string& value) {
    return sample([&](GgufBuilder& b) { b.raw("key", type, value); });
  };
  const auto bytes = [](const auto& value) { return GgufBuilder::bytes_of(value); };
  const uint64_t huge = std::numeric_limits<uint64_t>::max();
  expect_refused(with(13, ""), {"key \"key\"", "type 13"});
  expect_refused(with(7, "\2"), {"key", "0 or 1", "2"});
  expect_refused(with(8, bytes(huge)), {"key", "18446744073709551615", "truncated"});
  const uint32_t array = 9;
  const uint32_t text = 8;
  const uint32_t wide = 12;
  expect_refused(with(9, bytes(array) + bytes(uint64_t{0})), {"key", "list of lists"});
  expect_refused(with(9, bytes(uint32_t{14}) + bytes(uint64_t{0})), {"key", "type 14"});
  expect_refused(with(9, bytes(text) + bytes(huge)), {"key", "18446744073709551615", "fit"});
  // 8 times this count is 0 in 64 bits.
  expect_refused(with(9, bytes(wide) + bytes(uint64_t{1} << 61)), {"key", "fit"});
  expect_refused(with(9, bytes(text) + bytes(uint64_t{1}) + bytes(huge)), {"key", "truncated"});
}

TEST(GgufHeaderTest, RefusesBadAlignments) {
  for (const uint32_t alignment : {0U, 1U, 4U, 24U, 1U << 25}) {
    expect_refused(sample([&](GgufBuilder& b) { b.u32("general.alignment", alignment); }),
                   {"general.alignment", "power of two", std::to_string(alignment)});
  }
  expect_refused(sample([](GgufBuilder& b) { b.string("general.alignment", "32"); }),
                 {"general.alignment"});
}

TEST(GgufHeaderTest, RefusesBadTensors) {
  const auto with = [](GgufBuilder::Tensor tensor) {
    return sample([&](GgufBuilder& b) { b.tensor(std::move(tensor)); });
  };
  const std::string row(128, '\1');
  expect_refused(with({"", {32}, 0, row}), {"tensor \"\"", "empty"});
  expect_refused(with({std::string("x\0y", 3), {32}, 0, row}), {"\\x00", "control"});
  expect_refused(with({"a.weight", {32}, 0, row}), {"a.weight", "twice"});
  expect_refused(with({"x", {1, 1, 1, 1, 32}, 0, row}), {"x", "4 dimensions", "5"});
  expect_refused(with({"x", {uint64_t{1} << 63}, 0, row}), {"x", "too many elements"});
  expect_refused(with({"x", {uint64_t{1} << 40, uint64_t{1} << 40}, 0, row}),
                 {"too many elements"});
  expect_refused(with({"x", {uint64_t{1} << 62}, 0, row}), {"x", "too many bytes"});
  expect_refused(with({"x", {33}, 8, row}), {"x", "whole q8_0 blocks of 32", "33"});
  expect_refused(with({"x", {128, 2}, 12, row}), {"x", "whole q4_k blocks of 256", "128"});
  expect_refused(with({"x", {1000}, 0, row}), {"x", "4000 bytes", "truncated"});
}

TEST(GgufHeaderTest, RefusesTensorsThatOverlapOrLeaveHoles) {
  const auto at = [](uint64_t offset) {
    return sample([&](GgufBuilder& b) {
      b.tensor({"x", {8}, 0, std::string(4096, '\1'), offset});
    });
  };
  expect_refused(at(0), {"overlap"});   // on a.weight
  expect_refused(at(64), {"overlap"});  // on b.weight
  expect_refused(at(320), {"x", "holes"});
  expect_refused(at(289), {"x", "multiple of 32", "289"});
  expect_refused(at(uint64_t{1} << 63), {"x", "within the file"});
  EXPECT_EQ(parse(at(288)).tensors.size(), 3U);  // where it belongs
}

TEST(GgufHeaderTest, RefusesAnUnknownTypeBehindTheEnd) {
  GgufBuilder builder;
  builder.tensor({"odd", {8}, 77, "", 64});
  expect_refused(builder.bytes(), {"odd"});
  builder.tensors[0].offset = 0;
  EXPECT_EQ(parse(builder.bytes()).tensors[0].num_bytes(), 0);
}

}  // namespace
}  // namespace gantry::test
