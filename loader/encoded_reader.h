#pragma once

// Internal.

#include <memory>
#include <string_view>
#include <vector>

#include "loader/checkpoint.h"
#include "loader/encodings/encoded_matrix.h"
#include "loader/family_spec.h"
#include "loader/moe_config.h"
#include "loader/tensor_map.h"

namespace gantry {

/// A tensor's name within its matrix: "weight", "weight_scale" ...
std::string_view suffix_of(const TensorSource& source);

/// The tensors of an expert's (-1: the shared experts') matrix: its weight, where it has one, then
/// the others.
std::vector<const TensorSource*> encoded_sources(const LayerTensors& tensors, int expert,
                                                 Part part);

/// Bytes of one expert's part of these tensors.
int64_t encoded_bytes(const LayerTensors& tensors, int expert, Part part);

/// Memory that a run of jobs reads its tensors into, one matrix after the other: it is neither
/// cleared nor given back between them.
class ReadScratch {
 public:
  /// The next `size` bytes, aligned to 16; valid until rewind().
  std::byte* take(size_t size);
  void rewind() noexcept { next_ = 0; }

 private:
  struct Block {
    std::unique_ptr<std::byte[]> data;
    size_t size = 0;
  };
  std::vector<Block> blocks_;
  size_t next_ = 0;
};

/// Reads tensors of one matrix as if each stood alone: the expert's slab of a stacked tensor, and
/// of that the rows of gate or up where both share it. They are in `scratch`.
class EncodedReader {
 public:
  EncodedReader(const Checkpoint& checkpoint, const FamilySpec& family, const MoeLayerSpec& layer,
                int expert, Part part, ReadScratch& scratch)
      : checkpoint_(checkpoint),
        family_(family),
        layer_(layer),
        expert_(expert),
        part_(part),
        scratch_(scratch) {}

  /// @throws Error kFormat, kUnsupported naming the tensor; kIo
  EncodedTensor read(const TensorSource& source);
  [[nodiscard]] int64_t bytes_read() const noexcept { return bytes_read_; }

 private:
  void take_half(const TensorSource& source, EncodedTensor& tensor, size_t size);

  const Checkpoint& checkpoint_;
  const FamilySpec& family_;
  const MoeLayerSpec& layer_;
  int expert_;
  Part part_;
  ReadScratch& scratch_;
  int64_t bytes_read_ = 0;
};

}  // namespace gantry
