#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace gantry::test {

/// A checkpoint with reference outputs (`moe_io.safetensors`) beside it.
struct Golden {
  std::filesystem::path directory;
  std::string name;  ///< directory name, in letters that GoogleTest accepts in test names
};

/// The goldens of tests/golden/families, and of the folder that the environment variable
/// GANTRY_GOLDEN_DIR names (larger collections), sorted by name.
std::vector<Golden> family_goldens();

/// The quantized goldens of tests/golden/quant, and of the folder that GANTRY_QUANT_DIR names.
std::vector<Golden> quant_goldens();

/// The GGUF goldens of tests/golden/gguf, and of the folder that GANTRY_QUANT_DIR names.
std::vector<Golden> gguf_goldens();

/// All of these.
std::vector<Golden> all_goldens();

/// tests/golden of the source tree.
std::filesystem::path golden_root();

}  // namespace gantry::test
