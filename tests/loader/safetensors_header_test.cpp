// Headers that are refused, each with the words that tell the user why, and headers that are not.

#include <gtest/gtest.h>

#include <ostream>
#include <string>

#include "loader/safetensors.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

using namespace std::string_literals;

SafetensorsHeader parse(const std::string& json, int64_t data_bytes) {
  return parse_safetensors_header(json, 8 + static_cast<int64_t>(json.size()) + data_bytes, "f");
}

/// One entry of a header: two f32 by default.
std::string entry(const std::string& name, const std::string& shape, int64_t begin, int64_t end,
                  const std::string& dtype = "F32") {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape +
         R"(,"data_offsets":[)" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

struct BadHeader {
  const char* name;
  std::string json;
  int64_t data_bytes;
  std::string reason;  ///< part of the message
};

void PrintTo(const BadHeader& bad, std::ostream* out) { *out << bad.name; }

class BadSafetensorsHeaderTest : public testing::TestWithParam<BadHeader> {};

TEST_P(BadSafetensorsHeaderTest, IsRefusedWithItsReason) {
  const BadHeader& bad = GetParam();
  expect_error([&] { parse(bad.json, bad.data_bytes); }, ErrorCode::kFormat, {"f: ", bad.reason});
}

std::string case_name(const testing::TestParamInfo<BadHeader>& tested) { return tested.param.name; }

const std::string kTwoFloats = entry("a", "[2]", 0, 8);

INSTANTIATE_TEST_SUITE_P(
    Layout, BadSafetensorsHeaderTest,
    testing::Values(
        BadHeader{"HoleAtTheStart", "{" + entry("a", "[2]", 4, 12) + "}", 12,
                  "expected to begin at byte 0"},
        BadHeader{"Hole", "{" + kTwoFloats + "," + entry("b", "[2]", 12, 20) + "}", 20,
                  R"(tensor "b": expected to begin at byte 8)"},
        BadHeader{"Overlap", "{" + kTwoFloats + "," + entry("b", "[2]", 4, 12) + "}", 12,
                  R"(tensor "b": expected to begin at byte 8)"},
        BadHeader{"SameRangeTwice", "{" + kTwoFloats + "," + entry("b", "[2]", 0, 8) + "}", 8,
                  R"(tensor "b": expected to begin at byte 8)"},
        BadHeader{"TrailingBytes", "{" + kTwoFloats + "}", 9, "expected 8 bytes of data"},
        BadHeader{"DataWithoutTensors", "{}", 1, "expected 0 bytes of data"},
        BadHeader{"TruncatedData", "{" + kTwoFloats + "}", 7, "the file has 7 bytes of data"},
        BadHeader{"RangeLargerThanShape", "{" + entry("a", "[2]", 0, 12) + "}", 12,
                  "expected 8 bytes for [2] f32"},
        BadHeader{"RangeSmallerThanShape", "{" + entry("a", "[2]", 0, 4) + "}", 4,
                  "expected 8 bytes for [2] f32"},
        BadHeader{"BeginAfterEnd", "{" + entry("a", "[2]", 8, 0) + "}", 8,
                  "begin 8 is after end 0"},
        BadHeader{"Misaligned",
                  "{" + entry("a", "[1]", 0, 1, "U8") + "," + entry("b", "[1]", 1, 5) + "}", 5,
                  "not a multiple of 4"}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    Overflow, BadSafetensorsHeaderTest,
    testing::Values(
        BadHeader{"ProductTimesElementSize", "{" + entry("a", "[4611686018427387904]", 0, 0) + "}",
                  0, "overflows 64 bits"},
        BadHeader{"Product", "{" + entry("a", "[4294967296,4294967296]", 0, 0, "U8") + "}", 0,
                  "overflows 64 bits"},
        BadHeader{"ZeroBeforeAHugeSize", "{" + entry("a", "[0,9223372036854775807]", 0, 0) + "}", 0,
                  "overflows 64 bits"},
        BadHeader{"ZeroAfterAHugeSize", "{" + entry("a", "[9223372036854775807,0]", 0, 0) + "}", 0,
                  "overflows 64 bits"},
        BadHeader{"SizeOf2To63", "{" + entry("a", "[9223372036854775808]", 0, 0) + "}", 0,
                  "found 9223372036854775808"},
        BadHeader{"SizeOf2To64", "{" + entry("a", "[18446744073709551616]", 0, 0) + "}", 0,
                  "shape: expected sizes"},
        BadHeader{"OffsetOf2To63",
                  R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,9223372036854775808]}})", 0,
                  "data_offsets: expected two offsets"}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    Entry, BadSafetensorsHeaderTest,
    testing::Values(
        BadHeader{"NegativeSize", "{" + entry("a", "[-2]", 0, 8) + "}", 8,
                  "shape: expected sizes from 0 to 2^63-1, found a negative number"},
        BadHeader{"NegativeZero", "{" + entry("a", "[-0]", 0, 0) + "}", 0, "shape: expected sizes"},
        BadHeader{"FloatSize", "{" + entry("a", "[2.0]", 0, 8) + "}", 8, "shape: expected sizes"},
        BadHeader{"TextSize", "{" + entry("a", "[\"2\"]", 0, 8) + "}", 8, "found text"},
        BadHeader{"NestedSize", "{" + entry("a", "[[2]]", 0, 8) + "}", 8, "found an array"},
        BadHeader{"ShapeIsNumber", "{" + entry("a", "2", 0, 8) + "}", 8,
                  "shape: expected an array, found a number"},
        BadHeader{"NineDimensions", "{" + entry("a", "[1,1,1,1,1,1,1,1,1]", 0, 4) + "}", 4,
                  "more than 8 dimensions"},
        BadHeader{"OneOffset", R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0]}})", 0,
                  "expected two offsets from 0 to 2^63-1, found fewer"},
        BadHeader{"ThreeOffsets", R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0,0]}})", 0,
                  "found a third"},
        BadHeader{"NegativeOffset", R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[-1,0]}})", 0,
                  "data_offsets: expected two offsets"},
        BadHeader{"UnknownDtype", "{" + entry("a", "[2]", 0, 8, "F4") + "}", 8,
                  R"(dtype "F4" is not one that is read here)"},
        BadHeader{"LowerCaseDtype", "{" + entry("a", "[2]", 0, 8, "f32") + "}", 8, R"("f32")"},
        BadHeader{"DtypeIsNumber", R"({"a":{"dtype":1,"shape":[0],"data_offsets":[0,0]}})", 0,
                  "dtype: expected text, found a number"},
        BadHeader{"DtypeIsNull", R"({"a":{"dtype":null,"shape":[0],"data_offsets":[0,0]}})", 0,
                  "dtype: expected text, found null"},
        BadHeader{"NoDtype", R"({"a":{"shape":[0],"data_offsets":[0,0]}})", 0, "dtype is missing"},
        BadHeader{"NoShape", R"({"a":{"dtype":"U8","data_offsets":[0,0]}})", 0, "shape is missing"},
        BadHeader{"NoOffsets", R"({"a":{"dtype":"U8","shape":[0]}})", 0, "data_offsets is missing"},
        BadHeader{"UnknownField", R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}})",
                  0, R"(unknown field "x")"},
        BadHeader{"DuplicateField",
                  R"({"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})", 0,
                  R"(duplicate key "dtype")"},
        BadHeader{"EntryIsArray", R"({"a":["U8",[0],[0,0]]})", 0, "expected an object"},
        BadHeader{"EntryIsBoolean", R"({"a":true})", 0, "expected an object, found a boolean"}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    Names, BadSafetensorsHeaderTest,
    testing::Values(
        BadHeader{"DuplicateWithTheSameRange", "{" + kTwoFloats + "," + kTwoFloats + "}", 8,
                  R"(duplicate key "a")"},
        BadHeader{"DuplicateWithAnotherRange",
                  "{" + kTwoFloats + "," + entry("a", "[2]", 8, 16) + "}", 16,
                  R"(duplicate key "a")"},
        BadHeader{"DuplicateByEscape",
                  "{" + kTwoFloats + "," + entry("\\u0061", "[2]", 8, 16) + "}", 16,
                  R"(duplicate key "a")"},
        BadHeader{"Empty", "{" + entry("", "[2]", 0, 8) + "}", 8, "the name is empty"},
        BadHeader{"Nul", "{" + entry("a\\u0000b", "[2]", 0, 8) + "}", 8, "control character"},
        BadHeader{"Newline", "{" + entry("a\\nb", "[2]", 0, 8) + "}", 8, R"("a\x0ab")"},
        BadHeader{"Delete", "{" + entry("a\x7f", "[2]", 0, 8) + "}", 8, "control character"},
        BadHeader{"C1Control", "{" + entry("a\\u009b", "[2]", 0, 8) + "}", 8, "control character"},
        BadHeader{"BadUtf8", "{" + entry("a\xff", "[2]", 0, 8) + "}", 8, "UTF-8"},
        BadHeader{"OverlongUtf8", "{" + entry("a\xc0\xaf", "[2]", 0, 8) + "}", 8, "UTF-8"},
        BadHeader{"LoneSurrogate", "{" + entry("a\\ud800", "[2]", 0, 8) + "}", 8, "surrogate"}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    Metadata, BadSafetensorsHeaderTest,
    testing::Values(
        BadHeader{"Nested", R"({"__metadata__":{"a":{}}})", 0, "expected text for \"a\""},
        BadHeader{"Number", R"({"__metadata__":{"a":1}})", 0, "expected text for \"a\""},
        BadHeader{"Null", R"({"__metadata__":null})", 0, "expected an object, found null"},
        BadHeader{"Text", R"({"__metadata__":"pt"})", 0, "expected an object, found text"},
        BadHeader{"Twice", R"({"__metadata__":{},"__metadata__":{}})", 0,
                  R"(duplicate key "__metadata__")"},
        BadHeader{"DuplicateKey", R"({"__metadata__":{"a":"1","a":"2"}})", 0,
                  R"(duplicate key "a")"}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    Json, BadSafetensorsHeaderTest,
    testing::Values(BadHeader{"Empty", "", 0, "begins with '{'"},
                    BadHeader{"LeadingSpace", " {}", 0, "begins with '{'"},
                    BadHeader{"ByteOrderMark", "\xef\xbb\xbf{}", 0, "begins with '{'"},
                    BadHeader{"Array", "[]", 0, "begins with '{'"},
                    BadHeader{"JunkAfter", "{}x", 0, "not valid JSON"},
                    BadHeader{"SecondObject", "{}{}", 0, "not valid JSON"},
                    BadHeader{"NulAfter", "{}\0\0"s, 0, "NUL byte"},
                    BadHeader{"NulThenJunk", "{}\0{\"a\":1}"s, 0, "NUL byte"},
                    BadHeader{"Unclosed", "{", 0, "not valid JSON"},
                    BadHeader{"TrailingComma", "{" + kTwoFloats + ",}", 8, "not valid JSON"},
                    BadHeader{"Comment", "{/**/}", 0, "not valid JSON"},
                    BadHeader{"NotANumber", R"({"a":NaN})", 0, "NaN is not JSON"},
                    BadHeader{"DeepNesting", "{\"a\":" + std::string(100'000, '['), 0,
                              "expected an object"}),
    case_name);

TEST(SafetensorsHeaderTest, GivesTensorsInFileOrderWithRangesFromTheStartOfTheFile) {
  const std::string json = R"({"__metadata__":{"format":"pt"},)" +
                           entry("b", "[2,1]", 8, 12, "BF16") + "," + kTwoFloats + "}";
  const auto header = parse(json, 12);
  const auto data_begin = static_cast<int64_t>(8 + json.size());
  EXPECT_EQ(header.data_begin, data_begin);
  EXPECT_EQ(header.metadata, (std::map<std::string, std::string>{{"format", "pt"}}));
  ASSERT_EQ(header.tensors.size(), 2u);
  EXPECT_EQ(header.tensors[0].name, "a");
  EXPECT_EQ(header.tensors[0].begin, data_begin);
  EXPECT_EQ(header.tensors[0].end, data_begin + 8);
  EXPECT_EQ(header.tensors[1].name, "b");
  EXPECT_EQ(header.tensors[1].begin, data_begin + 8);
  EXPECT_EQ(header.tensors[1].num_bytes(), 4);
  EXPECT_EQ(header.tensors[1].num_elements(), 2);
  EXPECT_EQ(describe(header.tensors[1]), "[2, 1] bf16");
}

TEST(SafetensorsHeaderTest, ReadsEveryDtype) {
  const std::pair<const char*, DType> dtypes[] = {
      {"BOOL", DType::kBool},      {"U8", DType::kU8},          {"I8", DType::kI8},
      {"U16", DType::kU16},        {"I16", DType::kI16},        {"U32", DType::kU32},
      {"I32", DType::kI32},        {"U64", DType::kU64},        {"I64", DType::kI64},
      {"F16", DType::kF16},        {"BF16", DType::kBF16},      {"F32", DType::kF32},
      {"F64", DType::kF64},        {"F8_E4M3", DType::kF8E4M3}, {"F8_E5M2", DType::kF8E5M2},
      {"F8_E8M0", DType::kF8E8M0},
  };
  for (const auto& [name, dtype] : dtypes) {
    const auto header =
        parse("{" + entry("a", "[1]", 0, size_of(dtype), name) + "}", size_of(dtype));
    EXPECT_EQ(header.tensors.at(0).dtype, dtype) << name;
  }
}

TEST(SafetensorsHeaderTest, AcceptsTensorsWithoutBytesBetweenOthers) {
  const auto header = parse("{" + entry("z", "[2]", 0, 8) + "," + entry("b", "[0,7]", 8, 8) + "," +
                                entry("a", "[3,0]", 0, 0) + "," + entry("c", "[1]", 8, 12) + "}",
                            12);
  std::vector<std::string> names;
  for (const auto& tensor : header.tensors)
    names.push_back(tensor.name);
  EXPECT_EQ(names, (std::vector<std::string>{"a", "z", "b", "c"}));
}

TEST(SafetensorsHeaderTest, AcceptsScalarsAndEightDimensions) {
  const auto header =
      parse("{" + entry("a", "[]", 0, 4) + "," + entry("b", "[1,1,1,1,1,1,1,1]", 4, 8) + "}", 8);
  EXPECT_EQ(header.tensors[0].num_elements(), 1);
  EXPECT_EQ(header.tensors[1].shape.size(), 8u);
}

TEST(SafetensorsHeaderTest, AcceptsAnEmptyFileAndTrailingSpaces) {
  EXPECT_TRUE(parse("{}      ", 0).tensors.empty());
}

TEST(SafetensorsHeaderTest, AcceptsDataThatBeginsAtAnyByteOfTheFile) {
  // Older writers did not pad the header; alignment is counted from the start of the data.
  EXPECT_EQ(parse("{" + kTwoFloats + "} ", 8).tensors.size(), 1u);
  EXPECT_EQ(parse("{" + kTwoFloats + "}  ", 8).tensors.size(), 1u);
}

TEST(SafetensorsHeaderTest, AcceptsNamesWithAnyPrintableUtf8) {
  EXPECT_EQ(parse("{" + entry("../ä 漢 \\\"q\\\"", "[2]", 0, 8) + "}", 8).tensors[0].name,
            "../ä 漢 \"q\"");
}

TEST(SafetensorsHeaderTest, NamesTheByteOfAProblem) {
  expect_error([] { parse(R"({"a":{"dtype":"F4"}})", 0); }, ErrorCode::kFormat, {"f: byte 18:"});
}

TEST(SafetensorsHeaderTest, RefusesAHeaderLargerThanTheLimit) {
  const std::string json = "{}" + std::string(kMaxHeaderBytes - 1, ' ');
  expect_error([&] { parse(json, 0); }, ErrorCode::kFormat, {"at most 100000000 bytes"});
}

}  // namespace
}  // namespace gantry::test
