#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// What is wrong with a checkpoint.
enum class FindingKind : uint8_t {
  kMissing,    ///< a tensor that the config calls for is not there
  kDuplicate,  ///< two tensors hold the same weights
  kUnknown,    ///< a tensor of a MoE layer that no row of the family table reads
  kShape,      ///< a tensor has another shape than config and family say
  kDType,      ///< a tensor has a dtype that cannot be read, or differs from its siblings
  kNonFinite,  ///< NaN or infinity among weights
  kCoverage,   ///< bytes of a buffer were written not at all, or twice
  kPrefix,     ///< expert tensors stand under several prefixes
  kEncoding,   ///< the tensors of a quantized matrix do not fit together
  kValue,      ///< a value outside its range (an expert id in a hash table)
  kReference,  ///< the numbers differ from the reference output
};

std::string_view to_string(FindingKind kind) noexcept;

/// One thing that is wrong, with everything needed to find it.
struct Finding {
  FindingKind kind = FindingKind::kMissing;
  std::string message;  ///< expected, found, which object
  std::string tensor;   ///< name in the checkpoint, where there is one
  std::string file;     ///< file name, where there is one
  int layer = -1;
  int expert = -1;
  std::string part;  ///< "w1", "router" ...
};

/// Collects findings (something is wrong) and notes (worth knowing). Thread-safe to add to.
class LoadReport {
 public:
  void add(Finding finding);
  void note(std::string text);

  [[nodiscard]] bool ok() const { return findings_.empty(); }
  /// In a fixed order: by layer, expert, tensor; notes in the order they came.
  [[nodiscard]] std::vector<Finding> findings() const;
  [[nodiscard]] const std::vector<std::string>& notes() const { return notes_; }

 private:
  mutable std::mutex mutex_;
  std::vector<Finding> findings_;
  std::vector<std::string> notes_;
};

/// The first findings as text, a line each, and how many more there are.
std::string summarize(const LoadReport& report, size_t max_lines);

}  // namespace gantry
