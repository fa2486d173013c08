// Builds a DOM from SAX events, because nlohmann's own DOM builder keeps the last of two equal keys
// without a word.

#include "loader/strict_json.h"

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "loader/json_handler.h"
#include "loader/untrusted_name.h"

namespace gantry {
namespace {

class DomBuilder final : public JsonHandler {
 public:
  using JsonHandler::JsonHandler;

  nlohmann::json build() {
    run();
    return std::move(root_);
  }

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(value); }
  bool number_unsigned(number_unsigned_t value) override { return put(value); }
  bool number_float(number_float_t value, const string_t& /*text*/) override { return put(value); }
  bool string(string_t& value) override { return put(std::move(value)); }

  bool start_object(size_t /*size*/) override { return open(nlohmann::json::object()); }
  bool end_object() override { return close(); }
  bool start_array(size_t /*size*/) override { return open(nlohmann::json::array()); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    if (open_.back()->contains(name)) fail_here("duplicate key " + quote_name(name));
    member_ = &(*open_.back())[name];
    return true;
  }

 private:
  /// Puts a value where the document expects the next one.
  bool put(nlohmann::json value) {
    place(std::move(value));
    return true;
  }

  nlohmann::json& place(nlohmann::json value) {
    if (open_.empty()) return root_ = std::move(value);
    if (open_.back()->is_array()) {
      open_.back()->push_back(std::move(value));
      return open_.back()->back();
    }
    return *member_ = std::move(value);
  }

  bool open(nlohmann::json container) {
    enter();
    // The address holds until the container is closed: its parent is not touched before that.
    open_.push_back(&place(std::move(container)));
    return true;
  }

  bool close() {
    leave();
    open_.pop_back();
    return true;
  }

  nlohmann::json root_;
  std::vector<nlohmann::json*> open_;  ///< containers from the root down to the innermost
  nlohmann::json* member_ = nullptr;   ///< value of the key read last
};

}  // namespace

nlohmann::json parse_strict_json(std::string_view text, const std::string& source) {
  return DomBuilder(text, source).build();
}

}  // namespace gantry
