#pragma once

#include <string>

#include "kernels/grouped_gemm/panel_gemm_kernels.h"
#include "loader/encodings/activation_scheme.h"

namespace CLI {
class App;
}

namespace gantry::cli {

/// Adds --activations f32, bf16 or scheme; left empty without it.
void add_activation_option(CLI::App& app, std::string& option);

/// How a command runs its inputs, and that in words.
struct ActivationChoice {
  ActivationDType dtype = ActivationDType::kBF16;
  std::string text;  ///< "scheme: fp8 per token"
};

/// What `option` means for a checkpoint that declares `scheme`: empty is the scheme where the
/// checkpoint declares one that can be simulated, else bf16. A scheme that declares nothing is bf16
/// as well.
/// @param scheme_by_default false: empty is bf16 whatever the checkpoint declares
ActivationChoice choose_activations(const std::string& option, const ActivationScheme& scheme,
                                    bool scheme_by_default = true);

}  // namespace gantry::cli
