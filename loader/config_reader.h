#pragma once

// Typed access to a config.json. Internal: uses nlohmann types.

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace gantry {

/// Reads keys of one JSON object, under any of their aliases. Aliases that are both present must
/// agree. A null counts as absent. Every error names source, key, what was expected and found.
class ConfigReader {
 public:
  using Keys = std::initializer_list<std::string_view>;

  /// @param object the part of the config that describes the decoder (text_config, say)
  ConfigReader(const nlohmann::json& object, std::string source, int layer = 0)
      : object_(&object), source_(std::move(source)), layer_(layer) {}

  [[nodiscard]] bool has(std::string_view key) const;
  /// Integers; a list of one integer a layer is read at this reader's layer.
  [[nodiscard]] std::optional<int64_t> find_int(Keys keys) const;
  [[nodiscard]] int64_t require_int(Keys keys, int64_t low, int64_t high) const;
  [[nodiscard]] int64_t int_or(Keys keys, int64_t fallback) const;
  /// Like int_or, for sizes and counts that are computed with.
  [[nodiscard]] int64_t int_in_range_or(Keys keys, int64_t fallback, int64_t low,
                                        int64_t high) const;
  [[nodiscard]] double number_or(Keys keys, double fallback) const;
  [[nodiscard]] bool bool_or(Keys keys, bool fallback) const;
  [[nodiscard]] std::string string_or(Keys keys, std::string fallback) const;
  [[nodiscard]] bool is_list(std::string_view key) const;
  [[nodiscard]] bool is_text(std::string_view key) const;
  /// A list of strings or numbers as text, or nothing.
  [[nodiscard]] std::optional<std::vector<std::string>> find_list(std::string_view key) const;
  /// The entry for this reader's layer of a list with one entry a layer, as text. Nothing where
  /// there is no list or it is too short.
  [[nodiscard]] std::optional<std::string> find_list_entry(std::string_view key) const;
  /// A nested object, or an empty one.
  [[nodiscard]] ConfigReader object_or_empty(std::string_view key) const;

  [[nodiscard]] ConfigReader at_layer(int layer) const {
    return ConfigReader(*object_, source_, layer);
  }
  [[nodiscard]] int layer() const noexcept { return layer_; }
  [[nodiscard]] const std::string& source() const noexcept { return source_; }

 private:
  struct Value {
    std::string_view key;
    const nlohmann::json* value;
  };
  [[nodiscard]] std::optional<Value> find(Keys keys) const;
  [[noreturn]] void wrong_type(const Value& value, std::string_view expected) const;

  const nlohmann::json* object_;
  std::string source_;
  int layer_;
};

}  // namespace gantry
