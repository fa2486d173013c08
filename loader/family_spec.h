#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

class ConfigReader;
struct MoeLayerSpec;

/// What a tensor of a MoE layer is. `kW1`, `kW2`, `kW3` are the shard ids of vLLM: gate, down, up.
enum class Part : uint8_t {
  kW1,              ///< gate projection [I, H] (the only one of w13 where the family has no gate)
  kW3,              ///< up projection [I, H]
  kW2,              ///< down projection [H, I]
  kW13,             ///< gate and up in one tensor
  kRouter,          ///< [E, H]
  kCorrectionBias,  ///< [E] added to the scores for selection only
  kPerExpertScale,  ///< [E] multiplies the weight of a selected expert (Gemma 4)
  kRouterScale,     ///< [H] multiplies the normalised router input (Gemma 4)
  kHashTable,       ///< [vocab, K] expert ids by token id (DeepSeek-V4)
  kSharedW1,
  kSharedW3,
  kSharedW2,
  kSharedW13,
  kSharedGate,  ///< [1, H]: sigmoid gate of the shared experts' output
  kLatentIn,    ///< [latent, H] before the experts (Nemotron-H)
  kLatentOut,   ///< [H, latent] after them
  kOutputNorm,  ///< [H] RMS norm of the layer's output (A.X-K1)
  kOther,       ///< inside the block on disk, but no part of the MoE layer
};

std::string_view to_string(Part part) noexcept;

/// The matrices of an expert, in the order in which slots and messages have them.
inline constexpr std::array<Part, 3> kExpertParts = {Part::kW1, Part::kW3, Part::kW2};

/// Which tensor of a part.
enum class TensorKind : uint8_t {
  kWeight,
  kBias,
  kEncoded,  ///< one of the further tensors of a quantized matrix: `TensorRef::suffix` says which
};

std::string_view to_string(TensorKind kind) noexcept;

/// How the experts of a layer are spread over tensors.
enum class Stacking : uint8_t {
  kSingle,     ///< one tensor, not per expert
  kPerExpert,  ///< one tensor an expert, its id in the name
  kStacked3d,  ///< all experts in one tensor [E, ., .]
  kStacked2d,  ///< all experts in one tensor, rows of expert 0 first: [E * ., .] (DBRX)
};

[[nodiscard]] constexpr bool is_stacked(Stacking stacking) noexcept {
  return stacking == Stacking::kStacked3d || stacking == Stacking::kStacked2d;
}

/// Order of a matrix's axes in the file. Declared by the family, never inferred from a shape.
enum class Orientation : uint8_t { kOutIn, kInOut };

/// How gate and up share a kW13 tensor, along the out axis.
enum class GateUp : uint8_t {
  kSeparate,
  kConcatenated,  ///< gate rows, then up rows
  kInterleaved,   ///< gate 0, up 0, gate 1, up 1 ...
};

/// How the kinds of one module or parameter are named.
enum class Naming : uint8_t {
  kModule,     ///< name.weight, name.bias
  kParameter,  ///< name, name_bias
  kExact,      ///< name alone
};

/// One way of writing one part. `name` is relative to the layer: segments separated by dots, where
/// {b} stands for the family's block and {e} for an expert id.
struct TensorPattern {
  std::string_view name;
  Part part = Part::kOther;
  Stacking stacking = Stacking::kSingle;
  Orientation orientation = Orientation::kOutIn;
  GateUp gate_up = GateUp::kSeparate;
  Naming naming = Naming::kModule;
  /// How Transformers 5 writes this part when it does not restore the files' own names; where no
  /// pattern of a part says so, both names are the same.
  bool transformers = false;
};

