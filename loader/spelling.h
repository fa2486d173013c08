#pragma once

#include <array>
#include <functional>
#include <string>
#include <string_view>

#include "kernels/base/export.h"
#include "loader/family_spec.h"
#include "loader/moe_config.h"

namespace gantry GANTRY_API {

/// A way of writing the checkpoints of a family, to be chosen by users.
enum class SpellingChoice : uint8_t {
  kOriginal,      ///< what the family's own exporters write
  kPerExpert,     ///< one tensor an expert and projection
  kFused,         ///< all experts of a layer in one tensor, as Transformers 5 keeps them
  kTransformers,  ///< Transformers 5's own names: those of kFused
  kVllm,          ///< what vLLM's loader of the family reads
};

/// "original", "per-expert", "fused", "transformers", "vllm"
std::string_view to_string(SpellingChoice choice) noexcept;
/// @throws Error kInvalidArgument with the names that are possible
SpellingChoice parse_spelling(std::string_view name);

/// The target of a conversion: for everything that a tensor can mean, the row of the family table
/// that writes it. Nothing but rows tells spellings apart.
class Spelling {
 public:
  /// @param gated whether the experts have a gate (and so an up) projection
  /// @throws Error kUnsupported if the family has no such spelling
  Spelling(const FamilySpec& family, SpellingChoice choice, bool gated);

  /// The pattern that holds an expert's kW1, kW3 or kW2; gate and up may share one.
  [[nodiscard]] int expert_pattern(Part part) const;
  [[nodiscard]] const TensorPattern& pattern(int index) const {
    return family_->tensors[static_cast<size_t>(index)];
  }
  [[nodiscard]] int block() const noexcept { return block_; }
  [[nodiscard]] const FamilySpec& family() const noexcept { return *family_; }

  /// Whether the family has a name for a part that is not an expert's.
  [[nodiscard]] bool has_single(Part part) const;

  /// The same tensor under this spelling's name. For whatever is not an expert's: content and kind
  /// stay, pattern and block change.
  [[nodiscard]] TensorRef respell_single(TensorRef ref) const;

  /// The name of a tensor inside a layer that the family's table does not know (the MLP of a dense
  /// layer shares the block's name), with this spelling's block.
  /// @param stem "<prefix>layers."
  [[nodiscard]] std::string respell_other(std::string_view name, std::string_view stem) const;

 private:
  const FamilySpec* family_;
  std::array<int, 3> experts_{-1, -1, -1};  ///< by expert_part_index
  bool transformers_ = false;
  int block_ = 0;
};

/// Another family's names for the tensors of a checkpoint that are no routed experts' (GGUF and the
/// model's own family). All that is pointed to must outlive it.
struct ForeignNames {
  const NameMap* from = nullptr;
  const MoeModelConfig* config = nullptr;  ///< of `from`
  const Spelling* spelling = nullptr;
  const NameMap* to = nullptr;
  /// Names of tensors that are in no MoE block; empty: they stay.
  std::function<std::string(const std::string&)> other = {};

  /// @throws Error kUnsupported naming a tensor of a MoE block that the family has no name for
  [[nodiscard]] std::string operator()(const std::string& name) const;
};

}  // namespace gantry
