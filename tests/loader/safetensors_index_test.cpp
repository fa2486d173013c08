#include "loader/safetensors_index.h"

#include <gtest/gtest.h>

#include <ostream>
#include <string>

#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

struct BadIndex {
  const char* name;
  std::string text;
  std::string reason;  ///< part of the message
};

void PrintTo(const BadIndex& bad, std::ostream* out) { *out << bad.name; }

class BadIndexTest : public testing::TestWithParam<BadIndex> {};

TEST_P(BadIndexTest, IsRefusedWithItsReason) {
  expect_error([&] { parse_safetensors_index(GetParam().text, "i.json"); }, ErrorCode::kFormat,
               {"i.json: ", GetParam().reason});
}

std::string map_to(const std::string& shard) {
  return R"({"weight_map":{"a":")" + shard + R"("}})";
}

std::string case_name(const testing::TestParamInfo<BadIndex>& tested) { return tested.param.name; }

INSTANTIATE_TEST_SUITE_P(
    ShardName, BadIndexTest,
    testing::Values(BadIndex{"Parent", map_to("../x.safetensors"), "path separator"},
                    BadIndex{"Absolute", map_to("/etc/passwd"), R"("/etc/passwd")"},
                    BadIndex{"Subdirectory", map_to("sub/x.safetensors"), "path separator"},
                    BadIndex{"Backslash", map_to("..\\\\x.safetensors"), "path separator"},
                    BadIndex{"Drive", map_to("C:\\\\x.safetensors"), "path separator"},
                    BadIndex{"Nul", map_to("a\\u0000b.safetensors"), "control character"},
                    BadIndex{"NulBeforeSuffix", map_to("/etc/passwd\\u0000.safetensors"),
                             "control character"},
                    BadIndex{"DotDot", map_to(".."), "begins with '.'"},
                    BadIndex{"DotDotInside", map_to("a..safetensors"), "has '..'"},
                    BadIndex{"Hidden", map_to(".x.safetensors"), "begins with '.'"},
                    BadIndex{"Empty", map_to(""), "the name is empty"},
                    BadIndex{"Pickle", map_to("pytorch_model.bin"), "only *.safetensors"},
                    BadIndex{"Number", R"({"weight_map":{"a":1}})", "found number"},
                    BadIndex{"Null", R"({"weight_map":{"a":null}})", "found null"}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    Structure, BadIndexTest,
    testing::Values(
        BadIndex{"Array", "[]", "expected an object, found array"},
        BadIndex{"NoWeightMap", "{}", "expected \"weight_map\""},
        BadIndex{"WeightMapIsArray", R"({"weight_map":[]})", "expected \"weight_map\""},
        BadIndex{"EmptyWeightMap", R"({"weight_map":{}})", "expected \"weight_map\""},
        BadIndex{"DuplicateTensor", R"({"weight_map":{"a":"x.safetensors","a":"y.safetensors"}})",
                 R"(duplicate key "a")"},
        BadIndex{"DuplicateWeightMap",
                 R"({"weight_map":{"a":"x.safetensors"},"weight_map":{"b":"x.safetensors"}})",
                 R"(duplicate key "weight_map")"},
        BadIndex{"EmptyTensorName", R"({"weight_map":{"":"x.safetensors"}})", "the name is empty"},
        BadIndex{"ControlInTensorName", R"({"weight_map":{"a\u001b":"x.safetensors"}})",
                 "control character"},
        BadIndex{"NotJson", "weight_map", "not valid JSON"}),
    case_name);

TEST(SafetensorsIndexTest, ReadsNamesShardsAndSize) {
  const auto index = parse_safetensors_index(
      R"({"metadata":{"total_size":12.0,"other":[]},"weight_map":{"a":"x-1.safetensors",
          "b":"x-2.safetensors"},"more":null})",
      "i.json");
  EXPECT_EQ(index.weight_map.at("a"), "x-1.safetensors");
  EXPECT_EQ(index.weight_map.at("b"), "x-2.safetensors");
  EXPECT_EQ(index.total_size, 12.0);
}

TEST(SafetensorsIndexTest, DoesWithoutTotalSize) {
  EXPECT_EQ(parse_safetensors_index(map_to("x.safetensors"), "i").total_size, std::nullopt);
}

}  // namespace
}  // namespace gantry::test
