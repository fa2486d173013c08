#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// Takes the bytes of tensors, in any order and from any number of threads: a checkpoint on disk,
/// or an engine's own memory.
class TensorSink {
 public:
  virtual ~TensorSink() = default;

  /// Takes bytes [offset, offset + data.size()) of a tensor; every byte comes once.
  virtual void write(std::string_view tensor, int64_t offset, std::span<const std::byte> data) = 0;

  /// Whether the tensor is there already and must not be written.
  [[nodiscard]] virtual bool is_kept(std::string_view tensor) const {
    (void)tensor;
    return false;
  }
};

}  // namespace gantry
