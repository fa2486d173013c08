#include "loader/encodings/companion_names.h"

#include <string_view>

namespace gantry {
namespace {

class Wanted {
 public:
  explicit Wanted(const std::set<std::string>& suffixes) : suffixes_(suffixes) {}

  [[nodiscard]] bool has(const std::string& suffix) const { return suffixes_.contains(suffix); }
  void want(const std::string& suffix) {
    if (!has(suffix)) missing_.push_back(suffix);
  }
  void want_either(const std::string& a, const std::string& b) {
    if (!has(a) && !has(b)) missing_.push_back(a + " or " + b);
  }
  std::vector<std::string> take() { return std::move(missing_); }

 private:
  const std::set<std::string>& suffixes_;
  std::vector<std::string> missing_;
};

bool names(const QuantScheme& scheme, std::string_view word) {
  return scheme.method.find(word) != std::string::npos;
}

bool is_method(const QuantScheme& scheme, std::string_view method) {
  return scheme.method.starts_with(method);
}

// GPTQ and AWQ.
void want_packed_words(const QuantScheme& scheme, Wanted& wanted) {
  wanted.want("qweight");
  wanted.want("scales");
  const bool gptq = scheme.int_packing == IntPacking::kGptq;
  if (gptq || !scheme.symmetric) wanted.want("qzeros");
  if (gptq && scheme.act_order) wanted.want("g_idx");
}

// compressed-tensors, and AutoRound in its names.
void want_compressed(const QuantScheme& scheme, Wanted& wanted) {
  wanted.want("weight_scale");
  if (!scheme.symmetric) wanted.want("weight_zero_point");
  if (names(scheme, "nvfp4")) wanted.want("weight_global_scale");
  if (scheme.act_order) wanted.want("weight_g_idx");
}

// compressed-tensors' formats whose codes are a "weight", not packed.
bool stores_weight(const QuantScheme& scheme) {
  return names(scheme, "float-quantized") || names(scheme, "int-quantized") ||
         names(scheme, "naive-quantized") || names(scheme, "mxfp8-quantized");
}

}  // namespace

std::vector<std::string> missing_names(const QuantScheme& scheme,
                                       const std::set<std::string>& suffixes) {
  Wanted wanted(suffixes);
  const bool only_weight = suffixes.size() == 1 && wanted.has("weight");
  if (wanted.has("qweight") || wanted.has("qzeros") || wanted.has("scales")) {
    if (is_method(scheme, "mxfp4") || wanted.has("blocks")) {
      wanted.want("blocks");
      wanted.want("scales");
    } else {
      want_packed_words(scheme, wanted);
    }
  } else if (wanted.has("blocks")) {
    wanted.want("scales");
  } else if (wanted.has("weight_packed")) {
    want_compressed(scheme, wanted);
  } else if (is_method(scheme, "bitsandbytes")) {
    wanted.want("weight");
    if (!only_weight && !wanted.has("SCB")) {
      wanted.want("weight.absmax");
      wanted.want("weight.quant_map");
    }
  } else if (is_method(scheme, "compressed-tensors") && stores_weight(scheme)) {
    wanted.want("weight");
    want_compressed(scheme, wanted);
  } else if (is_method(scheme, "fp8") || names(scheme, "auto_round:fp8") ||
             is_method(scheme, "modelopt") || is_method(scheme, "quark") ||
             (!only_weight && wanted.has("weight"))) {
    wanted.want("weight");
    wanted.want_either("weight_scale", "weight_scale_inv");
    if (is_method(scheme, "modelopt") && names(scheme, "NVFP4")) wanted.want("weight_scale_2");
  } else if (!suffixes.empty() && !wanted.has("weight")) {
    wanted.want_either("weight", "weight_packed");
  }
  if (!only_weight && !scheme.activations.scale_suffix.empty()) {
    wanted.want(scheme.activations.scale_suffix);
  }
  return wanted.take();
}

}  // namespace gantry
