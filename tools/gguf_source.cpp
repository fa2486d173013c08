#include "tools/gguf_source.h"

#include <string_view>
#include <variant>

#include "kernels/base/check.h"
#include "loader/gguf.h"
#include "loader/gguf_export.h"

namespace gantry::cli {
namespace {

constexpr std::string_view kGguf = "gguf";

/// What stood before "layers." in the safetensors file that a GGUF file was made from, if it was.
std::string stored_prefix(const Checkpoint& checkpoint, const FamilySpec& family) {
  const GgufFile file(checkpoint.files().front().path());
  const auto found = file.header().metadata.find(kGgufPrefixKey);
  if (found == file.header().metadata.end()) return std::string(family.default_prefix);
  const auto* prefix = std::get_if<std::string>(&found->second);
  GANTRY_CHECK(prefix != nullptr, ErrorCode::kFormat, "{}: {}: expected a string",
               file.path().string(), kGgufPrefixKey);
  return *prefix;
}

}  // namespace

bool is_gguf(const MoeModel& model) { return model.config().family->name == kGguf; }

GgufSource read_gguf_source(const MoeModel& model, const std::string& input,
                            const std::string& config_file) {
  GgufSource source;
  source.config_file = config_file;
  if (config_file.empty()) source.config_file = model.checkpoint().directory() / "config.json";
  GANTRY_CHECK(std::filesystem::exists(source.config_file), ErrorCode::kInvalidArgument,
               "{}: metadata of GGUF say less than a config.json does: expected one at {}, or "
               "--config FILE",
               input, source.config_file.string());
  constexpr int64_t kMaxConfigBytes = int64_t{16} << 20;
  source.config_text = read_text_file(source.config_file, kMaxConfigBytes);
  source.config = read_moe_config(source.config_text, source.config_file.string());
  const auto difference = config_difference(model.config(), source.config);
  GANTRY_CHECK(!difference, ErrorCode::kFormat, "{} and {} are not of one model: {}", input,
               source.config_file.string(), *difference);
  source.prefix = stored_prefix(model.checkpoint(), *source.config.family);
  source.architecture = model.config().model_type.substr(kGguf.size() + 1);
  return source;
}

}  // namespace gantry::cli
