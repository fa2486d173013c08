#pragma once

// What the readers of family_config.cpp share. Internal.

#include <cstdint>
#include <limits>
#include <string>

#include "loader/config_reader.h"
#include "loader/moe_config.h"

namespace gantry::family_config {

inline constexpr int64_t kMaxSize = int64_t{1} << 24;
inline constexpr int64_t kMaxExperts = int64_t{1} << 16;
inline constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

/// The gated activation that a config's `hidden_act` names.
/// @throws Error kUnsupported for one that Gantry does not compute
Activation parse_gated_activation(const ConfigReader& config, const std::string& name);

/// Hidden size, experts, top-k, intermediate size and activation; sizes have no default.
void read_sizes(const ConfigReader& config, MoeLayerSpec& layer, ConfigReader::Keys num_experts,
                ConfigReader::Keys top_k, ConfigReader::Keys intermediate,
                int64_t num_zero_experts = 0);
/// The same under the names that nearly all families use.
void read_moe_sizes(const ConfigReader& config, MoeLayerSpec& layer);

/// A size or count that is within limits, so that products of two are far inside 64 bits.
int64_t size_or(const ConfigReader& config, ConfigReader::Keys keys, int64_t fallback);
int64_t shared_count(const ConfigReader& config, ConfigReader::Keys keys, int64_t fallback);

/// `count` shared experts of `width`, as one MLP. Call after the activation is known.
void add_shared(MoeLayerSpec& layer, int64_t count, int64_t width);
/// The same from the usual keys.
void add_shared_experts(const ConfigReader& config, MoeLayerSpec& layer, int64_t default_count);

/// Group-limited selection; one group that is kept is no limit at all.
void add_groups(const ConfigReader& config, MoeLayerSpec& layer, GroupScore score,
                float masked_score, int64_t default_groups, int64_t default_kept);

/// Sigmoid scores, selection with a correction bias, optional renormalization: the router that
/// DeepSeek-V3 made common.
void add_sigmoid_bias_router(const ConfigReader& config, MoeLayerSpec& layer,
                             double default_scaling);

void softmax_router(const ConfigReader& config, MoeLayerSpec& layer, bool default_renormalize);

}  // namespace gantry::family_config
