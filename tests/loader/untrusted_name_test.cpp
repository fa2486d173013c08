#include "loader/untrusted_name.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace gantry::test {
namespace {

using namespace std::string_literals;

TEST(QuoteNameTest, ShowsPrintableTextAsItIs) {
  EXPECT_EQ(quote_name("model.ä.漢.😀"), "\"model.ä.漢.😀\"");
}

TEST(QuoteNameTest, EscapesControlCharactersAndQuotes) {
  EXPECT_EQ(quote_name("a\0\n\x1b\x7f\"\\"s), R"("a\x00\x0a\x1b\x7f\"\\")");
  EXPECT_EQ(quote_name("\xc2\x9b"), R"("\xc2\x9b")");
}

TEST(QuoteNameTest, EscapesWhatIsNotUtf8) {
  EXPECT_EQ(quote_name("\xff"
                       "a\x80\xe6\xbc"),
            R"("\xffa\x80\xe6\xbc")");
}

TEST(QuoteNameTest, CutsLongNames) {
  EXPECT_EQ(quote_name(std::string(300, 'x')), "\"" + std::string(200, 'x') + "\"... (300 bytes)");
}

TEST(QuoteNamesTest, ListsTenAndCountsTheRest) {
  EXPECT_EQ(quote_names(std::vector<std::string>{"a", "b"}), R"("a", "b")");
  EXPECT_EQ(quote_names(std::vector<std::string>(12, "a")),
            R"("a", "a", "a", "a", "a", "a", "a", "a", "a", "a", ... (12 in all))");
}

}  // namespace
}  // namespace gantry::test
