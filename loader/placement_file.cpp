// Placement files of other engines: which shape it is, then rows of ids, each checked against the
// model before anything is built from them.

#include "loader/placement_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/base/check.h"
#include "loader/checkpoint.h"
#include "loader/family_spec.h"
#include "loader/moe_config.h"
#include "loader/strict_json.h"

namespace gantry {
namespace {

using nlohmann::json;

constexpr int64_t kMaxFileBytes = int64_t{64} << 20;
constexpr int64_t kMaxPhysical = 1 << 20;

class PlacementReader {
 public:
  PlacementReader(const std::string& source, const PlacedModel& model)
      : source_(source), model_(model) {}

  ExpertPlacement read(const json& document) {
    if (document.is_array()) {
      read_rows(document, /*counts_dense_layers=*/false, "a list");
    } else if (document.is_object() && document.contains("physical_to_logical_map")) {
      read_rows(document.at("physical_to_logical_map"), /*counts_dense_layers=*/true,
                "physical_to_logical_map");
    } else if (document.is_object() && document.contains("initial_global_assignments")) {
      read_assignments(document);
    } else if (document.is_object() && document.contains("expert_to_ep_rank")) {
      for (const PlacedModel::Layer& layer : model_.layers)
        add(layer, document.at("expert_to_ep_rank"), LayerAssignment::Kind::kExpertToRank);
    } else {
      wrong(
          "expected a list of maps, or an object with physical_to_logical_map (SGLang), "
          "initial_global_assignments (TensorRT-LLM) or expert_to_ep_rank (vLLM)");
    }
    return {std::move(layers_), source_};
  }

 private:
  [[noreturn]] void wrong(const std::string& what) const {
    fail(ErrorCode::kFormat, "{}: {}", source_, what);
  }

  void read_rows(const json& rows, bool counts_dense_layers, std::string_view what) {
    if (!rows.is_array() || rows.empty()) wrong(fmt::format("{}: expected rows of ids", what));
    if (!counts_dense_layers && rows.front().is_number()) {
      for (const PlacedModel::Layer& layer : model_.layers)
        add(layer, rows, LayerAssignment::Kind::kPhysicalToLogical);
      return;
    }
    const size_t all = static_cast<size_t>(model_.num_layers);
    const bool by_number = rows.size() == all;
    if (!by_number && rows.size() != model_.layers.size()) {
      wrong(fmt::format("{}: expected a row for each of {} layers or of {} MoE layers, found {}",
                        what, all, model_.layers.size(), rows.size()));
    }
    for (size_t i = 0; i < model_.layers.size(); ++i) {
      const PlacedModel::Layer& layer = model_.layers[i];
      add(layer, rows.at(by_number ? static_cast<size_t>(layer.layer) : i),
          LayerAssignment::Kind::kPhysicalToLogical);
    }
    check_equal_lengths();
  }

  void read_assignments(const json& document) {
    const json& assignments = document.at("initial_global_assignments");
    if (!assignments.is_object()) {
      wrong("initial_global_assignments: expected an object with layer numbers as keys");
    }
    for (const auto& [key, row] : assignments.items()) {
      const std::optional<int> number = parse_index(key);
      const auto layer = std::find_if(
          model_.layers.begin(), model_.layers.end(),
          [&](const PlacedModel::Layer& known) { return number && known.layer == *number; });
      if (layer == model_.layers.end()) {
        wrong(fmt::format("initial_global_assignments: '{}' is not a MoE layer of the model", key));
      }
      add(*layer, row, LayerAssignment::Kind::kPhysicalToLogical);
    }
    for (const PlacedModel::Layer& layer : model_.layers) {
      if (!layers_.contains(layer.layer)) {
        wrong(fmt::format("initial_global_assignments: layer {} is missing", layer.layer));
      }
    }
    check_equal_lengths();
    if (!document.contains("num_slots")) return;
    const json& slots = document.at("num_slots");
    const size_t length = layers_.begin()->second.ids.size();
    if (!slots.is_number_unsigned() || slots.get<uint64_t>() != length) {
      wrong(fmt::format("num_slots is {}, the assignments have {} slots", slots.dump(), length));
    }
  }

  void add(const PlacedModel::Layer& layer, const json& row, LayerAssignment::Kind kind) {
    const auto where = [&] { return fmt::format("layer {}", layer.layer); };
    const bool is_map = kind == LayerAssignment::Kind::kPhysicalToLogical;
    const auto least = static_cast<size_t>(layer.num_experts);
    if (!row.is_array() || row.size() < least || static_cast<int64_t>(row.size()) > kMaxPhysical ||
        (!is_map && row.size() != least)) {
      wrong(fmt::format("{}: expected {} {} ids, found {}", where(),
                        is_map ? "at least" : "exactly", least,
                        row.is_array() ? std::to_string(row.size()) : row.type_name()));
    }
    // Ranks are checked when their number is known.
    const uint64_t limit = is_map ? least : uint64_t{1} << 20;
    LayerAssignment assignment{kind, {}};
    std::vector<bool> has_copy(least, false);
    for (size_t i = 0; i < row.size(); ++i) {
      if (!row[i].is_number_unsigned() || row[i].get<uint64_t>() >= limit) {
        wrong(fmt::format("{}: element {}: expected {} below {}, found {}", where(), i,
                          is_map ? "a logical expert" : "an EP rank", limit, row[i].dump()));
      }
      const auto id = row[i].get<int32_t>();
      assignment.ids.push_back(id);
      if (is_map) has_copy[static_cast<size_t>(id)] = true;
    }
    const auto missing = std::find(has_copy.begin(), has_copy.end(), false);
    if (is_map && missing != has_copy.end()) {
      wrong(fmt::format("{}: logical expert {} has no copy", where(), missing - has_copy.begin()));
    }
    layers_[layer.layer] = std::move(assignment);
  }

