#pragma once

// Scales by which a quantized matrix' inputs are to be divided before they are rounded, one a
// matrix, found by calibration: input_scale, and NVFP4's input_global_scale. Internal.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "loader/checkpoint.h"
#include "loader/load_report.h"
#include "loader/tensor_map.h"

namespace gantry {

/// Whether a tensor of a quantized matrix describes the quantization of its input, so that no
/// weight depends on it.
bool is_input_scale(std::string_view suffix) noexcept;

/// One input scale of a layer.
struct InputScale {
  Part part = Part::kW1;
  float value = 0.0F;
};

/// What is wrong with one of them, or with all.
struct InputScaleProblem {
  size_t index = 0;  ///< into the scales; the first one where it concerns all
  std::string message;
};

/// Values that no calibration gives: NaN, infinity, zero, negative numbers; and 1, which is what
/// exporters and engines initialise them with: where all of the layer are 1 (and are several), or
/// where the median of the projection's other experts is more than 16 times larger or smaller.
std::vector<InputScaleProblem> find_input_scale_problems(std::span<const InputScale> scales);

/// Reads the input scales of all experts of a layer, those of other ranks too (kernels that use one
/// scale for all experts need the largest), and adds what is wrong as kInputScale.
/// @return bytes read
/// @throws Error kIo
int64_t check_input_scales(const Checkpoint& checkpoint, const LayerTensors& tensors,
                           LoadReport& report);

}  // namespace gantry
