#include "loader/config_reader.h"

#include <cmath>
#include <limits>

#include "kernels/base/check.h"

namespace gantry {
namespace {

// The beginning of a value as JSON, in ASCII so that a cut cannot split a character.
std::string excerpt(const nlohmann::json& value) {
  constexpr size_t kLimit = 80;
  std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  if (text.size() > kLimit) text = text.substr(0, kLimit) + "...";
  return text;
}

std::string text_of(const nlohmann::json& entry) {
  return entry.is_string() ? entry.get<std::string>() : entry.dump();
}

std::string join(ConfigReader::Keys keys) {
  std::string text;
  for (const std::string_view key : keys) {
    if (!text.empty()) text += " or ";
    text += key;
  }
  return text;
}

}  // namespace

bool ConfigReader::has(std::string_view key) const {
  const auto found = object_->find(std::string(key));
  return found != object_->end() && !found->is_null();
}

std::optional<ConfigReader::Value> ConfigReader::find(Keys keys) const {
  std::optional<Value> result;
  for (const std::string_view key : keys) {
    if (!has(key)) continue;
    const Value value{key, &object_->at(std::string(key))};
    GANTRY_CHECK(!result || *result->value == *value.value, ErrorCode::kFormat,
                 "{}: {} is {} but {} is {}: they name the same thing", source_, result->key,
                 excerpt(*result->value), value.key, excerpt(*value.value));
    result = value;
  }
  return result;
}

void ConfigReader::wrong_type(const Value& value, std::string_view expected) const {
  fail(ErrorCode::kFormat, "{}: {}: expected {}, found {}", source_, value.key, expected,
       excerpt(*value.value));
}

std::optional<int64_t> ConfigReader::find_int(Keys keys) const {
  std::optional<Value> value = find(keys);
  if (!value) return std::nullopt;
  if (value->value->is_array()) {
    const auto& list = *value->value;
    GANTRY_CHECK(layer_ >= 0 && static_cast<size_t>(layer_) < list.size(), ErrorCode::kFormat,
                 "{}: {} has {} entries, layer {} needs its own", source_, value->key, list.size(),
                 layer_);
    value->value = &list[static_cast<size_t>(layer_)];
  }
  const bool fits = value->value->is_number_integer() &&
                    !(value->value->is_number_unsigned() &&
                      value->value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX));
  if (!fits) wrong_type(*value, "an integer");
  return value->value->get<int64_t>();
}

int64_t ConfigReader::require_int(Keys keys, int64_t low, int64_t high) const {
  const std::optional<int64_t> value = find_int(keys);
  GANTRY_CHECK(value.has_value(), ErrorCode::kFormat, "{}: expected the key {}, found none",
               source_, join(keys));
  GANTRY_CHECK(*value >= low && *value <= high, ErrorCode::kFormat,
               "{}: {}: expected {} to {}, found {}", source_, join(keys), low, high, *value);
  return *value;
}

int64_t ConfigReader::int_or(Keys keys, int64_t fallback) const {
  return find_int(keys).value_or(fallback);
}

int64_t ConfigReader::int_in_range_or(Keys keys, int64_t fallback, int64_t low,
                                      int64_t high) const {
  const std::optional<int64_t> value = find_int(keys);
  return value ? require_int(keys, low, high) : fallback;
}

double ConfigReader::number_or(Keys keys, double fallback) const {
  std::optional<Value> value = find(keys);
  if (!value) return fallback;
  if (value->value->is_array() && layer_ >= 0 &&
      static_cast<size_t>(layer_) < value->value->size()) {
    value->value = &(*value->value)[static_cast<size_t>(layer_)];
    if (value->value->is_null()) return fallback;
  }
  if (!value->value->is_number()) wrong_type(*value, "a number");
  const double number = value->value->get<double>();
  // Numbers are kept as f32.
  GANTRY_CHECK(std::abs(number) <= std::numeric_limits<float>::max(), ErrorCode::kFormat,
               "{}: {}: expected a number that f32 can hold, found {}", source_, value->key,
               number);
  return number;
}

bool ConfigReader::bool_or(Keys keys, bool fallback) const {
  const std::optional<Value> value = find(keys);
  if (!value) return fallback;
  if (!value->value->is_boolean()) wrong_type(*value, "true or false");
  return value->value->get<bool>();
}

std::string ConfigReader::string_or(Keys keys, std::string fallback) const {
  const std::optional<Value> value = find(keys);
  if (!value) return fallback;
  if (!value->value->is_string()) wrong_type(*value, "a string");
  return value->value->get<std::string>();
}

bool ConfigReader::is_list(std::string_view key) const {
  return has(key) && object_->at(std::string(key)).is_array();
}

bool ConfigReader::is_text(std::string_view key) const {
  return has(key) && object_->at(std::string(key)).is_string();
}

std::optional<std::vector<std::string>> ConfigReader::find_list(std::string_view key) const {
  const std::optional<Value> value = find({key});
  if (!value) return std::nullopt;
  if (!value->value->is_array()) wrong_type(*value, "a list");
  std::vector<std::string> list;
  list.reserve(value->value->size());
  for (const auto& entry : *value->value)
    list.push_back(text_of(entry));
  return list;
}

std::optional<std::string> ConfigReader::find_list_entry(std::string_view key) const {
  if (!is_list(key)) return std::nullopt;
  const nlohmann::json& list = object_->at(std::string(key));
  const auto index = static_cast<size_t>(layer_);
  if (layer_ < 0 || index >= list.size()) return std::nullopt;
  return text_of(list[index]);
}

ConfigReader ConfigReader::object_or_empty(std::string_view key) const {
  static const nlohmann::json kEmpty = nlohmann::json::object();
  const auto found = object_->find(std::string(key));
  const bool usable = found != object_->end() && found->is_object();
  return ConfigReader(usable ? *found : kEmpty, source_ + ": " + std::string(key), layer_);
}

}  // namespace gantry
