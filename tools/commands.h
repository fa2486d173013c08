#pragma once

#include <functional>

#include "tools/cli_common.h"

namespace gantry::cli {

// Each adds its subcommand; when it is the one on the command line, `chosen` runs it and returns
// the exit code.
void add_info_command(CLI::App& app, std::function<int()>& chosen);
void add_inspect_command(CLI::App& app, std::function<int()>& chosen);
void add_verify_command(CLI::App& app, std::function<int()>& chosen);
void add_run_command(CLI::App& app, std::function<int()>& chosen);
void add_synth_command(CLI::App& app, std::function<int()>& chosen);
void add_quantize_command(CLI::App& app, std::function<int()>& chosen);
void add_bench_command(CLI::App& app, std::function<int()>& chosen);
void add_calibrate_command(CLI::App& app, std::function<int()>& chosen);
void add_diff_command(CLI::App& app, std::function<int()>& chosen);
void add_reshard_command(CLI::App& app, std::function<int()>& chosen);
void add_respell_commands(CLI::App& app, std::function<int()>& chosen);  ///< fuse unfuse convert
void add_place_command(CLI::App& app, std::function<int()>& chosen);
void add_stats_command(CLI::App& app, std::function<int()>& chosen);

}  // namespace gantry::cli
