#pragma once

// Blocks of ggml's types taken apart: `split` of GgmlType. Internal.

#include "loader/encodings/ggml_types.h"

namespace gantry {

void split_q4_0(const std::byte* block, GgmlBlock& parts);
void split_q4_1(const std::byte* block, GgmlBlock& parts);
void split_q5_0(const std::byte* block, GgmlBlock& parts);
void split_q5_1(const std::byte* block, GgmlBlock& parts);
void split_q8_0(const std::byte* block, GgmlBlock& parts);
void split_q2_k(const std::byte* block, GgmlBlock& parts);
void split_q3_k(const std::byte* block, GgmlBlock& parts);
void split_q4_k(const std::byte* block, GgmlBlock& parts);
void split_q5_k(const std::byte* block, GgmlBlock& parts);
void split_q6_k(const std::byte* block, GgmlBlock& parts);
void split_iq4_nl(const std::byte* block, GgmlBlock& parts);
void split_iq4_xs(const std::byte* block, GgmlBlock& parts);
void split_mxfp4(const std::byte* block, GgmlBlock& parts);

}  // namespace gantry
