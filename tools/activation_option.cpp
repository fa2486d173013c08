#include "tools/activation_option.h"

#include <CLI/CLI.hpp>

#include "kernels/base/check.h"

namespace gantry::cli {

void add_activation_option(CLI::App& app, std::string& option) {
  app.add_option(
         "--activations", option,
         "f32, bf16, scheme or int8 (default: scheme where the checkpoint declares one, else "
         "bf16); int8 rounds inputs that no checkpoint asked to be rounded, with an error of "
         "about 1e-2")
      ->check(CLI::IsMember({"f32", "bf16", "scheme", "int8"}));
}

ActivationChoice choose_activations(const std::string& option, const ActivationScheme& scheme,
                                    bool scheme_by_default) {
  if (option == "f32") return {ActivationDType::kF32, "f32"};
  if (option == "int8") return {ActivationDType::kInt8, "int8 per token (by request)"};
  if (option.empty() && !scheme_by_default && scheme.declared()) {
    return {ActivationDType::kBF16,
            fmt::format("bf16 (the reference has none of the scheme: {})", describe(scheme))};
  }
  if (option == "bf16") return {ActivationDType::kBF16, "bf16"};
  if (!scheme.declared()) {
    return {ActivationDType::kBF16, option.empty() ? "bf16" : "bf16 (the scheme declares none)"};
  }
  if (!scheme.refusal.empty()) {
    GANTRY_CHECK(option.empty(), ErrorCode::kUnsupported,
                 "--activations scheme: {}; f32 and bf16 can run", scheme.refusal);
    return {ActivationDType::kBF16, fmt::format("bf16 (the scheme: {})", scheme.refusal)};
  }
  std::string text = fmt::format("scheme: {}", describe(scheme));
  if (!scheme.note.empty()) text += fmt::format(" ({})", scheme.note);
  return {ActivationDType::kScheme, text};
}

}  // namespace gantry::cli