  // Other engines hold the maps of all layers in one tensor.
  void check_equal_lengths() const {
    const auto& [first, reference] = *layers_.begin();
    for (const auto& [layer, assignment] : layers_) {
      if (assignment.ids.size() != reference.ids.size()) {
        wrong(fmt::format("layer {} has {} physical experts, layer {} has {}", layer,
                          assignment.ids.size(), first, reference.ids.size()));
      }
    }
  }

  const std::string& source_;
  const PlacedModel& model_;
  std::map<int, LayerAssignment> layers_;
};

std::vector<int32_t> in_order(int num_experts, size_t num_physical) {
  std::vector<int32_t> ids(num_physical);
  for (size_t p = 0; p < num_physical; ++p)
    ids[p] = static_cast<int32_t>(p) % num_experts;
  return ids;
}

std::string tensorrt_llm_yaml(const std::map<int, std::vector<int32_t>>& rows) {
  std::string text =
      fmt::format("num_slots: {}\ninitial_global_assignments:\n", rows.begin()->second.size());
  for (const auto& [layer, ids] : rows)
    text += fmt::format("  {}: [{}]\n", layer, fmt::join(ids, ", "));
  return text + "layer_updates_per_iter: 0\n";
}

}  // namespace

std::string_view to_string(PlacementFormat format) noexcept {
  switch (format) {
    case PlacementFormat::kSglang:
      return "sglang";
    case PlacementFormat::kVllm:
      return "vllm";
    case PlacementFormat::kTensorRtLlm:
      return "tensorrt_llm";
  }
  return "";
}

PlacementFormat parse_placement_format(std::string_view name) {
  for (const PlacementFormat format :
       {PlacementFormat::kSglang, PlacementFormat::kVllm, PlacementFormat::kTensorRtLlm}) {
    if (name == to_string(format)) return format;
  }
  fail(ErrorCode::kInvalidArgument,
       "placement format: expected sglang, vllm or tensorrt_llm, found '{}'", name);
}

PlacedModel placed_model(const MoeModelConfig& config) {
  PlacedModel model{.num_layers = config.num_layers, .layers = {}};
  for (const MoeLayerSpec& spec : config.layers)
    model.layers.push_back({spec.layer, spec.num_experts});
  return model;
}

ExpertPlacement parse_placement_file(std::string_view text, const std::string& source,
                                     const PlacedModel& model) {
  GANTRY_CHECK(!model.layers.empty(), ErrorCode::kInvalidArgument,
               "{}: the model has no MoE layer to place", source);
  return PlacementReader(source, model).read(parse_strict_json(text, source));
}

ExpertPlacement read_placement_file(const std::filesystem::path& path, const PlacedModel& model) {
  return parse_placement_file(read_text_file(path, kMaxFileBytes), path.string(), model);
}

std::string placement_file_text(PlacementFormat format,
                                const std::map<int, std::vector<int32_t>>& rows,
                                const PlacedModel& model, bool yaml) {
  GANTRY_CHECK(!rows.empty() && rows.size() == model.layers.size(), ErrorCode::kInvalidArgument,
               "placement file: expected maps of {} layers, found {}", model.layers.size(),
               rows.size());
  const size_t num_physical = rows.begin()->second.size();
  for (const PlacedModel::Layer& layer : model.layers) {
    const auto row = rows.find(layer.layer);
    GANTRY_CHECK(row != rows.end() && row->second.size() == num_physical,
                 ErrorCode::kInvalidArgument,
                 "placement file: layer {}: expected {} physical experts, found {}", layer.layer,
                 num_physical, row == rows.end() ? 0 : row->second.size());
  }
  GANTRY_CHECK(!yaml || format == PlacementFormat::kTensorRtLlm, ErrorCode::kInvalidArgument,
               "placement file: only tensorrt_llm files are YAML, not {}", to_string(format));
  nlohmann::ordered_json document;
  switch (format) {
    case PlacementFormat::kSglang: {
      auto& all = document["physical_to_logical_map"] = nlohmann::ordered_json::array();
      for (int layer = 0; layer < model.num_layers; ++layer) {
        const auto row = rows.find(layer);
        all.push_back(row != rows.end() ? row->second
                                        : in_order(model.layers[0].num_experts, num_physical));
      }
      break;
    }
    case PlacementFormat::kVllm:
      for (const auto& [layer, ids] : rows)
        document.push_back(ids);
      break;
    case PlacementFormat::kTensorRtLlm: {
      if (yaml) return tensorrt_llm_yaml(rows);
      document["num_slots"] = num_physical;
      for (const auto& [layer, ids] : rows)
        document["initial_global_assignments"][std::to_string(layer)] = ids;
      document["layer_updates_per_iter"] = 0;
      break;
    }
  }
  return document.dump() + "\n";
}

}  // namespace gantry
