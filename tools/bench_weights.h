#pragma once

// The weights that `gantry bench` makes up.

#include <cstdint>
#include <random>
#include <string_view>
#include <vector>

#include "kernels/grouped_gemm/packed_layout.h"
#include "kernels/quant/quantize_rows.h"
#include "loader/expert_slot.h"
#include "loader/moe_config.h"

namespace gantry::cli {

/// A weight format by name: "bf16", "fp8-block", "int4-g128" ... (`--format`).
struct BenchWeightFormat {
  std::string_view name;
  DType dtype = DType::kBF16;  ///< of plain weights
  WeightFormat format = {};
  RowFormat activations = {};  ///< what such checkpoints declare
};

/// @throws Error kInvalidArgument with all names if there is none of this name
const BenchWeightFormat& find_bench_format(std::string_view name);

/// Fills matrices with numbers as trained weights have them: normal, with a deviation of 0.03.
class WeightSource {
 public:
  WeightSource(const BenchWeightFormat& format, uint64_t seed);

  [[nodiscard]] SlotLayout layout(const MoeLayerSpec& spec) const;
  /// Fills a packed matrix that starts as zeros.
  void fill(const PackedLayout& layout, std::byte* packed);

 private:
  void fill_plain(const PackedLayout& layout, std::byte* packed);
  void fill_coded(const PackedLayout& layout, std::byte* packed);

  BenchWeightFormat format_;
  std::mt19937_64 engine_;
  std::vector<std::byte> plain_;  // normal values in a plain dtype
  std::vector<std::byte> codes_;  // bytes of codes
};

}  // namespace gantry::cli
