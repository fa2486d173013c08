// Compiles to a program of steps with relative jumps (so that a repeated part is a copy of its
// steps) and runs all alternatives at once.

#include "loader/encodings/module_pattern.h"

#include <algorithm>
#include <optional>

#include "kernels/base/check.h"
#include "loader/untrusted_name.h"

namespace gantry {

namespace {

constexpr size_t kMaxPattern = 1024;
constexpr size_t kMaxSteps = 8192;
constexpr int kMaxDepth = 32;
constexpr int kMaxRepeat = 1000;

}  // namespace

// Recursive descent over the text; each function returns the steps of what it read.
class PatternCompiler {
 public:
  using Op = ModulePattern::Op;
  using Program = ModulePattern::Program;
  using ByteSet = ModulePattern::ByteSet;

  explicit PatternCompiler(std::string_view text) : text_(text) {
    if (text.size() > kMaxPattern) {
      refuse(fmt::format("expected at most {} characters, found {}", kMaxPattern, text.size()));
    }
  }

  ModulePattern compile(ModulePattern::Anchor anchor) {
    pattern_.programs_.emplace_back();
    Program body = alternatives();
    if (position_ < text_.size()) malformed("a ')' without its '('");
    if (anchor == ModulePattern::Anchor::kAnywhere) body = then(star(any()), body);
    finish(std::move(body));
    pattern_.required_ = longest_literal_;
    return std::move(pattern_);
  }

  ModulePattern compile_wildcard() {
    pattern_.programs_.emplace_back();
    Program body;
    while (position_ < text_.size()) {
      const char c = text_[position_++];
      const bool closes = text_.find(']', position_ + 1) != std::string_view::npos;
      if (c == '*') {
        body = then(body, star(any()));
      } else if (c == '?') {
        body = then(body, any());
      } else if (c == '[' && closes) {
        body = then(body, set_of(read_class('!')));
      } else {
        literal_.push_back(c);
        body = then(body, set_of(single(c)));
        continue;
      }
      end_literal();
    }
    end_literal();
    finish(then(body, {{Op::kEnd}}));
    pattern_.required_ = longest_literal_;
    return std::move(pattern_);
  }

 private:
  [[noreturn]] void refuse(const std::string& why) const {
    fail(ErrorCode::kUnsupported, "pattern {}: {}", quote_name(text_), why);
  }
  [[noreturn]] void malformed(std::string_view why) const {
    fail(ErrorCode::kFormat, "pattern {}: character {}: {}", quote_name(text_), position_, why);
  }

  [[nodiscard]] bool at(char c) const { return position_ < text_.size() && text_[position_] == c; }
  bool take(char c) {
    if (!at(c)) return false;
    ++position_;
    return true;
  }

  Program then(Program a, const Program& b) const {
    a.insert(a.end(), b.begin(), b.end());
    if (a.size() > kMaxSteps) refuse(fmt::format("expected at most {} steps", kMaxSteps));
    return a;
  }
  static Program branch(int64_t a, int64_t b) {
    return {{Op::kSplit, static_cast<int32_t>(a), static_cast<int32_t>(b)}};
  }
  static Program jump(int64_t distance) { return {{Op::kJump, static_cast<int32_t>(distance)}}; }
  static int64_t length(const Program& program) { return static_cast<int64_t>(program.size()); }

  Program star(const Program& body) const {
    return then(then(branch(1, length(body) + 2), body), jump(-length(body) - 1));
  }
  Program optional(const Program& body) const { return then(branch(1, length(body) + 1), body); }

  Program set_of(ByteSet set) {
    const auto found = std::find(pattern_.sets_.begin(), pattern_.sets_.end(), set);
    const auto index = static_cast<int32_t>(found - pattern_.sets_.begin());
    if (found == pattern_.sets_.end()) pattern_.sets_.push_back(std::move(set));
    return {{Op::kSet, index}};
  }
  Program any() {
    ByteSet set(256, true);
    set['\n'] = false;
    return set_of(std::move(set));
  }
  static ByteSet single(char c) {
    ByteSet set(256, false);
    set[static_cast<unsigned char>(c)] = true;
    return set;
  }

  void finish(Program body) {
    body.push_back({Op::kAccept});
    pattern_.programs_[0] = std::move(body);
  }

  // Literals are collected only where every match passes: outside groups.
  void end_literal() {
    if (literal_.size() > longest_literal_.size()) longest_literal_ = literal_;
    literal_.clear();
  }

  Program alternatives() {
    if (++depth_ > kMaxDepth) refuse("groups nested too deeply");
    Program all = sequence();
    while (take('|')) {
      if (depth_ == 1) {  // nothing is in every match
        literal_.clear();
        longest_literal_.clear();
        has_alternatives_ = true;
      }
      const Program next = sequence();
      all = then(then(then(branch(1, length(all) + 2), all), jump(length(next) + 1)), next);
    }
    --depth_;
    return all;
  }

