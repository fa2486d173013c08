#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/export.h"
#include "loader/checkpoint.h"
#include "loader/family_spec.h"
#include "loader/load_report.h"
#include "loader/moe_config.h"

namespace gantry GANTRY_API {

/// A tensor of the checkpoint that belongs to a MoE layer.
struct TensorSource {
  std::string name;
  const CheckpointTensor* tensor = nullptr;  ///< into the Checkpoint, which must stay alive
  TensorRef ref;
};

/// The tensors of one MoE layer, by what they mean. Null: not there.
struct LayerTensors {
  /// Sources of kW1, kW3, kW2 (in this order) by expert and kind; fused tensors appear under each
  /// expert and each of their parts.
  struct Expert {
    std::array<std::array<const TensorSource*, 2>, 3> parts{};
    /// Further tensors of quantized matrices, by suffix.
    std::array<std::map<std::string, const TensorSource*>, 3> encoded;
    /// How quantized matrices are to be read; owned by the config. Null for plain ones.
    std::array<const QuantScheme*, 3> schemes{};
  };
  std::vector<Expert> experts;  // [E]
  Expert shared;                ///< the same of the shared experts' one MLP, without biases
  std::map<std::pair<Part, TensorKind>, const TensorSource*> singles;
  bool expert_bias = false;  ///< the experts have biases
  bool shared_bias = false;

  [[nodiscard]] const TensorSource* expert_source(int expert, Part part, TensorKind kind) const;
  /// The matrices of an expert, or for -1 of the shared experts.
  [[nodiscard]] const Expert& matrices(int expert) const {
    return expert < 0 ? shared : experts[static_cast<size_t>(expert)];
  }
  /// Whether a matrix is quantized: it has further tensors, or codes instead of floats. Always
  /// false in names-only maps that have only a weight.
  /// @param expert -1 for a shared part
  [[nodiscard]] bool is_encoded(int expert, Part part) const;
  /// Any tensor of a quantized matrix, or the weight of a plain one; null if there is none.
  [[nodiscard]] const TensorSource* any_source(int expert, Part part) const;
  [[nodiscard]] bool has_encoded_experts() const;
  [[nodiscard]] bool has_encoded_shared() const;
  [[nodiscard]] const TensorSource* single(Part part, TensorKind kind) const;
};

/// How many names of a checkpoint fell into which class.
struct NameCounts {
  int64_t total = 0;
  int64_t expert = 0;     ///< weights of routed experts
  int64_t layer = 0;      ///< other tensors of MoE layers: router, shared experts
  int64_t model = 0;      ///< other parts of the model
  int64_t auxiliary = 0;  ///< MTP layers: not loaded
  int64_t ignored = 0;    ///< inside a MoE block, known to hold nothing that is computed
  int64_t unknown = 0;    ///< findings
};

/// Every tensor name of a checkpoint accounted for: what each MoE layer should have according to
/// the config, and what the checkpoint has.
class TensorMap {
 public:
  /// Matches names, then (unless the checkpoint was opened by names only) shapes and dtypes.
  /// Everything that does not fit is added to `report`; nothing is thrown for bad input.
  /// @param checkpoint, config must outlive the map
  static TensorMap build(const Checkpoint& checkpoint, const MoeModelConfig& config,
                         LoadReport& report);

  [[nodiscard]] const LayerTensors& layer(int layer) const;
  [[nodiscard]] const NameMap& names() const noexcept { return *names_; }
  [[nodiscard]] const NameCounts& counts() const noexcept { return counts_; }

 private:
  friend class TensorMapBuilder;
  std::unique_ptr<NameMap> names_;
  std::vector<std::unique_ptr<TensorSource>> sources_;
  std::map<int, LayerTensors> layers_;
  NameCounts counts_;
};

/// 0, 1, 2 for kW1, kW3, kW2, and for the same parts of shared experts.
size_t expert_part_index(Part part);

}  // namespace gantry
