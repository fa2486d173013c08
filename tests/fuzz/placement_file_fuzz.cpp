// Fuzzes placement files and load files. Input: the file's text. A placement that is accepted must
// give a map of every MoE layer; counts that are accepted must be no less than 0.

#include <cstdint>
#include <string_view>

#include "kernels/base/error.h"
#include "loader/expert_counts_file.h"
#include "loader/placement_file.h"
#include "tests/fuzz/fuzz_check.h"

namespace gantry::test {
namespace {

void parse_placement(std::string_view input) {
  const PlacedModel model{.num_layers = 3, .layers = {{1, 4}, {2, 4}}};
  try {
    const ExpertPlacement placement = parse_placement_file(input, "fuzz", model);
    for (const PlacedModel::Layer& layer : model.layers) {
      const LayerAssignment& assignment = placement.layers().at(layer.layer);
      if (assignment.kind == LayerAssignment::Kind::kExpertToRank) continue;
      const ExpertMap map = placement.map_of(layer.layer, layer.num_experts, 2);
      fuzz_check(map.num_physical() >= layer.num_experts, "every expert has a copy");
    }
  } catch (const Error& error) {
    fuzz_check(error.code() == ErrorCode::kFormat, "a bad placement is a format error");
  }
}

void parse_counts(std::string_view input) {
  try {
    const ExpertCounts counts = parse_expert_counts(input, "fuzz");
    fuzz_check(!counts.empty(), "counts are of some layer");
    for (const auto& [layer, load] : counts) {
      fuzz_check(layer >= 0 && !load.tokens_per_expert.empty(), "a layer has experts");
      for (const int64_t tokens : load.tokens_per_expert)
        fuzz_check(tokens >= 0, "a count is not negative");
    }
  } catch (const Error& error) {
    fuzz_check(error.code() == ErrorCode::kFormat, "a bad load file is a format error");
  }
}

}  // namespace
}  // namespace gantry::test

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  gantry::test::parse_placement(input);
  gantry::test::parse_counts(input);
  return 0;
}
