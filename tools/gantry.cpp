// The `gantry` command: parses the command line, runs one subcommand, maps errors to exit codes.

#include <CLI/CLI.hpp>
#include <functional>
#include <new>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "tools/commands.h"

namespace {

using gantry::Error;
using gantry::ErrorCode;
using gantry::LogLevel;
namespace cli = gantry::cli;

int exit_code(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return cli::kExitUsage;
    case ErrorCode::kFormat:
    case ErrorCode::kUnsupported:
      return cli::kExitFinding;
    default:
      return cli::kExitEnvironment;
  }
}

int run_guarded(const std::function<int()>& command) {
  try {
    return command();
  } catch (const Error& error) {
    gantry::log(LogLevel::kError, "{}: {}", gantry::to_string(error.code()), error.what());
    return exit_code(error.code());
  } catch (const std::bad_alloc&) {
    gantry::log(LogLevel::kError, "out of memory");
  } catch (const std::exception& error) {
    gantry::log(LogLevel::kError, "{}", error.what());
  }
  return cli::kExitEnvironment;
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
  cli::add_bench_command(app, chosen);
  cli::add_place_command(app, chosen);
  cli::add_stats_command(app, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? cli::kExitOk : cli::kExitUsage;
  }
  return run_guarded(chosen);
}
