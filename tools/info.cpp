#include <CLI/CLI.hpp>
#include <memory>

#include "kernels/base/check.h"
#include "kernels/base/cpu_features.h"
#include "kernels/grouped_gemm/panel_gemm_kernels.h"
#include "loader/family_spec.h"
#include "tools/commands.h"

namespace gantry::cli {
namespace {

int run_info(const CommonOptions& common) {
  const Output output(common);
  const IsaSet host = host_isas();
  output.text(fmt::format("gantry {}", GANTRY_VERSION));
  output.text(fmt::format("cpu: {}, {} CPUs for this process", cpu_model_name(), available_cpus()));
  output.text(fmt::format("instruction sets: {}", to_string(detected_isas())));
  if (!(host == detected_isas())) {
    output.text(fmt::format("capped by GANTRY_MAX_ISA to: {}", to_string(host)));
  }
  output.text(fmt::format("built with: MPI {}, CUDA {}, NCCL {}", GANTRY_BUILT_WITH_MPI,
                          GANTRY_BUILT_WITH_CUDA, GANTRY_BUILT_WITH_NCCL));
  output.event("info", {{"version", GANTRY_VERSION},
                        {"cpu", cpu_model_name()},
                        {"cpus", available_cpus()},
                        {"isas", to_string(host)}});
  const Avx512DotChoice& dot = avx512_dot_choice();
  const std::string_view flavour = dot.flavour == Avx512Dot::kDot ? "bf16" : "fma";
  output.text(fmt::format("avx512 dot: {} ({})", flavour, dot.reason));
  output.event("avx512_dot", {{"flavour", flavour}, {"ratio", dot.ratio}, {"reason", dot.reason}});
  output.text("GEMM kernels by weights and activations, and why the better ones were refused:");
  for (const DType weights : {DType::kBF16, DType::kF16, DType::kF32}) {
    for (const auto activations : {ActivationDType::kBF16, ActivationDType::kF32}) {
      const KernelRequest request{
          .weights = weights, .activations = activations, .isas = host, .avx512_dot = dot.flavour};
      const PanelGemmKernel& chosen = select_panel_gemm(request);
      const std::vector<std::string> refused = refused_panel_gemms(request);
      output.text(fmt::format("  {:<4} x {:<4}  {}", to_string(weights), to_string(activations),
                              chosen.name));
      for (const std::string& reason : refused)
        output.text(fmt::format("      not {}", reason));
      output.event("kernel", {{"weights", to_string(weights)},
                              {"activations", to_string(activations)},
                              {"name", chosen.name},
                              {"isa", to_string(chosen.isa)},
                              {"refused", refused}});
    }
  }
  output.text("model families (model_type):");
  for (const FamilySpec& family : family_specs()) {
    output.text(fmt::format("  {:<15} {}", family.name, fmt::join(family.model_types, ", ")));
    output.event("family", {{"name", family.name}, {"model_types", family.model_types}});
  }
  return kExitOk;
}

}  // namespace

void add_info_command(CLI::App& app, std::function<int()>& chosen) {
  auto common = std::make_shared<CommonOptions>();
  CLI::App* command = app.add_subcommand("info", "This machine, its kernels, the model families");
  add_common_options(*command, *common);
  command->callback([common, &chosen] { chosen = [common] { return run_info(*common); }; });
}

}  // namespace gantry::cli
