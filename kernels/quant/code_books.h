#pragma once

// Values of 4-bit codes that are looked up. Plain data, as weight_format.h.

#include <cstdint>

namespace gantry {

/// NF4 of bitsandbytes: quantiles of a normal distribution. @source QLoRA, appendix E
inline constexpr float kNF4Values[16] = {-1.0F,
                                         -0.6961928009986877F,
                                         -0.5250730514526367F,
                                         -0.39491748809814453F,
                                         -0.28444138169288635F,
                                         -0.18477343022823334F,
                                         -0.09105003625154495F,
                                         0.0F,
                                         0.07958029955625534F,
                                         0.16093020141124725F,
                                         0.24611230194568634F,
                                         0.33791524171829224F,
                                         0.44070982933044434F,
                                         0.5626170039176941F,
                                         0.7229568362236023F,
                                         1.0F};

/// FP4 of bitsandbytes: 0, 1/16, 8, 12, 4, 6, 2, 3 twelfths and their negatives.
inline constexpr float kFP4Values[16] = {
    0.0F,  0.0625F / 12.0F,  8.0F / 12.0F,  1.0F,  4.0F / 12.0F,  0.5F,  2.0F / 12.0F,  0.25F,
    -0.0F, -0.0625F / 12.0F, -8.0F / 12.0F, -1.0F, -4.0F / 12.0F, -0.5F, -2.0F / 12.0F, -0.25F};

/// iq4_nl and iq4_xs of ggml: integers of 8 bits.
inline constexpr int8_t kIQ4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                          1,    13,   25,  38,  53,  69,  89,  113};

}  // namespace gantry
