#pragma once

// What every reader of untrusted JSON in the loader shares. Internal: nlohmann types.

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace gantry {

/// Base of the SAX handlers: feeds a text through nlohmann's parser, knows at which byte it is, and
/// turns whatever is not JSON into an Error.
///
/// Stricter than nlohmann: a NUL byte does not end the text and a byte order mark is not skipped.
/// Handlers bound the nesting with `enter` and `leave` and throw from their callbacks.
class JsonHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  /// @param source name used in messages; must outlive the handler
  JsonHandler(std::string_view text, const std::string& source) : text_(text), source_(source) {}

  bool parse_error(size_t position, const std::string& last_token,
                   const nlohmann::detail::exception& error) final;
  /// Never called for JSON text.
  bool binary(binary_t& value) final;

 protected:
  static constexpr int kMaxDepth = 64;

  /// Parses the whole text, calling back the handler.
  /// @throws Error kFormat naming the source and the byte
  void run();

  [[nodiscard]] const std::string& source() const noexcept { return source_; }
  /// Throws kFormat with `problem`, the source and the byte reached so far.
  [[noreturn]] void fail_here(const std::string& problem) const;
  void enter() {
    if (++depth_ > kMaxDepth) fail_too_deep();
  }
  void leave() noexcept { --depth_; }

 private:
  [[noreturn]] void fail_too_deep() const;

  std::string_view text_;
  const std::string& source_;
  size_t consumed_ = 0;
  int depth_ = 0;
};

}  // namespace gantry
