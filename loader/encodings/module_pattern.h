#pragma once

// Patterns over module names, as quantization configs write them. Internal.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace gantry {

/// A regular expression or a shell wildcard, compiled.
///
/// Patterns come from files that nobody vouches for, so they run as a set of states that moves over
/// the name (Thompson's construction): time is at most proportional to the pattern times the name
/// (times the name again in a lookahead), whatever the pattern. Understood is the part of Python's
/// `re` that configs use: literals, `.`, `\d \w \s` and escaped punctuation, `[...]`, groups
/// without a name, `|`, `* + ? {m,n}` (also lazy), `^ $` and lookaheads `(?=...) (?!...)`.
class ModulePattern {
 public:
  /// Where a regular expression must match.
  enum class Anchor : uint8_t {
    kStart,     ///< from the first character on: Python's re.match
    kAnywhere,  ///< re.search
  };

  /// @throws Error kUnsupported for what is not understood (back references, names, flags), a
  ///         pattern of more than 1024 characters, or repeats that add up to more than 8192 steps
  /// @throws Error kFormat for a pattern that is no regular expression
  static ModulePattern regex(std::string_view text, Anchor anchor);

  /// `*`, `?` and `[...]` over the whole name: Python's fnmatch.
  static ModulePattern wildcard(std::string_view text);

  [[nodiscard]] bool matches(std::string_view name) const;
  /// Size of the compiled pattern.
  [[nodiscard]] size_t num_steps() const noexcept;

 private:
  friend class PatternCompiler;
  friend class PatternRun;

  enum class Op : uint8_t { kSet, kSplit, kJump, kStart, kEnd, kAhead, kNotAhead, kAccept };
  struct Step {
    Op op;
    int32_t a = 0;  ///< kSet: index of the set; kSplit, kJump: distance; kAhead: index of a program
    int32_t b = 0;  ///< kSplit: the other distance
  };
  using Program = std::vector<Step>;
  using ByteSet = std::vector<bool>;  // [256]

  std::vector<Program> programs_;  ///< the first is the pattern, the others its lookaheads
  std::vector<ByteSet> sets_;
  std::string required_;  ///< a literal that every match contains: checked first
};

}  // namespace gantry
