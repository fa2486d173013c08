#pragma once

// From a lane's 16 bytes of weights to operands of the tensor cores. Every code is exact in bf16;
// scales of groups multiply f32 sums, so nothing is rounded that the format does not round.

#include <cstdint>
#include <cstring>

#include "kernels/cuda/device_matrix.h"
#include "kernels/cuda/float_bits.h"
#include "kernels/cuda/host_device.h"

namespace gantry {

/// Mma steps (k 16) of one chunk.
GANTRY_HD constexpr int chunk_steps(DeviceElement element) noexcept {
  return static_cast<int>(chunk_depth(element) / 16);
}

GANTRY_HD constexpr bool is_coded(DeviceElement element) noexcept { return bits_of(element) < 16; }

/// Whether codes times their scales are exact in bf16: 2 bits of e2m1, 4 of e4m3, powers of two.
inline bool folds_scales(const DeviceMatrix& matrix) noexcept {
  return matrix.element == DeviceElement::kE2M1 && matrix.group > 0 &&
         (matrix.scale == ScaleType::kE8M0 || matrix.scale == ScaleType::kE4M3);
}

/// Four registers of two elements each: element e of mma_a_place is half e % 2 of register e / 2.
/// Registers 0 and 2 belong to the lane's first row, 1 and 3 to its second (8 below).
template <DeviceElement kElement, class Machine, class Chunk>
GANTRY_DEVICE void decode_fragment(const Chunk& chunk, int step, uint32_t (&a)[4]) {
  if constexpr (bits_of(kElement) == 16) {
    GANTRY_UNROLL
    for (int i = 0; i < 4; ++i)
      a[i] = chunk.words[i];
  } else if constexpr (kElement == DeviceElement::kE4M3) {
    GANTRY_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t bytes = chunk.words[2 * step + i / 2] >> (16 * (i % 2));
      const uint32_t pair = (bytes & 0xffu) | ((bytes & 0xff00u) << 8);
      // Exponent and mantissa where bf16 has them, but biased by 7: times 2^(127 - 7). Exact.
      const uint32_t small = ((pair & 0x007f007fu) << 4) | ((pair & 0x00800080u) << 8);
      a[i] = Machine::mul_bf16x2(small, 0x7b807b80u);
    }
  } else if constexpr (kElement == DeviceElement::kInt8) {
    GANTRY_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t bytes = (chunk.words[2 * step + i / 2] ^ 0x80808080u) >> (16 * (i % 2));
      // 2^23 + (code + 128) is an f32 whose low byte is the code; 8 bits fit bf16, so its upper
      // half is all of the difference.
      const float low = bits_to_f32(0x4b000000u | (bytes & 0xffu)) - 8388736.0F;
      const float high = bits_to_f32(0x4b000000u | ((bytes >> 8) & 0xffu)) - 8388736.0F;
      a[i] = (f32_to_bits(low) >> 16) | (f32_to_bits(high) & 0xffff0000u);
    }
  } else if constexpr (kElement == DeviceElement::kInt4) {
    GANTRY_UNROLL
    for (int i = 0; i < 4; ++i) {
      // 0x4300 | (code + 8) is 128 + code + 8 in bf16.
      const uint32_t biased = ((chunk.words[step] >> (4 * i)) & 0x000f000fu) ^ 0x43084308u;
      a[i] = Machine::sub_bf16x2(biased, 0x43084308u);
    }
  } else {
    GANTRY_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t codes = (chunk.words[step] >> (4 * i)) & 0x000f000fu;
      const uint32_t small = ((codes & 0x00070007u) << 6) | ((codes & 0x00080008u) << 12);
      a[i] = Machine::mul_bf16x2(small, 0x7e807e80u);  // times 2^126: the bias is 1
    }
  }
}

/// The value of a stored scale.
GANTRY_HD inline float device_scale(const std::byte* scales, ScaleType type, int64_t index) {
  switch (type) {
    case ScaleType::kF32: {
      return *reinterpret_cast<const float*>(scales + index * 4);
    }
    case ScaleType::kF16:
      return f16_bits_to_f32(*reinterpret_cast<const uint16_t*>(scales + index * 2));
    case ScaleType::kBF16:
      return bf16_bits_to_f32(*reinterpret_cast<const uint16_t*>(scales + index * 2));
    case ScaleType::kE8M0:
      return e8m0_bits_to_f32(static_cast<uint32_t>(scales[index]));
    case ScaleType::kE4M3:
      return e4m3_bits_to_f32(static_cast<uint32_t>(scales[index]));
    case ScaleType::kInt8:  // device_matrix refuses it
    case ScaleType::kNone:
      break;
  }
  return 1.0F;
}

/// Scales and zero points of a lane's two rows for one group.
struct GroupFactors {
  float scale[2] = {1.0F, 1.0F};
  uint32_t zero[2] = {};  ///< twice the zero point, as two bf16
};

GANTRY_HD inline GroupFactors load_group(const DeviceMatrix& matrix, const std::byte* data,
                                         int64_t tile, int64_t group, int lane) {
  GroupFactors factors;
  GANTRY_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int64_t index = matrix.scale_index(tile, group, lane / 4 + 8 * half);
    factors.scale[half] = device_scale(data, matrix.scale, index);
    if (matrix.zero_points) {
      const auto zero = static_cast<int8_t>(data[matrix.zeros + index]);
      const uint32_t bits = f32_to_bf16_bits(static_cast<float>(zero));
      factors.zero[half] = bits | (bits << 16);
    }
  }
  return factors;
}

/// The A fragment of one k16 step: codes as bf16, less their group's zero points.
template <DeviceElement kElement, class Machine, class Chunk>
GANTRY_DEVICE void load_fragment(const DeviceMatrix& matrix, const Chunk& codes, int step,
                                 const GroupFactors& factors, uint32_t (&a)[4]) {
  decode_fragment<kElement, Machine>(codes, step, a);
  if constexpr (is_coded(kElement)) {
    if (!matrix.zero_points) return;
    GANTRY_UNROLL
    for (int i = 0; i < 4; ++i)
      a[i] = Machine::sub_bf16x2(a[i], factors.zero[i % 2]);
  }
}

/// Adds what a group gave times its scales, and begins the next one.
template <int kColumns>
GANTRY_DEVICE void add_scaled(const GroupFactors& factors, float (&partial)[kColumns][4],
                              float (&sums)[kColumns][4]) {
  GANTRY_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    GANTRY_UNROLL
    for (int e = 0; e < 4; ++e) {
      sums[c][e] += partial[c][e] * factors.scale[e / 2];
      partial[c][e] = 0.0F;
    }
  }
}

}  // namespace gantry
