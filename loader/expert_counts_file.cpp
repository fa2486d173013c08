#include "loader/expert_counts_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "kernels/base/check.h"
#include "loader/checkpoint.h"
#include "loader/strict_json.h"

namespace gantry {
namespace {

using nlohmann::json;

constexpr int64_t kMaxFileBytes = int64_t{256} << 20;
constexpr int64_t kMaxLayer = 1 << 20;
// Sums of so many counts, over files of the size above, stay far inside 64 bits.
constexpr uint64_t kMaxCount = uint64_t{1} << 48;

class CountsReader {
 public:
  explicit CountsReader(const std::string& source) : source_(source) {}

  void read_rows(const json& rows) {
    if (!rows.is_array() || rows.empty()) {
      wrong("expected rows of counts, one for each layer");
    }
    const bool sums_steps =
        rows.front().is_array() && !rows.front().empty() && rows.front().front().is_array();
    if (sums_steps) {
      for (const json& step : rows)
        read_rows(step);
      return;
    }
    for (size_t layer = 0; layer < rows.size(); ++layer)
      add(static_cast<int>(layer), rows[layer]);
  }

  // One object, which may be about something else.
  void read_event(const json& object) {
    if (!object.is_object() || !object.contains("layer") || !object.contains("tokens_per_expert")) {
      return;
    }
    const json& number = object.at("layer");
    if (!number.is_number_unsigned() || number.get<uint64_t>() >= kMaxLayer) {
      wrong(fmt::format("layer: expected a number below {}, found {}", kMaxLayer, number.dump()));
    }
    const int layer = number.get<int>();
    add(layer, object.at("tokens_per_expert"));
    LayerLoad& load = counts_[layer];
    if (object.contains("tokens_per_rank")) {
      add_row(layer, "rank", object.at("tokens_per_rank"), load.tokens_per_rank);
    }
    for (const auto& [key, total] :
         {std::pair{"rebalances", &load.rebalances}, std::pair{"bytes_moved", &load.bytes_moved}}) {
      if (object.contains(key)) *total += count(layer, key, object.at(key));
    }
  }

  ExpertCounts finish(bool leave_out_zeros) {
    if (leave_out_zeros) {
      std::erase_if(counts_, [](const auto& layer) {
        const std::vector<int64_t>& tokens = layer.second.tokens_per_expert;
        return std::all_of(tokens.begin(), tokens.end(), [](int64_t n) { return n == 0; });
      });
    }
    if (counts_.empty()) wrong("no layer with token counts");
    return std::move(counts_);
  }

  void at_line(size_t line) { line_ = line; }

 private:
  [[noreturn]] void wrong(const std::string& what) const {
    const std::string where = line_ ? fmt::format("{}:{}", source_, *line_) : source_;
    fail(ErrorCode::kFormat, "{}: {}", where, what);
  }

  void add(int layer, const json& row) {
    add_row(layer, "expert", row, counts_[layer].tokens_per_expert);
  }

  void add_row(int layer, std::string_view what, const json& row, std::vector<int64_t>& counts) {
    if (!row.is_array() || row.empty()) {
      wrong(fmt::format("layer {}: expected a list of counts, found {}", layer, row.type_name()));
    }
    if (counts.empty()) counts.resize(row.size(), 0);
    if (counts.size() != row.size()) {
      wrong(fmt::format("layer {}: {} {}s, before there were {}", layer, row.size(), what,
                        counts.size()));
    }
    for (size_t i = 0; i < row.size(); ++i)
      counts[i] += count(layer, fmt::format("{} {}", what, i), row[i]);
  }

  // Whole numbers, also written as 12.0 (counts that were averaged or came from a float tensor).
  int64_t count(int layer, const std::string& what, const json& value) const {
    if (value.is_number_unsigned() && value.get<uint64_t>() <= kMaxCount) {
      return value.get<int64_t>();
    }
    if (value.is_number_float()) {
      const double number = value.get<double>();
      if (number >= 0 && number <= static_cast<double>(kMaxCount)) {
        return static_cast<int64_t>(number + 0.5);
      }
    }
    wrong(fmt::format("layer {}, {}: expected a count from 0 to 2^48, found {}", layer, what,
                      value.dump()));
  }

  const std::string& source_;
  std::optional<size_t> line_;
  ExpertCounts counts_;
};

// JSON lines begin with a whole object of an event, other documents do not.
bool is_json_lines(std::string_view text) {
  const std::string_view line = text.substr(0, text.find('\n'));
  try {
    const json first = parse_strict_json(line, "");
    return first.is_object() && !first.contains("logical_count");
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

ExpertCounts parse_expert_counts(std::string_view text, const std::string& source) {
  CountsReader reader(source);
  if (!is_json_lines(text)) {
    const json document = parse_strict_json(text, source);
    const bool is_sglang = document.is_object() && document.contains("logical_count");
    reader.read_rows(is_sglang ? document.at("logical_count") : document);
    return reader.finish(/*leave_out_zeros=*/true);
  }
  size_t number = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    reader.at_line(++number);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    reader.read_event(parse_strict_json(line, fmt::format("{}:{}", source, number)));
  }
  return reader.finish(/*leave_out_zeros=*/false);
}

ExpertCounts read_expert_counts(const std::filesystem::path& path) {
  return parse_expert_counts(read_text_file(path, kMaxFileBytes), path.string());
}

}  // namespace gantry
