// Every way to decode pieces of coded panels, bit by bit, against the formula in double over codes,
// zero points and scales that never were packed.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <ostream>
#include <string>

#include "kernels/grouped_gemm/coded_kernels.h"
#include "tests/kernels/coded_case.h"
#include "tests/kernels/panel_case.h"

namespace gantry {

void PrintTo(const PanelDequantizer& dequantizer, std::ostream* out) { *out << dequantizer.name; }

namespace test {
namespace {

class PanelDequantizerTest : public testing::TestWithParam<PanelDequantizer> {
 protected:
  void SetUp() override {
    if (!can_run(dequantizer.isa)) GTEST_SKIP() << "needs " << to_string(dequantizer.isa);
  }

  /// What the packed layout says element (lane, k) of a decoded piece is, as bits of f32.
  [[nodiscard]] uint32_t bits_at(const ByteBuffer& piece, int64_t lane, int64_t k) const {
    const int64_t index = dequantizer.out == DType::kBF16 ? k / 2 * 64 + lane * 2 + k % 2  //
                                                          : k * 32 + lane;
    return std::bit_cast<uint32_t>(load_as_f32(piece.data(), dequantizer.out, index));
  }
  /// The formula, in the output's type. vcvtneps2bf16 takes subnormals as zero of their sign.
  [[nodiscard]] uint32_t expected_bits(const CodedCase& w, int64_t lane, int64_t k) const {
    if (lane >= w.layout.n) return 0;
    const float value = w.decoded(lane, k);
    if (dequantizer.out == DType::kF32) return std::bit_cast<uint32_t>(value);
    const bool flushed = dequantizer.isa != Isa::kScalar && std::fabs(value) < 0x1p-126F;
    return std::bit_cast<uint32_t>(flushed ? std::copysign(0.0F, value) : round_to_bf16(value));
  }

  void expect_piece(const CodedCase& w, int64_t begin, int64_t count) const {
    const CodedPanel panel = w.layout.coded_panel();
    ByteBuffer out(static_cast<size_t>(count * 32 * size_of(dequantizer.out) + 64));
    std::memset(out.data(), 0xab, out.size());
    dequantizer.run({.panel = w.packed.data(),
                     .coded = &panel,
                     .k_begin = begin,
                     .k_count = count,
                     .out = out.data()});
    for (int64_t k = begin; k < std::min(begin + count, w.layout.k); ++k) {
      for (int64_t lane = 0; lane < 32; ++lane) {
        ASSERT_EQ(bits_at(out, lane, k - begin), expected_bits(w, lane, k))
            << to_string(w.layout.format) << ", lane " << lane << ", k " << k << " of piece "
            << begin << " + " << count << ", expected "
            << std::bit_cast<float>(expected_bits(w, lane, k)) << ", found "
            << std::bit_cast<float>(bits_at(out, lane, k - begin));
      }
    }
    for (size_t i = out.size() - 64; i < out.size(); ++i)
      ASSERT_EQ(out.data()[i], std::byte{0xab}) << "wrote beyond the piece";
  }
  CodedCase panel_of(const WeightFormat& format, int64_t k, int64_t n = kPanelWidth) {
    return random_coded(rng, {.dtype = DType::kF32, .n = n, .k = k, .format = format});
  }

  const PanelDequantizer& dequantizer = GetParam();
  SeededRng rng;
  testing::ScopedTrace trace{__FILE__, __LINE__, "seed " + std::to_string(rng.seed())};
};

TEST_P(PanelDequantizerTest, EveryPieceOfEveryFormatHasTheBitsOfTheFormula) {
  for (const WeightElement element : every_element()) {
    for (const WeightFormat& format : every_format_of(element, {16, 24, 32, 64, 128})) {
      const CodedCase w = panel_of(format, 170);
      for (int64_t begin = 0; begin < 192; begin += 32) {
        for (int64_t count = 32; begin + count <= 192; count += 32)
          ASSERT_NO_FATAL_FAILURE(expect_piece(w, begin, count));
      }
    }
  }
}

TEST_P(PanelDequantizerTest, EveryCodeHasItsValueAndItsSign) {
  for (const WeightElement element : every_element()) {
    CodedCase w = panel_of({.element = element}, 32);
    for (size_t i = 0; i < w.codes.size(); ++i) {
      w.codes[i] = static_cast<uint8_t>(i % (size_t{1} << bits_of(element)));
      if (std::isnan(value_of(element, w.codes[i]))) w.codes[i] = 0;
    }
    ASSERT_TRUE(w.store());
    expect_piece(w, 0, 32);
  }
}

TEST_P(PanelDequantizerTest, EveryScaleOfEightBitsCounts) {
  for (const ScaleType type : {ScaleType::kE8M0, ScaleType::kE4M3}) {
    CodedCase w = panel_of({WeightElement::kE2M1, type, 16, false, false}, 128);
    ASSERT_EQ(w.scales.size(), 256U);
    for (unsigned code = 0; code < 256; ++code) {
      const auto byte = static_cast<std::byte>(code);
      const float scale = load_scale(&byte, type, 0);
      w.scales[code] = std::isnan(scale) ? 1.0F : scale;
    }
    ASSERT_TRUE(w.store());
    expect_piece(w, 0, 128);
  }
}

TEST_P(PanelDequantizerTest, SubnormalF16ScalesCount) {
  CodedCase w = panel_of({WeightElement::kInt4, ScaleType::kF16, 16, true, false}, 64);
  for (size_t i = 0; i < w.scales.size(); ++i)
    w.scales[i] = static_cast<float>(i + 1) * 0x1p-24F;
  ASSERT_TRUE(w.store());
  expect_piece(w, 0, 64);
}

TEST_P(PanelDequantizerTest, LanesWithoutAnOutputAreZero) {
  expect_piece(panel_of({WeightElement::kInt4, ScaleType::kF16, 32, true, true}, 96, 19), 0, 96);
}

INSTANTIATE_TEST_SUITE_P(All, PanelDequantizerTest,
                         testing::ValuesIn(panel_dequantizers().begin(),
                                           panel_dequantizers().end()),
                         [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace test
}  // namespace gantry
