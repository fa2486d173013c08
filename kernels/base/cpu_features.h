#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// Instruction sets that kernels are written for, weakest first.
enum class Isa : uint8_t {
  kScalar,       ///< Plain C++, the reference.
  kAvx2,         ///< AVX2 + FMA + F16C.
  kAvx512,       ///< AVX-512 F, BW, VL, DQ.
  kAvx512Bf16,   ///< kAvx512 + AVX512_BF16.
  kAvx512Vnni,   ///< kAvx512 + AVX512_VNNI.
  kAvx512Vbmi,   ///< kAvx512Bf16 + AVX512_VBMI.
  kAmxBf16,      ///< kAvx512Bf16 + AMX-TILE + AMX-BF16, with the kernel's permission.
  kAmxInt8,      ///< kAvx512Vnni + AMX-TILE + AMX-INT8, with the kernel's permission.
  kAmxEmulated,  ///< The AMX kernels on tiles in plain C++: for tests, never detected.
};

std::string_view to_string(Isa isa) noexcept;

/// A set of `Isa` values; always holds kScalar.
class IsaSet {
 public:
  constexpr IsaSet() = default;
  [[nodiscard]] constexpr bool contains(Isa isa) const noexcept { return (bits_ & bit(isa)) != 0; }
  constexpr void insert(Isa isa) noexcept { bits_ |= bit(isa); }
  /// Everything in this set that is not above `cap`: kScalar, kAvx2, kAvx512 (with its bf16,
  /// vnni and vbmi extensions) or kAmxBf16 (everything).
  [[nodiscard]] IsaSet capped(Isa cap) const noexcept;
  friend constexpr bool operator==(IsaSet a, IsaSet b) noexcept { return a.bits_ == b.bits_; }

 private:
  static constexpr uint32_t bit(Isa isa) noexcept { return 1u << static_cast<uint32_t>(isa); }
  uint32_t bits_ = 1;
};

std::string to_string(IsaSet isas);

/// What this CPU and operating system can run, without any cap. Detected once. On a machine with
/// AMX this asks Linux for permission to use tile data; a refusal is logged and AMX left out.
[[nodiscard]] IsaSet detected_isas();

/// `detected_isas()` capped by the environment variable GANTRY_MAX_ISA (scalar, avx2, avx512, amx).
/// Read once. Selection of kernels starts from this set.
/// @throws Error kInvalidArgument if GANTRY_MAX_ISA has another value
[[nodiscard]] IsaSet host_isas();

/// The CPU's brand string, for reports.
[[nodiscard]] std::string cpu_model_name();

}  // namespace gantry
