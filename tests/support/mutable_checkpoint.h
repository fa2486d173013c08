#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "loader/safetensors.h"

namespace gantry::test {

/// A small checkpoint in memory that a test can damage and write back.
struct MutableCheckpoint {
  struct Tensor {
    DType dtype = DType::kBF16;
    std::vector<int64_t> shape;
    std::vector<std::byte> bytes;
  };
  std::map<std::string, Tensor> tensors;
  std::string config;

  static MutableCheckpoint read(const std::filesystem::path& directory);
  /// Writes config.json and one model.safetensors.
  void write(const std::filesystem::path& directory) const;
};

}  // namespace gantry::test
