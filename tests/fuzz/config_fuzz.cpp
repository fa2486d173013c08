// Fuzzes the reader of config.json and the names that follow from it. Input: the file's text.
// What is accepted must make sense: later code computes with the sizes and does not check them
// again.

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/base/error.h"
#include "loader/expected_tensors.h"
#include "loader/moe_config.h"
#include "tests/fuzz/fuzz_check.h"

namespace gantry::test {
namespace {

void check_layer(const MoeLayerSpec& layer) {
  constexpr int64_t kMaxSize = int64_t{1} << 24;
  fuzz_check(layer.num_experts >= 1 && layer.num_experts <= 65536, "experts are counted");
  fuzz_check(layer.hidden_size >= 1 && layer.hidden_size <= kMaxSize, "the hidden size is one");
  fuzz_check(layer.expert_hidden_size >= 1 && layer.expert_hidden_size <= kMaxSize,
             "the experts' hidden size is one");
  fuzz_check(layer.intermediate_size >= 1 && layer.intermediate_size <= kMaxSize,
             "the intermediate size is one");
  fuzz_check(layer.shared.intermediate_size >= 0, "shared experts have a size");
  fuzz_check(layer.routing.num_experts == layer.num_experts + layer.routing.num_zero_experts &&
                 layer.routing.num_zero_experts >= 0,
             "the router knows all experts");
  fuzz_check(layer.routing.top_k >= 1 && layer.routing.top_k <= layer.routing.num_experts,
             "top_k is at most the number of experts");
  validate(layer.activation);
  if (layer.routing.method == RoutingMethod::kHash) return;
  try {
    validate(layer.routing, {});
  } catch (const Error&) {  // groups that do not divide the experts, say: refused before they run
  }
}

void check_names(const MoeModelConfig& model) {
  const NameMap names(*model.family, "model.");
  const MoeLayerSpec& layer = model.layers.front();
  if (layer.num_experts > 64) return;
  for (const TensorRef& ref :
       expected_tensors(layer, *model.family, usual_stacking(*model.family))) {
    const ParsedName parsed = names.parse(names.format(ref));
    fuzz_check(parsed.name_class == NameClass::kMoe, "an expected name is read");
    fuzz_check(parsed.ref.layer == ref.layer && parsed.ref.expert == ref.expert,
               "an expected name means what it says");
  }
}

// Any name is a legal question; what is answered must be possible to compute with.
void check_quantization(const QuantConfig& quant) {
  for (const char* module :
       {"model.layers.0.mlp.experts.1.down_proj", "model.layers.0.mlp.gate", "lm_head", "", "."}) {
    (void)quant.leaves_out(module);
    try {
      const QuantScheme* scheme = quant.scheme_for(module);
      if (scheme == nullptr) continue;
      fuzz_check(scheme->bits >= 0 && scheme->bits <= 8, "integers have up to 8 bits");
      fuzz_check(scheme->group_size >= 0, "groups have a size");
      fuzz_check(
          scheme->grid != ScaleGrid::kBlock || (scheme->block_rows >= 1 && scheme->block_cols >= 1),
          "blocks have a size");
    } catch (const Error& error) {
      fuzz_check(error.code() != ErrorCode::kInternal, "a bad rule is no bug of ours");
    }
  }
}

void parse(std::string_view input) {
  try {
    const MoeModelConfig model = read_moe_config(std::string(input), "fuzz");
    fuzz_check(model.family != nullptr && !model.layers.empty(), "a model has MoE layers");
    fuzz_check(model.num_layers >= 1 && model.num_layers <= 10000, "layers are counted");
    fuzz_check(model.num_mtp_layers >= 0 && model.num_mtp_layers <= 10000,
               "MTP layers are counted");
    int previous = -1;
    for (const MoeLayerSpec& layer : model.layers) {
      fuzz_check(layer.layer > previous && layer.layer < model.num_layers, "layers ascend");
      previous = layer.layer;
      check_layer(layer);
    }
    check_names(model);
    if (model.quant) check_quantization(*model.quant);
  } catch (const Error& error) {
    fuzz_check(error.code() != ErrorCode::kInternal, "a bad config is no bug of ours");
  }
}

}  // namespace
}  // namespace gantry::test

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  gantry::test::parse({reinterpret_cast<const char*>(data), size});
  return 0;
}
