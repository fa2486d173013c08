#pragma once

#include <cstdint>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// What is wrong with a checkpoint.
enum class FindingKind : uint8_t {
  kMissing,         ///< a tensor that the config calls for is not there
  kDuplicate,       ///< two tensors hold the same weights
  kUnknown,         ///< a tensor of a MoE layer that no row of the family table reads
  kShape,           ///< a tensor has another shape than config and family say
  kDType,           ///< a tensor has a dtype that cannot be read, or differs from its siblings
  kNonFinite,       ///< NaN or infinity among weights or their scales
  kCoverage,        ///< bytes of a buffer were written not at all, or twice
  kPrefix,          ///< expert tensors stand under several prefixes
  kEncoding,        ///< the tensors of a quantized matrix do not fit together
  kValue,           ///< a value outside its range (an expert id in a hash table)
  kReference,       ///< the numbers differ from the reference output
  kZeroScale,       ///< a scale of zero over codes that are not
  kUnderflowScale,  ///< a scale that lost most of its bits in the dtype it is stored in
  kNegativeScale,   ///< a negative scale of a format that has none
  kInputScale,      ///< a scale of activations that no calibration can have given
};

/// The name that users type and read: "zero_scale".
std::string_view to_string(FindingKind kind) noexcept;

/// Kinds that LoadReport::allow accepts: doubtful numbers that somebody may know to be harmless.
/// Structure (names, shapes, coverage) is not among them: what does not fit cannot be loaded.
std::span<const FindingKind> allowable_kinds() noexcept;

/// @throws Error kInvalidArgument, with the names that are possible, unless `name` is one of them
FindingKind parse_allowable_kind(std::string_view name);

/// One thing that is wrong, with everything needed to find it.
struct Finding {
  FindingKind kind = FindingKind::kMissing;
  std::string message;  ///< expected, found, which object
  std::string tensor;   ///< name in the checkpoint, where there is one
  std::string file;     ///< file name, where there is one
  int layer = -1;
  int expert = -1;
  std::string part;      ///< "w1", "router" ...
  int64_t element = -1;  ///< the first one, row-major in the expert's part of the tensor; -1: none
};

/// By layer, expert, tensor, kind and message.
struct FindingOrder {
  bool operator()(const Finding& a, const Finding& b) const noexcept;
};

/// Collects findings (something is wrong) and notes (worth knowing). Thread-safe to add to.
class LoadReport {
 public:
  void add(Finding finding);
  void note(std::string text);
  /// Findings of this kind, those that are there and those to come, become warnings: logged, kept
  /// in warnings(), and no reason not to load.
  /// @throws Error kInvalidArgument for a kind that is not one of allowable_kinds()
  void allow(FindingKind kind);
  [[nodiscard]] bool allows(FindingKind kind) const;

  [[nodiscard]] bool ok() const { return findings_.empty(); }
  /// In a fixed order: by layer, expert, tensor; notes in the order they came.
  [[nodiscard]] std::vector<Finding> findings() const;
  /// Findings of allowed kinds, in the same order.
  [[nodiscard]] std::vector<Finding> warnings() const;
  [[nodiscard]] const std::vector<std::string>& notes() const { return notes_; }

 private:
  mutable std::mutex mutex_;
  std::vector<Finding> findings_;
  std::set<FindingKind> allowed_;
  std::set<Finding, FindingOrder> warnings_;
  std::vector<std::string> notes_;
};

/// The first findings as text, a line each, and how many more there are.
std::string summarize(const LoadReport& report, size_t max_lines);

}  // namespace gantry
