#include "loader/json_key_order.h"

#include <algorithm>
#include <utility>

#include "loader/json_handler.h"

namespace gantry {
namespace {

class KeyCollector final : public JsonHandler {
 public:
  KeyCollector(std::string_view text, const std::string& source,
               const std::vector<std::string>& path)
      : JsonHandler(text, source), path_(path) {}

  std::vector<std::string> collect() {
    run();
    return std::move(keys_);
  }

  bool null() override { return true; }
  bool boolean(bool /*value*/) override { return true; }
  bool number_integer(number_integer_t /*value*/) override { return true; }
  bool number_unsigned(number_unsigned_t /*value*/) override { return true; }
  bool number_float(number_float_t /*value*/, const string_t& /*text*/) override { return true; }
  bool string(string_t& /*value*/) override { return true; }

  bool start_object(size_t /*size*/) override { return open(); }
  bool end_object() override { return close(); }
  // A list is a level without keys: no path leads through it.
  bool start_array(size_t /*size*/) override { return open(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    const bool inside =
        open_.size() == path_.size() + 1 && std::equal(path_.begin(), path_.end(), open_.begin());
    if (inside) keys_.push_back(name);
    open_.back() = std::move(name);
    return true;
  }

 private:
  bool open() {
    enter();
    open_.emplace_back();
    return true;
  }
  bool close() {
    leave();
    open_.pop_back();
    return true;
  }

  const std::vector<std::string>& path_;
  std::vector<std::string> open_;  ///< the key read last, of each open container
  std::vector<std::string> keys_;
};

}  // namespace

std::vector<std::string> json_key_order(std::string_view text, const std::string& source,
                                        const std::vector<std::string>& path) {
  return KeyCollector(text, source, path).collect();
}

}  // namespace gantry
