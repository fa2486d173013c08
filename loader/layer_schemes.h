#pragma once

#include <map>

#include "loader/checkpoint.h"
#include "loader/load_report.h"
#include "loader/moe_config.h"
#include "loader/tensor_map.h"

namespace gantry {

/// Gives every quantized matrix its scheme (LayerTensors::Expert::schemes) and compares what the
/// config says with what is there. Internal to TensorMap::build.
///
/// Findings: a matrix that no part of the config is about or two parts that differ are; files that
/// say different things about it; tensors that differ from those of experts with the same scheme.
/// Notes: matrices that are quantized although the config leaves them out, and the other way round.
void resolve_schemes(const Checkpoint& checkpoint, const MoeModelConfig& config,
                     std::map<int, LayerTensors>& layers, LoadReport& report);

}  // namespace gantry
