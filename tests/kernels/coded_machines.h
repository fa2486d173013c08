#pragma once

#include <algorithm>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/grouped_gemm/panel_gemm_kernels.h"
#include "kernels/quant/weight_format.h"
#include "tests/kernels/panel_case.h"

namespace gantry::test {

/// A machine that kernels are selected for.
struct CodedMachine {
  std::string name;
  std::vector<Isa> has;
  ActivationDType activations = ActivationDType::kBF16;
  Avx512Dot avx512_dot = Avx512Dot::kFma;

  [[nodiscard]] bool runs_here() const { return std::all_of(has.begin(), has.end(), can_run); }
  [[nodiscard]] KernelRequest request(bool batch_invariant = false) const {
    IsaSet isas;
    for (const Isa isa : has)
      isas.insert(isa);
    return {.weights = DType::kBF16,
            .activations = activations,
            .isas = isas,
            .avx512_dot = avx512_dot,
            .batch_invariant = batch_invariant};
  }
};

inline void PrintTo(const CodedMachine& machine, std::ostream* out) { *out << machine.name; }

/// Every set of instruction sets for which selection differs, for bf16 and for f32 rows.
inline std::vector<CodedMachine> coded_machines() {
  const std::vector<Isa> avx512 = {Isa::kAvx2, Isa::kAvx512};
  const std::vector<Isa> bf16 = {Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16};
  const std::vector<Isa> vbmi = {Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAvx512Vbmi};
  const std::vector<Isa> amx = {Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAvx512Vbmi,
                                Isa::kAmxBf16};
  const std::vector<Isa> emulated = {Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAvx512Vbmi,
                                     Isa::kAmxEmulated};
  constexpr auto kF32 = ActivationDType::kF32;
  constexpr auto kBF16 = ActivationDType::kBF16;
  return {{"scalar", {}, kBF16},
          {"scalar_f32", {}, kF32},
          {"avx2", {Isa::kAvx2}, kBF16},
          {"avx512", avx512, kBF16},
          {"avx512_f32", avx512, kF32},
          {"avx512_bf16_fma", vbmi, kBF16, Avx512Dot::kFma},
          {"avx512_bf16", bf16, kBF16, Avx512Dot::kDot},
          {"avx512_vbmi", vbmi, kBF16, Avx512Dot::kDot},
          {"avx512_vbmi_f32", vbmi, kF32, Avx512Dot::kDot},
          {"amx", amx, kBF16, Avx512Dot::kDot},
          {"amx_emulated", emulated, kBF16, Avx512Dot::kDot},
          {"amx_emulated_alone", {Isa::kAmxEmulated}, kBF16}};
}

/// Formats of the encodings that there are, and the ones that are hardest on the kernels.
inline const std::vector<WeightFormat>& matrix_formats() {
  static const std::vector<WeightFormat> all = {
      {.element = WeightElement::kInt8, .output_scale = true},
      {.element = WeightElement::kE4M3, .output_scale = true},
      {WeightElement::kE4M3, ScaleType::kF32, 128, false, false},
      {WeightElement::kE4M3, ScaleType::kE8M0, 32, false, false},
      {WeightElement::kInt8, ScaleType::kF16, 32, true, false},
      {WeightElement::kInt4, ScaleType::kF16, 32, true, false},
      {WeightElement::kInt4, ScaleType::kBF16, 128, false, false},
      {WeightElement::kInt4, ScaleType::kF32, 48, true, true},
      {WeightElement::kE2M1, ScaleType::kE8M0, 32, false, false},
      {WeightElement::kE2M1, ScaleType::kE8M0, 32, false, true},
      {WeightElement::kE2M1, ScaleType::kE8M0, 64, true, false},
      {WeightElement::kE2M1, ScaleType::kE4M3, 16, false, true},
      {WeightElement::kE5M2, ScaleType::kF32, 128, false, false},
      {WeightElement::kUInt4, ScaleType::kF16, 32, false, false, true},
      {WeightElement::kUInt4, ScaleType::kInt8, 32, false, false, true, 256},
      {WeightElement::kInt8, ScaleType::kInt8, 16, false, false, false, 256},
      {WeightElement::kIQ4, ScaleType::kF16, 32, false, false},
      {WeightElement::kInt4, ScaleType::kBF16, 8, false, false}};
  return all;
}

inline std::string machine_name(const testing::TestParamInfo<CodedMachine>& tested) {
  return tested.param.name;
}

}  // namespace gantry::test
