#include "tools/write_options.h"

#include <CLI/CLI.hpp>

#include "kernels/base/check.h"
#include "loader/checkpoint_writer.h"

namespace gantry::cli {

void add_write_options(CLI::App& app, WriteOptions& options) {
  app.add_option("--shard-size", options.shard_bytes,
                 "most bytes of tensors in a file: 5GB, 2GiB ... (0: one file)")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->default_str("5GB");
  app.add_option("--memory", options.memory_bytes, "bound of all buffers: 512MiB, 2GB ...")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->default_str(fmt::format("{}MiB", options.memory_bytes >> 20));
  app.add_flag("--resume", options.resume,
               "continue an unfinished run: files whose checksum is right are kept");
}

std::string input_fingerprint(const Checkpoint& checkpoint, std::string_view command) {
  std::vector<std::filesystem::path> files;
  for (const WeightFile& file : checkpoint.files())
    files.push_back(file.path());
  return fmt::format("{}\n{}\n{}", command, checkpoint.config_text(), fingerprint_files(files));
}

void WriteSummary::print(const Output& output, const std::string& directory, int64_t tensors,
                         int64_t files, int64_t written_bytes, int64_t kept_bytes,
                         int64_t buffer_bytes) const {
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const double rate = seconds > 0 ? static_cast<double>(written_bytes) / seconds / 1e6 : 0.0;
  output.result(fmt::format(
      "{}: {} tensors in {} file(s), {} written{} in {:.2f} s ({:.0f} MB/s), peak memory {} "
      "(buffers {})",
      directory, tensors, files, human_bytes(written_bytes),
      kept_bytes > 0 ? fmt::format(", {} kept", human_bytes(kept_bytes)) : "", seconds, rate,
      human_bytes(peak_rss_bytes()), human_bytes(buffer_bytes)));
  output.event("result", {{"directory", directory},
                          {"tensors", tensors},
                          {"files", files},
                          {"written_bytes", written_bytes},
                          {"kept_bytes", kept_bytes},
                          {"seconds", seconds},
                          {"peak_rss_bytes", peak_rss_bytes()},
                          {"peak_buffer_bytes", buffer_bytes}});
}

}  // namespace gantry::cli