/// One model family: one row of the table that load, verify, synth and export read.
struct FamilySpec {
  std::string_view name;
  std::vector<std::string_view> model_types;   ///< values of `model_type` in config.json
  std::string_view container = "layers";       ///< {prefix}layers.{l}. ...
  std::string_view default_prefix = "model.";  ///< in messages, where no tensor shows it
  /// Spellings of {b}, the module that holds the MoE layer; the first is what exporters write.
  std::vector<std::string_view> blocks = {"mlp"};
  int transformers_block = 0;  ///< the spelling of {b} in Transformers 5's own names
  std::vector<TensorPattern> tensors;
  /// A tensor of a MoE layer whose name begins with one of these belongs to the MoE block: if no
  /// pattern matches it, that is a finding.
  std::vector<std::string_view> scope = {"{b}."};
  /// Shared experts are a module beside the block, not inside it: references of the block leave
  /// them out (Granite).
  bool shared_beside_block = false;
  /// Tensors of one layer may differ in type (GGUF); elsewhere an odd one out is damage.
  bool mixed_types = false;
  /// Stacked experts may be MXFP4 blocks and scales (gpt-oss).
  bool stacks_mxfp4 = false;
  /// vLLM reads the experts of this family in the exporters' stacked tensors, not one by one.
  bool vllm_reads_stacked = false;
  /// Reads config.json into what the layers compute (family_config.cpp).
  void (*read)(const ConfigReader& config, MoeLayerSpec& layer) = nullptr;
};

/// All families. The order is that of the README's table.
std::span<const FamilySpec> family_specs();

/// The family that serves a model_type, or null.
const FamilySpec* find_family(std::string_view model_type);

/// What a checkpoint tensor is, seen from its name.
struct TensorRef {
  int layer = -1;
  int expert = -1;  ///< -1: all experts of the layer, or not per expert
  Part part = Part::kOther;
  TensorKind kind = TensorKind::kWeight;
  std::string suffix = {};  ///< kEncoded: "weight_scale", "qweight" ...
  int pattern = -1;         ///< index into FamilySpec::tensors
  int block = 0;            ///< index into FamilySpec::blocks
  bool base_layer = false;  ///< written with an adapter's ".base_layer" infix

  friend bool operator==(const TensorRef&, const TensorRef&) = default;
};

/// Whether a spelling has a name for this tensor of a quantized matrix.
bool can_name(Naming naming, std::string_view suffix) noexcept;

/// The module that a tensor belongs to, as quantization configs name it: the name without
/// ".weight", ".qweight" ..., for experts in parameters without "_blocks" ..., and without an
/// adapter's ".base_layer".
std::string module_name(std::string_view name, const TensorRef& ref);

/// Where a name belongs.
enum class NameClass : uint8_t {
  kMoe,        ///< a tensor of a MoE layer: `ref` says which
  kModel,      ///< another part of the model (attention, norms, embeddings, towers): not ours
  kAuxiliary,  ///< experts of a part that is not loaded: MTP layers
  kUnknown,    ///< inside a MoE block or named like an expert, but no pattern matches
};

struct ParsedName {
  NameClass name_class = NameClass::kModel;
  TensorRef ref;
};

/// Maps tensor names to meanings and back, for one family and one prefix.
class NameMap {
 public:
  /// @param prefix what stands before the container, with its dot: "model."
  NameMap(const FamilySpec& family, std::string prefix);

  /// Finds the prefix once for all names: the one under which expert tensors stand. Parts such as
  /// "mtp." are left out.
  /// @return every prefix with expert tensors, most frequent first; empty if there is none
  static std::vector<std::string> find_prefixes(const FamilySpec& family,
                                                std::span<const std::string> names);

  /// Never throws: any string is a legal question.
  [[nodiscard]] ParsedName parse(std::string_view name) const;

  /// The name that `ref` has in a checkpoint: parse(format(ref)).ref == ref.
  [[nodiscard]] std::string format(const TensorRef& ref) const;

  /// The name of (layer, expert, part, kind) in the first spelling that has that part.
  [[nodiscard]] std::string expected_name(int layer, int expert, Part part, TensorKind kind,
                                          std::optional<int> like_pattern) const;

  [[nodiscard]] const FamilySpec& family() const noexcept { return *family_; }
  [[nodiscard]] const std::string& prefix() const noexcept { return prefix_; }

 private:
  struct Compiled {
    std::vector<std::string> segments;  // "{e}" stays as it is
    int pattern;
    int block;
  };
  [[nodiscard]] std::optional<TensorRef> match(const std::vector<std::string_view>& segments) const;

  const FamilySpec* family_;
  std::string prefix_;
  std::vector<Compiled> compiled_;
  std::vector<std::string> scopes_;
};

/// Parses a canonical decimal (no sign, no leading zero, at most 6 digits): a layer or expert id.
std::optional<int> parse_index(std::string_view text) noexcept;

}  // namespace gantry
