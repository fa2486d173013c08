#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/export.h"
#include "loader/moe_config.h"
#include "loader/safetensors.h"

namespace gantry GANTRY_API {

/// Hidden states that went into MoE blocks, captured into safetensors files: what calibration and
/// comparisons run on.
///
/// A tensor "<block>.input" holds those of the layer whose number stands in its path
/// ("model.layers.3.mlp.input"): [T, H] or [B, T, H], f32, f16 or bf16. Where router and experts
/// see different inputs, "<block>.experts.input" is that of the experts. "input_ids" [T] are the
/// token ids, for hash routing. Several files (and several captures) of one layer follow each other
/// in the order of `files`. Tensors of layers that are not MoE layers are passed over.
class ActivationFiles {
 public:
  /// @throws Error kIo; kFormat naming file and tensor if a shape or dtype does not fit, or if two
  ///         tensors of a file could be a layer's; kInvalidArgument if no layer has any
  ActivationFiles(std::span<const std::filesystem::path> files, const MoeModelConfig& config);

  [[nodiscard]] int64_t num_tokens(int layer) const noexcept;
  /// Tokens first .. first + count - 1 of a layer, [count, H] f32, as the experts see them.
  /// @throws Error kIo; kFormat naming file, tensor and element if a value is NaN or infinite
  void read(int layer, int64_t first, int64_t count, std::span<float> rows) const;
  /// The same as the router sees them.
  void read_router_input(int layer, int64_t first, int64_t count, std::span<float> rows) const;
  /// [T] of a layer, or empty where the files have none.
  [[nodiscard]] std::vector<int32_t> token_ids(int layer) const;
  /// What tells one set of captures from another: the names of files and tensors, and their sizes.
  [[nodiscard]] std::string describe(int layer) const;

 private:
  struct Capture {
    const SafetensorsFile* file;
    const TensorInfo* experts;  // what the experts see
    const TensorInfo* router;   // what the router sees; the same tensor in most families
    int64_t num_tokens;
  };
  void add_file(const SafetensorsFile& file, const MoeModelConfig& config);
  void read_rows(int layer, int64_t first, int64_t count, const TensorInfo* Capture::*tensor,
                 std::span<float> rows) const;

  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<int, std::vector<Capture>> captures_;  // by layer
};

}  // namespace gantry