  Program sequence() {
    Program all;
    while (position_ < text_.size() && !at('|') && !at(')')) {
      const size_t begin = position_;
      const std::optional<char> plain = plain_character();
      const Program one = plain ? set_of(single(*plain)) : atom();
      const Program repeated = quantified(one);
      const bool once = repeated.size() == one.size() && plain.has_value();
      if (depth_ == 1 && !has_alternatives_ && once) {
        literal_.push_back(*plain);
      } else if (depth_ == 1) {
        end_literal();
      }
      if (position_ == begin) malformed("unexpected");
      all = then(std::move(all), repeated);
    }
    if (depth_ == 1) {
      if (has_alternatives_) literal_.clear();
      end_literal();
    }
    return all;
  }

  // A character that stands for itself, or nothing.
  std::optional<char> plain_character() {
    constexpr std::string_view kSpecial = ".[]()|*+?{}^$\\";
    const char c = text_[position_];
    if (c == '\\') {
      if (position_ + 1 >= text_.size()) malformed("nothing behind '\\'");
      const char next = text_[position_ + 1];
      const bool punctuation =
          std::string_view("0123456789").find(next) == std::string_view::npos && !is_letter(next);
      if (!punctuation) return std::nullopt;
      position_ += 2;
      return next;
    }
    // A closing bracket without an opening one, and a brace that opens no repeat, are characters.
    const bool brace = c == '{' && !read_repeat(/*consume=*/false);
    if (kSpecial.find(c) != std::string_view::npos && c != ']' && c != '}' && !brace) {
      return std::nullopt;
    }
    ++position_;
    return c;
  }

  static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

  Program atom() {
    const char c = text_[position_];
    if (c == '*' || c == '+' || c == '?' || c == '{') malformed("nothing to repeat");
    ++position_;
    switch (c) {
      case '.':
        return any();
      case '^':
        return {{Op::kStart}};
      case '$':
        return {{Op::kEnd}};
      case '[':
        return set_of(read_class('^'));
      case '\\':
        return set_of(class_escape(text_[position_++]));
      default:
        return group();
    }
  }

  // \d \w \s and their opposites.
  ByteSet class_escape(char c) const {
    ByteSet set(256, false);
    const auto add = [&](char first, char last) {
      for (int i = static_cast<unsigned char>(first); i <= static_cast<unsigned char>(last); ++i)
        set[static_cast<size_t>(i)] = true;
    };
    switch (c) {
      case 'd':
      case 'D':
        add('0', '9');
        break;
      case 'w':
      case 'W':
        add('0', '9');
        add('a', 'z');
        add('A', 'Z');
        add('_', '_');
        break;
      case 's':
      case 'S':
        add('\t', '\r');
        add(' ', ' ');
        break;
      default:
        refuse(fmt::format("'\\{}' is not understood", is_letter(c) || c >= '0' ? c : '?'));
    }
    if (c == 'D' || c == 'W' || c == 'S') set.flip();
    return set;
  }

  ByteSet read_class(char negation) {
    ByteSet set(256, false);
    const bool negated = take(negation);
    bool first = true;
    while (first || !at(']')) {
      if (position_ >= text_.size()) malformed("a '[' without its ']'");
      first = false;
      char low = text_[position_++];
      if (low == '\\' && negation == '^') {
        if (position_ >= text_.size()) malformed("nothing behind '\\'");
        low = text_[position_++];
        if (is_letter(low) || (low >= '0' && low <= '9')) {
          const ByteSet escaped = class_escape(low);
          for (size_t i = 0; i < set.size(); ++i)
            if (escaped[i]) set[i] = true;
          continue;
        }
      }
      char high = low;
      if (at('-') && position_ + 1 < text_.size() && text_[position_ + 1] != ']') {
        ++position_;
        high = text_[position_++];
        if (high == '\\') refuse("an escape behind '-' is not understood");
      }
      if (static_cast<unsigned char>(high) < static_cast<unsigned char>(low)) {
        malformed("a range that runs backwards");
      }
      for (int i = static_cast<unsigned char>(low); i <= static_cast<unsigned char>(high); ++i)
        set[static_cast<size_t>(i)] = true;
    }
    ++position_;
    if (negated) set.flip();
    return set;
  }

  Program group() {
    bool ahead = false;
    bool negative = false;
    if (take('?')) {
      if (at('=') || at('!')) {
        ahead = true;
        negative = at('!');
      } else if (!at(':')) {
        refuse("of '(?...' only (?:...), (?=...) and (?!...) are understood");
      }
      ++position_;
    }
    if (ahead && in_ahead_) refuse("a lookahead inside a lookahead is not understood");
    in_ahead_ = in_ahead_ || ahead;
    Program body = alternatives();
    if (!take(')')) malformed("a '(' without its ')'");
    if (!ahead) return body;
    in_ahead_ = false;
    body.push_back({Op::kAccept});
    pattern_.programs_.push_back(std::move(body));
    return {{negative ? Op::kNotAhead : Op::kAhead,
             static_cast<int32_t>(pattern_.programs_.size()) - 1}};
  }

  struct Repeat {
    int low;
    int high;  // -1: no limit
  };

