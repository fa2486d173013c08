// Reads what Hugging Face writes beside a sharded checkpoint:
//   { "metadata": { "total_size": 123 }, "weight_map": { tensor: shard, ... } }
// Other members are left to their writers.

#include "loader/safetensors_index.h"

#include <nlohmann/json.hpp>

#include "kernels/base/check.h"
#include "loader/strict_json.h"
#include "loader/untrusted_name.h"

namespace gantry {
namespace {

std::optional<double> total_size(const nlohmann::json& index) {
  const auto metadata = index.find("metadata");
  if (metadata == index.end() || !metadata->is_object()) return std::nullopt;
  const auto size = metadata->find("total_size");
  if (size == metadata->end() || !size->is_number()) return std::nullopt;
  return size->get<double>();  // some writers give 123.0
}

}  // namespace

SafetensorsIndex parse_safetensors_index(std::string_view text, const std::string& source) {
  const nlohmann::json json = parse_strict_json(text, source);
  GANTRY_CHECK(json.is_object(), ErrorCode::kFormat, "{}: expected an object, found {}", source,
               json.type_name());
  const auto weight_map = json.find("weight_map");
  GANTRY_CHECK(weight_map != json.end() && weight_map->is_object() && !weight_map->empty(),
               ErrorCode::kFormat, "{}: expected \"weight_map\", an object of shard names", source);

  SafetensorsIndex index;
  for (const auto& [name, shard] : weight_map->items()) {
    const auto name_problem = tensor_name_problem(name);
    GANTRY_CHECK(name_problem.empty(), ErrorCode::kFormat, "{}: tensor {}: {}", source,
                 quote_name(name), name_problem);
    GANTRY_CHECK(shard.is_string(), ErrorCode::kFormat,
                 "{}: tensor {}: expected the name of a file, found {}", source, quote_name(name),
                 shard.type_name());
    const auto& file = shard.get_ref<const std::string&>();
    const auto problem = shard_name_problem(file);
    GANTRY_CHECK(problem.empty(), ErrorCode::kFormat,
                 "{}: tensor {}: expected a plain file name, found {}: {}", source,
                 quote_name(name), quote_name(file), problem);
    index.weight_map.emplace_hint(index.weight_map.end(), name, file);
  }
  index.total_size = total_size(json);
  return index;
}

}  // namespace gantry
