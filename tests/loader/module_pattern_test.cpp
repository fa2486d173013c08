// Expected answers are those of Python's re and fnmatch.

#include "loader/encodings/module_pattern.h"

#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

using Anchor = ModulePattern::Anchor;

bool match(const std::string& pattern, const std::string& name) {
  return ModulePattern::regex(pattern, Anchor::kStart).matches(name);
}

struct Case {
  const char* pattern;
  const char* name;
  bool matches;
};

class ModulePatternTest : public testing::TestWithParam<Case> {};

TEST_P(ModulePatternTest, AnswersLikePythonsMatch) {
  const auto& [pattern, name, matches] = GetParam();
  EXPECT_EQ(match(pattern, name), matches) << pattern << " on " << name;
}

INSTANTIATE_TEST_SUITE_P(
    OfExporters, ModulePatternTest,
    testing::Values(
        Case{".*mlp\\.gate$", "model.layers.0.mlp.gate", true},
        Case{".*mlp\\.gate$", "model.layers.0.mlp.gate_proj", false},
        Case{".*model\\.layers\\.0\\.mlp\\.gate.*", "model.layers.0.mlp.gate_proj", true},
        Case{".*\\.18\\..*gate.*", "model.layers.18.mlp.experts.3.gate_proj", true},
        Case{".*\\.18\\..*gate.*", "model.layers.118.mlp.experts.3.gate_proj", false},
        Case{".*experts\\.\\d+\\.(gate|up)_proj", "model.layers.1.mlp.experts.12.up_proj", true},
        Case{".*experts\\.\\d+\\.(gate|up)_proj", "model.layers.1.mlp.experts.12.down_proj", false},
        Case{"model\\.layers\\.([0-9]|1[0-5])\\.", "model.layers.15.mlp", true},
        Case{"model\\.layers\\.([0-9]|1[0-5])\\.", "model.layers.16.mlp", false},
        Case{"^(?!.*experts).*$", "model.layers.0.mlp.gate", true},
        Case{"^(?!.*experts).*$", "model.layers.0.mlp.experts.0.up_proj", false},
        Case{"^(?!.*\\.mlp\\.experts(?:\\.|$)).*$", "a.mlp.experts", false},
        Case{"^(?!.*\\.mlp\\.experts(?:\\.|$)).*$", "a.mlp.experts_x", true},
        Case{"(?=.*up)model", "model.up", true}, Case{"(?=.*up)model", "model.down", false},
        Case{"layers\\.0", "model.layers.0", false}));

INSTANTIATE_TEST_SUITE_P(OfTheLanguage, ModulePatternTest,
                         testing::Values(Case{"", "anything", true}, Case{"a|b", "b", true},
                                         Case{"a|b", "c", false}, Case{"xa|b", "b", true},
                                         Case{"a?b", "b", true}, Case{"a+b", "b", false},
                                         Case{"a{2,3}$", "aa", true}, Case{"a{2,3}$", "a", false},
                                         Case{"a{2,3}$", "aaaa", false},
                                         Case{"a{,2}b", "aab", true}, Case{"a{2}b", "aab", true},
                                         Case{"a{2}b", "ab", false}, Case{"a{x", "a{x", true},
                                         Case{"[^.]+$", "no_dots", true},
                                         Case{"[^.]+$", "a.b", false}, Case{"[]a]", "]", true},
                                         Case{"[a-]", "-", true}, Case{"[\\d_]+$", "4_2", true},
                                         Case{"\\w+$", "a.b", false}, Case{"\\D", "4", false},
                                         Case{"(ab)*$", "abab", true}, Case{"(ab)*$", "aba", false},
                                         Case{"(a*)*b", "aaab", true}, Case{"(a|b|)c", "c", true},
                                         Case{"a.*?c", "abc", true}, Case{"a\\+", "a+", true}));

TEST(ModulePatternTest, SearchesAnywhereIfAsked) {
  const auto pattern = ModulePattern::regex("mlp\\.experts", Anchor::kAnywhere);
  EXPECT_TRUE(pattern.matches("model.layers.0.mlp.experts.1"));
  EXPECT_FALSE(pattern.matches("model.layers.0.mlp.gate"));
  EXPECT_FALSE(ModulePattern::regex("^mlp", Anchor::kAnywhere).matches("a.mlp"));
}

TEST(ModulePatternTest, WildcardsCoverTheWholeName) {
  const auto matches = [](const char* pattern, const char* name) {
    return ModulePattern::wildcard(pattern).matches(name);
  };
  EXPECT_TRUE(matches("*lm_head", "model.lm_head"));
  EXPECT_FALSE(matches("*lm_head", "model.lm_head.x"));
  EXPECT_TRUE(matches("model.layers.*.mlp.gate*", "model.layers.7.mlp.gate_proj"));
  EXPECT_FALSE(matches("model.layers", "modelxlayers"));
  EXPECT_TRUE(matches("layers.?", "layers.1"));
  EXPECT_FALSE(matches("layers.?", "layers.11"));
  EXPECT_TRUE(matches("w[13]", "w3"));
  EXPECT_FALSE(matches("w[!13]", "w3"));
  EXPECT_TRUE(matches("a[b", "a[b"));
}

// std::regex and backtracking engines take exponential time for these, or overflow the stack.
TEST(ModulePatternTest, CannotBlowUp) {
  const std::string name(20000, 'a');
  EXPECT_FALSE(match("(a*)*b", name));
  EXPECT_FALSE(match("(a|a)*$b", name));
  EXPECT_TRUE(match("(a|b)*$", name));
  std::string nested = "a";
  for (int i = 0; i < 20; ++i)
    nested = "(" + nested + "*)";
  EXPECT_FALSE(match(nested + "b", name));
}

TEST(ModulePatternTest, RefusesWhatItDoesNotUnderstand) {
  for (const char* pattern :
       {"(a)\\1", "(?i)a", "(?P<x>a)", "(?<=a)b", "\\bexperts", "a*+", "(?!a(?!b))", "[a-\\d]"}) {
    expect_error([&] { (void)match(pattern, "a"); }, ErrorCode::kUnsupported, {"pattern"});
  }
}

TEST(ModulePatternTest, RefusesWhatIsNoPattern) {
  for (const char* pattern : {"(a", "a)", "[a", "*a", "a\\", "[b-a]", "a{3,2}", "+"}) {
    expect_error([&] { (void)match(pattern, "a"); }, ErrorCode::kFormat, {"pattern"});
  }
}

TEST(ModulePatternTest, RefusesPatternsOutOfProportion) {
  expect_error([] { (void)match(std::string(1025, 'a'), "a"); }, ErrorCode::kUnsupported,
               {"1024", "1025"});
  expect_error([] { (void)match("((a{900}){900}){900}", "a"); }, ErrorCode::kUnsupported,
               {"steps"});
  expect_error([] { (void)match("a{1001}", "a"); }, ErrorCode::kUnsupported, {"repeats"});
  expect_error([] { (void)match(std::string(100, '(') + std::string(100, ')'), "a"); },
               ErrorCode::kUnsupported, {"nested"});
}

}  // namespace
}  // namespace gantry::test
