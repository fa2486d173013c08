#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/base/export.h"
#include "parallel/expert_map.h"

namespace gantry GANTRY_API {

/// Where the experts of one layer live, as a file says it.
struct LayerAssignment {
  /// kPhysicalToLogical: `ids[p]` is the logical expert of physical expert p, dealt to ranks in
  /// contiguous ranges. kExpertToRank: `ids[e]` is the EP rank of expert e, without redundancy.
  enum class Kind : unsigned char { kPhysicalToLogical, kExpertToRank };
  Kind kind = Kind::kPhysicalToLogical;
  std::vector<int32_t> ids;

  friend bool operator==(const LayerAssignment&, const LayerAssignment&) = default;
};

/// How the experts of every layer are placed: by a strategy, or layer by layer. A plain value.
class ExpertPlacement {
 public:
  ExpertPlacement() = default;
  /// One strategy for all layers, without redundancy.
  ExpertPlacement(Placement strategy) : strategy_(strategy) {}  // NOLINT: that is what it means
  /// @param source where the assignments are from, for messages
  ExpertPlacement(std::map<int, LayerAssignment> layers, std::string source)
      : layers_(std::move(layers)), source_(std::move(source)) {}

  /// The map of one layer. A number of physical experts that is no multiple of the ranks gives the
  /// first ranks one more.
  /// @throws Error kInvalidArgument naming source and layer if the assignment does not fit
  [[nodiscard]] ExpertMap map_of(int layer, int num_experts, int ep_size) const;

  /// Per layer; empty for a strategy.
  [[nodiscard]] const std::map<int, LayerAssignment>& layers() const noexcept { return layers_; }
  /// "linear", or the source.
  [[nodiscard]] std::string describe() const;
  /// "linear", or a digest of all assignments: for ranks that compare what each of them read,
  /// wherever from.
  [[nodiscard]] std::string fingerprint() const;

 private:
  Placement strategy_ = Placement::kLinear;
  std::map<int, LayerAssignment> layers_;
  std::string source_;
};

}  // namespace gantry
