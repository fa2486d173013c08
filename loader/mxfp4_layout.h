#pragma once

// MXFP4 matrices as files have them: the same codes and scales, in three places. Internal.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>

#include "loader/encodings/quant_scheme.h"
#include "loader/family_spec.h"
#include "loader/safetensors.h"

namespace gantry {

/// A way of storing the 32 E2M1 codes and the E8M0 scale of each block of a matrix [out, in].
enum class Mxfp4Layout : uint8_t {
  kBlocks,  ///< gpt-oss: "blocks" [.., out, in / 32, 16] and "scales" [.., out, in / 32]
  kPacked,  ///< compressed-tensors: "weight_packed" [out, in / 2], "weight_scale" [out, in / 32]
  kGgml,    ///< one tensor of 17 bytes a block: the scale, then code i beside code i + 16
};

inline constexpr int64_t kMxfp4Block = 32;       ///< elements of one scale
inline constexpr int64_t kMxfp4CodeBytes = 16;   ///< of a block
inline constexpr int64_t kMxfp4BlockBytes = 17;  ///< of ggml's

/// How a tensor of an expert is stored, if it is MXFP4.
/// @param scheme of its matrix, null where there is none
std::optional<Mxfp4Layout> mxfp4_layout(const TensorInfo& info, const TensorRef& ref,
                                        const QuantScheme* scheme);

/// The suffixes of codes and of scales; empty for kGgml, which has one tensor.
std::string_view mxfp4_codes(Mxfp4Layout layout);
std::string_view mxfp4_scales(Mxfp4Layout layout);

/// What one tensor gives of blocks that another layout stores otherwise.
enum class Mxfp4View : uint8_t {
  kStored,  ///< its own bytes
  kCodes,   ///< ggml's blocks: 16 bytes a block, two neighbours in each, the first one low
  kScales,  ///< ggml's blocks: a byte a block
  kGgml,    ///< codes and scales joined: ggml's blocks
};

/// Bytes of one block in a view other than kStored.
int64_t mxfp4_view_bytes(Mxfp4View view);

/// Reads bytes [offset, offset + bytes) of stored tensors.
using Mxfp4Source = std::function<void(int64_t offset, std::byte* to, int64_t bytes)>;

/// Reads bytes [offset, offset + bytes) of a view as if it were stored, a few blocks at a time.
/// @param blocks of kCodes and kScales: the ggml blocks; of kGgml: the codes
/// @param scales of kGgml
void read_mxfp4_view(Mxfp4View view, const Mxfp4Source& blocks, const Mxfp4Source& scales,
                     int64_t offset, std::byte* to, int64_t bytes);

}  // namespace gantry
