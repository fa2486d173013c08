#pragma once

// Packed integers in other orders than rows of codes, brought into rows. Internal.

#include <cstddef>
#include <cstdint>

#include "loader/tensor_geometry.h"

namespace gantry {

/// Transposes 32-bit words: target[c, r] = source[r, c], source [rows, cols]. Neither need be
/// aligned; the words keep their bytes.
void transpose_words(const std::byte* source, int64_t rows, int64_t cols, uint8_t* target) noexcept;

/// AWQ's words [in, ceil(out / 8)], each with 8 interleaved outputs of one input, to rows of
/// nibbles [out, ceil(in / 8) * 4 bytes], the even input low. Nibbles past the last input are 0.
void rows_of_awq(const std::byte* source, const MatrixSize& size, uint8_t* target) noexcept;

/// ModelOpt's bytes [ceil(out / 2), in], row 2 r in the low and 2 r + 1 in the high nibble, to rows
/// of nibbles [out, ceil(in / 2)], the even input low.
void rows_of_pairs(const std::byte* source, const MatrixSize& size, uint8_t* target) noexcept;

/// The output of each word's eight that stands in nibble n of an AWQ word.
inline constexpr int kAwqOutput[8] = {0, 2, 4, 6, 1, 3, 5, 7};

}  // namespace gantry
