#include <CLI/CLI.hpp>
#include <memory>

#include "kernels/base/check.h"
#include "kernels/base/cpu_features.h"
#include "kernels/grouped_gemm/grouped_gemm_kernels.h"
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
  output.text("grouped GEMM kernels, best first for each weight dtype (* runs here):");
  for (const GroupedGemmKernel& kernel : grouped_gemm_kernels()) {
    const bool available = host.contains(kernel.isa);
    const bool chosen =
        available && &select_grouped_gemm(kernel.layout, kernel.dtype, host) == &kernel;
    const std::string state = chosen      ? "chosen"
                              : available ? "refused: a better row runs here"
                                          : fmt::format("refused: needs {}", to_string(kernel.isa));
    output.text(fmt::format("  {} {:<20} {:<5} {}", chosen ? '*' : ' ', kernel.name,
                            to_string(kernel.dtype), state));
    output.event("kernel", {{"name", kernel.name},
                            {"dtype", to_string(kernel.dtype)},
                            {"isa", to_string(kernel.isa)},
                            {"chosen", chosen},
                            {"state", state}});
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