  // "{m}", "{m,}", "{,n}" or "{m,n}" at this position.
  std::optional<Repeat> read_repeat(bool consume) {
    size_t p = position_ + 1;
    const auto number = [&]() -> int {
      int value = -1;
      for (; p < text_.size() && text_[p] >= '0' && text_[p] <= '9'; ++p)
        value = std::min(std::max(value, 0) * 10 + (text_[p] - '0'), kMaxRepeat + 1);
      return value;
    };
    const int low = number();
    int high = low;
    const bool comma = p < text_.size() && text_[p] == ',';
    if (comma) {
      ++p;
      high = number();
    }
    if (p >= text_.size() || text_[p] != '}' || (low < 0 && !comma)) return std::nullopt;
    if (consume) position_ = p + 1;
    return Repeat{std::max(low, 0), high};
  }

  Program quantified(const Program& one) {
    std::optional<Repeat> repeat;
    if (take('*')) {
      repeat = {0, -1};
    } else if (take('+')) {
      repeat = {1, -1};
    } else if (take('?')) {
      repeat = {0, 1};
    } else if (at('{')) {
      repeat = read_repeat(/*consume=*/true);
    }
    if (!repeat) return one;
    if (repeat->low > kMaxRepeat || repeat->high > kMaxRepeat) {
      refuse(fmt::format("repeats of more than {} are not understood", kMaxRepeat));
    }
    if (repeat->high >= 0 && repeat->high < repeat->low) malformed("a repeat that runs backwards");
    take('?');  // lazy or greedy: the same names match
    if (at('*') || at('+') || at('?')) refuse("a repeat of a repeat is not understood");
    Program all;
    for (int i = 0; i < repeat->low; ++i)
      all = then(std::move(all), one);
    if (repeat->high < 0) return then(std::move(all), star(one));
    for (int i = repeat->low; i < repeat->high; ++i)
      all = then(std::move(all), optional(one));
    return all;
  }

  std::string_view text_;
  size_t position_ = 0;
  int depth_ = 0;
  bool in_ahead_ = false;
  bool has_alternatives_ = false;
  std::string literal_;
  std::string longest_literal_;
  ModulePattern pattern_;
};

// One program over one name, from one position on.
class PatternRun {
 public:
  PatternRun(const ModulePattern& pattern, std::string_view name)
      : pattern_(pattern), name_(name) {}

  bool accepts(size_t which, size_t position) {
    const ModulePattern::Program& program = pattern_.programs_[which];
    States now(program.size());
    States next(program.size());
    if (enter(program, 0, position, now)) return true;
    for (; position < name_.size() && !now.list.empty(); ++position) {
      const auto byte = static_cast<unsigned char>(name_[position]);
      for (const int32_t state : now.list) {
        const ModulePattern::Step& step = program[static_cast<size_t>(state)];
        if (!pattern_.sets_[static_cast<size_t>(step.a)][byte]) continue;
        if (enter(program, state + 1, position + 1, next)) return true;
      }
      std::swap(now, next);
      next.clear();
    }
    return false;
  }

 private:
  struct States {
    explicit States(size_t count) : seen(count, false) {}
    void clear() {
      std::fill(seen.begin(), seen.end(), false);
      list.clear();
    }
    std::vector<bool> seen;
    std::vector<int32_t> list;  ///< those that wait for a character
  };

  // Follows everything that takes no character. Returns whether the program accepts.
  bool enter(const ModulePattern::Program& program, int32_t first, size_t position,
             States& states) {
    using Op = ModulePattern::Op;
    std::vector<int32_t> open = {first};
    while (!open.empty()) {
      const int32_t state = open.back();
      open.pop_back();
      const auto index = static_cast<size_t>(state);
      if (states.seen[index]) continue;
      states.seen[index] = true;
      const ModulePattern::Step& step = program[index];
      switch (step.op) {
        case Op::kAccept:
          return true;
        case Op::kSet:
          states.list.push_back(state);
          break;
        case Op::kSplit:
          open.push_back(state + step.b);
          open.push_back(state + step.a);
          break;
        case Op::kJump:
          open.push_back(state + step.a);
          break;
        case Op::kStart:
          if (position == 0) open.push_back(state + 1);
          break;
        case Op::kEnd:
          if (position == name_.size()) open.push_back(state + 1);
          break;
        case Op::kAhead:
        case Op::kNotAhead:
          if (accepts(static_cast<size_t>(step.a), position) == (step.op == Op::kAhead)) {
            open.push_back(state + 1);
          }
          break;
      }
    }
    return false;
  }

  const ModulePattern& pattern_;
  std::string_view name_;
};

ModulePattern ModulePattern::regex(std::string_view text, Anchor anchor) {
  return PatternCompiler(text).compile(anchor);
}

ModulePattern ModulePattern::wildcard(std::string_view text) {
  return PatternCompiler(text).compile_wildcard();
}

size_t ModulePattern::num_steps() const noexcept {
  size_t steps = 0;
  for (const Program& program : programs_)
    steps += program.size();
  return steps;
}

bool ModulePattern::matches(std::string_view name) const {
  if (!required_.empty() && name.find(required_) == std::string_view::npos) return false;
  return PatternRun(*this, name).accepts(0, 0);
}

}  // namespace gantry
