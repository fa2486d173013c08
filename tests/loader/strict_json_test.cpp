#include "loader/strict_json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <ostream>
#include <string>

#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

using namespace std::string_literals;

struct BadJson {
  const char* name;
  std::string text;
  std::string reason;  ///< part of the message
};

void PrintTo(const BadJson& bad, std::ostream* out) { *out << bad.name; }

class BadJsonTest : public testing::TestWithParam<BadJson> {};

TEST_P(BadJsonTest, IsRefusedWithSourceAndReason) {
  expect_error([&] { parse_strict_json(GetParam().text, "config.json"); }, ErrorCode::kFormat,
               {"config.json: byte ", GetParam().reason});
}

std::string case_name(const testing::TestParamInfo<BadJson>& tested) { return tested.param.name; }

INSTANTIATE_TEST_SUITE_P(
    All, BadJsonTest,
    testing::Values(
        BadJson{"Empty", "", "not valid JSON"}, BadJson{"OnlySpace", "  ", "not valid JSON"},
        BadJson{"DuplicateKey", R"({"a":1,"b":2,"a":1})", R"(byte 16: duplicate key "a")"},
        BadJson{"DuplicateKeyInside", R"({"x":[{"a":1,"a":2}]})", R"(duplicate key "a")"},
        BadJson{"DuplicateKeyByEscape", R"({"a":1,"\u0061":2})", R"(duplicate key "a")"},
        BadJson{"TooDeepArray", std::string(65, '[') + std::string(65, ']'), "deeper than 64"},
        BadJson{"TooDeepObject",
                [] {
                  std::string text;
                  for (int i = 0; i < 65; ++i)
                    text += R"({"a":)";
                  return text + "1" + std::string(65, '}');
                }(),
                "deeper than 64"},
        BadJson{"NeverClosed", std::string(1'000'000, '['), "byte 65: nested deeper than 64"},
        BadJson{"BadUtf8", "{\"a\":\"\xff\"}", "UTF-8"},
        BadJson{"OverlongUtf8", "\"\xc0\x80\"", "UTF-8"},
        BadJson{"Utf8Surrogate", "\"\xed\xa0\x80\"", "UTF-8"},
        BadJson{"LoneSurrogate", R"("\ud800")", "surrogate"},
        BadJson{"ByteOrderMark", "\xef\xbb\xbf{}", "byte order mark"},
        BadJson{"JunkAfter", "{} x", "not valid JSON"}, BadJson{"TwoValues", "1 2", "byte 3"},
        BadJson{"NulAfter", "{}\0"s, "byte 2: not valid JSON: NUL"},
        BadJson{"NulThenJunk", "{}\0junk"s, "NUL"}, BadJson{"NulInside", "[\0]"s, "byte 1: "},
        BadJson{"ControlInText", "\"a\nb\"", "control character"},
        BadJson{"TrailingComma", "[1,]", "not valid JSON"},
        BadJson{"Comment", "[1] // one", "not valid JSON"},
        BadJson{"SingleQuotes", "{'a':1}", "not valid JSON"},
        BadJson{"LeadingZero", "[01]", "not valid JSON"}, BadJson{"Hex", "[0x1]", "not valid JSON"},
        BadJson{"NumberTooLarge", "[1e999]", "number overflow"},
        BadJson{"NaN", R"({"a": NaN})", "byte 7: NaN is not JSON (Python's json module writes it)"},
        BadJson{"Infinity", R"({"a":Infinity})", "Infinity is not JSON"},
        BadJson{"NegativeInfinity", R"({"a":-Infinity})", "Infinity is not JSON"},
        BadJson{"PythonTrue", R"({"a":True})", "not valid JSON"}),
    case_name);

TEST(StrictJsonTest, GivesTheDocumentThatNlohmannGives) {
  const std::string text = R"( {"a":[1,-2,3.5,1e3,18446744073709551615,true,false,null,"\u00e9\n"],
    "b":{"c":{},"d":[],"e":[[{"f":[0]}]]}, "":"" } )";
  EXPECT_EQ(parse_strict_json(text, "s"), nlohmann::json::parse(text));
}

TEST(StrictJsonTest, KeepsTheTypesOfNumbers) {
  const auto json = parse_strict_json("[1,-1,1.0,18446744073709551616]", "s");
  EXPECT_TRUE(json[0].is_number_unsigned());
  EXPECT_TRUE(json[1].is_number_integer());
  EXPECT_TRUE(json[2].is_number_float());
  EXPECT_TRUE(json[3].is_number_float());
}

TEST(StrictJsonTest, AcceptsAValueThatIsNotAContainer) {
  EXPECT_EQ(parse_strict_json("\"x\"", "s"), "x");
}

TEST(StrictJsonTest, AcceptsTheSameKeyInDifferentObjects) {
  EXPECT_EQ(parse_strict_json(R"([{"a":1},{"a":{"a":2}}])", "s")[1]["a"]["a"], 2);
}

TEST(StrictJsonTest, AcceptsNestingOf64) {
  EXPECT_NO_THROW(parse_strict_json(std::string(64, '[') + std::string(64, ']'), "s"));
}

TEST(StrictJsonTest, AcceptsAFloatWrittenAsAnObject) {
  // Nemotron configs write what JSON has no literal for this way.
  const auto json = parse_strict_json(R"({"time_step_limit":[0.0,{"__float__":"Infinity"}]})", "s");
  EXPECT_EQ(json["time_step_limit"][1]["__float__"], "Infinity");
}

TEST(StrictJsonTest, BoundsTheMessageAboutALongToken) {
  try {
    parse_strict_json("\"" + std::string(1'000'000, 'x') + "\xff", "s");
    FAIL();
  } catch (const Error& error) {
    EXPECT_LT(std::string(error.what()).size(), 400u);
  }
}

}  // namespace
}  // namespace gantry::test
