#pragma once

// A GGUF file as the source of a Hugging Face checkpoint: what its metadata do not say.

#include <filesystem>
#include <string>

#include "loader/moe_config.h"
#include "runtime/moe_model.h"

namespace gantry::cli {

/// The config.json of a GGUF file's model, and how names become those of its family.
struct GgufSource {
  MoeModelConfig config;
  std::filesystem::path config_file;
  std::string config_text;
  std::string prefix;        ///< what stands before "layers." in the family's names
  std::string architecture;  ///< llama.cpp's
};

/// Whether a model was read from GGUF.
bool is_gguf(const MoeModel& model);

/// Reads the config.json that a GGUF file needs to become a checkpoint, since its metadata say
/// less: the one beside the file, or the one that is named.
/// @param input       as the user named it, for messages
/// @param config_file empty: beside the file
/// @throws Error kInvalidArgument if there is none, kFormat if it is of another model
GgufSource read_gguf_source(const MoeModel& model, const std::string& input,
                            const std::string& config_file);

}  // namespace gantry::cli
