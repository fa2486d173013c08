// Runs nlohmann's SAX parser over a text, counting the bytes it has taken, so that a problem found
// in a callback (a duplicate key, a wrong type) can say where it is.

#include "loader/json_handler.h"

#include <cstring>
#include <iterator>

#include "kernels/base/check.h"
#include "loader/untrusted_name.h"

namespace gantry {
namespace {

/// Walks over characters and keeps the number of those passed in a counter shared by its copies.
class CountingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountingIterator(const char* position, size_t* passed) : position_(position), passed_(passed) {}
  reference operator*() const { return *position_; }
  CountingIterator& operator++() {
    ++position_;
    ++*passed_;
    return *this;
  }
  friend bool operator==(const CountingIterator& a, const CountingIterator& b) {
    return a.position_ == b.position_;
  }

 private:
  const char* position_;
  size_t* passed_;
};

/// nlohmann's text without its "[json.exception...] parse error at line 1, column 2: " and bounded:
/// it quotes the token it stopped at, which may be long and hold any byte.
std::string problem_of(const nlohmann::detail::exception& error) {
  constexpr size_t kMaxShown = 200;
  std::string_view text = error.what();
  for (const std::string_view prefix : {"] ", "column ", ": "}) {
    const size_t found = text.find(prefix);
    if (found != std::string_view::npos) text.remove_prefix(found + prefix.size());
  }
  std::string shown(text.substr(0, kMaxShown));
  for (char& c : shown) {
    if (c < 0x20 || c > 0x7e) c = '?';
  }
  return shown;
}

/// The literal that Python's json module writes for a float that JSON does not have.
std::string_view python_literal_at(std::string_view text, size_t position) {
  for (const std::string_view literal : {"NaN", "Infinity"}) {
    if (position < text.size() && text.substr(position).starts_with(literal)) return literal;
  }
  return {};
}

}  // namespace

bool JsonHandler::parse_error(size_t position, const std::string& /*last_token*/,
                              const nlohmann::detail::exception& error) {
  consumed_ = position;
  // The parser stops at the first letter, which it counts as taken.
  const std::string_view literal = python_literal_at(text_, position == 0 ? 0 : position - 1);
  if (!literal.empty()) {
    fail_here(fmt::format("{} is not JSON (Python's json module writes it): use null or a number",
                          literal));
  }
  fail_here("not valid JSON: " + problem_of(error));
}

bool JsonHandler::binary(binary_t& /*value*/) {
  fail(ErrorCode::kInternal, "{}: a binary value in JSON text", source_);
}

void JsonHandler::run() {
  // nlohmann takes NUL for the end of the text, and would not look at what follows it.
  const size_t nul = text_.find('\0');
  if (nul != std::string_view::npos) {
    consumed_ = nul;
    fail_here("not valid JSON: NUL byte");
  }
  if (text_.starts_with("\xef\xbb\xbf")) fail_here("not valid JSON: byte order mark");
  CountingIterator first(text_.data(), &consumed_);
  size_t ignored = 0;
  CountingIterator last(text_.data() + text_.size(), &ignored);
  nlohmann::json::sax_parse(first, last, this);
}

void JsonHandler::fail_here(const std::string& problem) const {
  fail(ErrorCode::kFormat, "{}: byte {}: {}", source_, consumed_, problem);
}

void JsonHandler::fail_too_deep() const {
  fail_here(fmt::format("nested deeper than {} levels", kMaxDepth));
}

}  // namespace gantry
