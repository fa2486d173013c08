// The `gantry` command: parses the command line, runs one subcommand, maps errors to exit codes.

#include <CLI/CLI.hpp>
#include <exception>
#include <functional>

#include "kernels/base/log_format.h"
#include "tools/commands.h"

namespace {

using gantry::LogLevel;
namespace cli = gantry::cli;

int run_guarded(const std::function<int()>& command) {
  try {
    return command();
  } catch (...) {
    const cli::CommandFailure failure = cli::describe_failure(std::current_exception());
    gantry::log(LogLevel::kError, "{}", failure.text);
    return cli::exit_code_of(failure.code);
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Gantry: load, check and run fused Mixture-of-Experts layers", "gantry"};
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("gantry ") + GANTRY_VERSION);
  std::function<int()> chosen;
  cli::add_info_command(app, chosen);
  cli::add_inspect_command(app, chosen);
  cli::add_verify_command(app, chosen);
  cli::add_run_command(app, chosen);
  cli::add_synth_command(app, chosen);
  cli::add_quantize_command(app, chosen);
  cli::add_bench_command(app, chosen);
  cli::add_calibrate_command(app, chosen);
  cli::add_diff_command(app, chosen);
  cli::add_respell_commands(app, chosen);
  cli::add_reshard_command(app, chosen);
  cli::add_place_command(app, chosen);
  cli::add_stats_command(app, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? cli::kExitOk : cli::kExitUsage;
  }
  return run_guarded(chosen);
}
