#pragma once

// What the subcommands that write checkpoints share: options, and a summary of what was done.

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "loader/checkpoint.h"
#include "tools/cli_common.h"

namespace gantry::cli {

/// --shard-size, --memory, --resume.
struct WriteOptions {
  int64_t shard_bytes = 5'000'000'000;
  int64_t memory_bytes = int64_t{512} << 20;
  bool resume = false;
};

void add_write_options(CLI::App& app, WriteOptions& options);

/// What the bytes of an output depend on besides the command: every file of the input.
std::string input_fingerprint(const Checkpoint& checkpoint, std::string_view command);

/// The last line of a command that wrote a checkpoint: sizes, rate, memory.
class WriteSummary {
 public:
  WriteSummary() : start_(std::chrono::steady_clock::now()) {}
  void print(const Output& output, const std::string& directory, int64_t tensors, int64_t files,
             int64_t written_bytes, int64_t kept_bytes, int64_t buffer_bytes) const;

 private:
  std::chrono::steady_clock::time_point start_;
};

}  // namespace gantry::cli
