// Scales that cannot be right: every kind of problem by hand, each with a twin that is none, and
// both on what real exporters wrote.

#include "loader/encodings/scale_sanity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "kernels/base/error.h"
#include "loader/encodings/matrix_structure.h"
#include "loader/encodings/scale_grid.h"
#include "loader/encodings/scale_views.h"
#include "tests/support/encoded_file.h"
#include "tests/support/expect_error.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// A row of scales and how large the codes under each are.
struct Case {
  DType dtype;
  std::vector<float> values;
  std::vector<float> peaks;
  bool integer = false;
  bool divisor = false;
};

std::vector<ScaleProblem> problems_of(const Case& c) {
  const EncodedTensor tensor{
      "w.scale", c.dtype, {1, static_cast<int64_t>(c.values.size())}, nullptr};
  ScaleView view;
  view.suffix = "scale";
  view.tensor = &tensor;
  view.values = c.values;
  view.may_be_negative = c.integer;
  view.is_divisor = c.divisor;
  view.code_peaks = [&] { return c.peaks; };
  return check_scales(view);
}

/// The kinds, by the names that users see, with the first element of each.
std::string kinds_of(const Case& c) {
  std::string text;
  for (const ScaleProblem& problem : problems_of(c)) {
    if (!text.empty()) text += ' ';
    text += to_string(problem.kind);
    text += '@';
    text += std::to_string(problem.element);
  }
  return text;
}

TEST(CheckScalesTest, NanAndInfinityAreNeverScales) {
  EXPECT_EQ(kinds_of({DType::kF32, {1, kNan, 1}, {1, 1, 1}}), "non_finite@1");
  EXPECT_EQ(kinds_of({DType::kF16, {1, 1, -kInfinity}, {0, 0, 0}}), "non_finite@2");
  EXPECT_EQ(kinds_of({DType::kF32, {kInfinity}, {1}, true, true}), "non_finite@0");
  EXPECT_EQ(kinds_of({DType::kF32, {1, std::numeric_limits<float>::max()}, {1, 1}}), "");
}

TEST(CheckScalesTest, OnlyIntegersHaveNegativeScales) {
  EXPECT_EQ(kinds_of({DType::kF8E4M3, {1, 1, -1}, {6, 6, 6}}), "negative_scale@2");
  EXPECT_EQ(kinds_of({DType::kF16, {1, 1, -1}, {7, 7, 7}, true}), "");
}

TEST(CheckScalesTest, AScaleOfZeroIsWrongOverCodesOnly) {
  EXPECT_EQ(kinds_of({DType::kF8E4M3, {448, 0, 448, -0.0F}, {6, 0.5, 6, 1}}), "zero_scale@1");
  EXPECT_EQ(kinds_of({DType::kF8E4M3, {448, 0, 448, -0.0F}, {6, 0, 6, 0}}), "");
  EXPECT_EQ(kinds_of({DType::kF16, {0, 1}, {1, 7}, true}), "zero_scale@0");
  EXPECT_EQ(kinds_of({DType::kF16, {0, 1}, {0, 7}, true}), "");
}

TEST(CheckScalesTest, ADivisorOfZeroIsAlwaysWrong) {
  EXPECT_EQ(kinds_of({DType::kF32, {0}, {0}, false, true}), "zero_scale@0");
  EXPECT_EQ(kinds_of({DType::kF32, {0}, {0}}), "");
}

// e8m0 has no zero: its smallest code, 2^-127, is what a buffer holds that nobody wrote.
TEST(CheckScalesTest, TheSmallestExponentOverCodesIsAScaleThatWasNotWritten) {
  EXPECT_EQ(kinds_of({DType::kU8, {1, 0x1p-127F}, {6, 0.5}}), "zero_scale@1");
  EXPECT_EQ(kinds_of({DType::kF8E8M0, {0x1p-127F}, {448}}), "zero_scale@0");
  EXPECT_EQ(kinds_of({DType::kU8, {1, 0x1p-127F}, {6, 0}}), "");
  EXPECT_EQ(kinds_of({DType::kU8, {1, 0x1p-126F}, {6, 6}}), "");
}

// The rule's two halves: few bits are left, and the block is not negligible.
TEST(CheckScalesTest, AnUnderflowMattersOnlyInABlockThatDoes) {
  // A global scale that fits: the largest scale is 448, subnormal ones are below 2^-14 of it.
  EXPECT_EQ(kinds_of({DType::kF8E4M3, {448, 0x1p-9F}, {6, 6}}), "");
  // One that was never calibrated: everything is pushed down.
  EXPECT_EQ(kinds_of({DType::kF8E4M3, {0x1p-6F, 0x1p-9F}, {6, 6}}), "underflow_scale@1");
  EXPECT_EQ(kinds_of({DType::kF8E4M3, {0x1p-6F, 0x1p-9F}, {6, 0}}), "");
  EXPECT_EQ(kinds_of({DType::kF8E4M3, {0x1p-8F, 0x1p-9F}, {6, 6}}), "underflow_scale@0");
  // Exactly 2^-8 of the largest weight, and just below.
  EXPECT_EQ(kinds_of({DType::kF8E4M3, {1, 0x1p-8F}, {6, 6}}), "underflow_scale@1");
  EXPECT_EQ(kinds_of({DType::kF8E4M3, {1, 0x1p-8F}, {6, 4}}), "");
}

// Small integer weights have subnormal f16 scales with bits enough.
TEST(CheckScalesTest, ASubnormalF16ScaleWithEnoughBitsIsFine) {
  EXPECT_EQ(kinds_of({DType::kF16, {0x1p-15F, 0x1p-18F, 0x1p-21F}, {127, 127, 127}, true}), "");
  EXPECT_EQ(kinds_of({DType::kF16, {0x1p-15F, 7 * 0x1p-24F}, {127, 127}, true}),
            "underflow_scale@1");
  EXPECT_EQ(kinds_of({DType::kF16, {0x1p-15F, -7 * 0x1p-24F}, {127, 127}, true}),
            "underflow_scale@1");
  EXPECT_EQ(kinds_of({DType::kBF16, {0x1p-131F}, {127}, true}), "underflow_scale@0");
  EXPECT_EQ(kinds_of({DType::kF32, {0x1p-147F}, {127}}), "underflow_scale@0");
  EXPECT_EQ(kinds_of({DType::kF32, {0x1p-146F}, {127}}), "");
}

TEST(CheckScalesTest, TheMessageNamesTensorIndexExpectedFoundAndCount) {
  const EncodedTensor tensor{"experts.3.w1.weight_scale", DType::kF8E4M3, {2, 3}, nullptr};
  ScaleView view;
  view.suffix = "weight_scale";
  view.tensor = &tensor;
  view.values = {1, 1, 1, 1, 0, 0};
  view.code_peaks = [] { return std::vector<float>{6, 6, 6, 6, 6, 3}; };
  const std::vector<ScaleProblem> problems = check_scales(view);
  ASSERT_EQ(problems.size(), 1U);
  EXPECT_EQ(problems[0].message,
            "experts.3.w1.weight_scale: element [1, 1] of [2, 3] f8_e4m3: expected a scale above "
            "zero over codes of up to 6, found 0, 2 in all");
  EXPECT_EQ(problems[0].suffix, "weight_scale");
}

/// A matrix whose scale tensors can be changed.
class ChangedMatrix {
 public:
  explicit ChangedMatrix(const EncodedMatrix& intact) : matrix(intact) {}

  std::vector<std::byte>& bytes(const std::string& suffix) {
    EncodedTensor& tensor = matrix.tensors.at(suffix);
    std::vector<std::byte>& own = memory_[suffix];
    own.assign(tensor.data, tensor.data + tensor.num_elements() * size_of(tensor.dtype));
    tensor.data = own.data();
    return own;
  }

  /// Overwrites one element with these bits.
  void set(const std::string& suffix, int64_t element, uint64_t bits) {
    const auto size = static_cast<size_t>(size_of(matrix.tensors.at(suffix).dtype));
    std::memcpy(bytes(suffix).data() + static_cast<size_t>(element) * size, &bits, size);
  }

  EncodedMatrix matrix;

 private:
  std::map<std::string, std::vector<std::byte>> memory_;
};

uint32_t nan_bits(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 0x7fc00000u;
    case DType::kF16:
      return 0x7e00u;
    case DType::kBF16:
      return 0x7fc0u;
    case DType::kF8E4M3:
      return 0x7fu;
    default:
      return 0xffu;  // e8m0
  }
}

class ScaleSanityGoldenTest : public testing::TestWithParam<std::filesystem::path> {
 protected:
  const EncodedFile file{GetParam()};
  SeededRng rng;
};

TEST_P(ScaleSanityGoldenTest, WhatExportersWriteHasNoProblem) {
  for (const std::string projection : {"gate", "up", "down"}) {
    const EncodedMatrix matrix = file.matrix(projection);
    EXPECT_EQ(missing_companion(file.scheme, matrix).value_or(""), "") << projection;
    for (const ScaleProblem& problem : find_scale_problems(file.scheme, matrix)) {
      ADD_FAILURE() << projection << ": " << problem.message;
    }
  }
}

TEST_P(ScaleSanityGoldenTest, ANanIsFoundInEveryTensorOfScales) {
  const EncodedMatrix intact = file.matrix("down");
  const std::vector<ScaleView> views = scale_views(file.scheme, intact);
  ASSERT_FALSE(views.empty());
  for (const ScaleView& view : views) {
    ChangedMatrix changed(intact);
    const int64_t element = rng.integer(0, static_cast<int64_t>(view.values.size()) - 1);
    changed.set(view.suffix, element, nan_bits(view.tensor->dtype));
    const auto problems = find_scale_problems(file.scheme, changed.matrix);
    ASSERT_EQ(problems.size(), 1U) << view.suffix;
    EXPECT_EQ(problems[0].kind, FindingKind::kNonFinite);
    EXPECT_EQ(problems[0].suffix, view.suffix);
    EXPECT_EQ(problems[0].element, element);
  }
}

// Which codes a scale covers is checked against the decoder: zero is a problem where it makes a
// weight zero that was not.
TEST_P(ScaleSanityGoldenTest, AZeroIsFoundWhereItErasesAWeight) {
  const EncodedMatrix intact = file.matrix("down");
  const std::vector<float> weights = decode_matrix(file.scheme, intact);
  for (const ScaleView& view : scale_views(file.scheme, intact)) {
    // The views of these are not of blocks, or their zero divides.
    if (!view.code_peaks || view.is_divisor || view.suffix == "pre_quant_scale") continue;
    for (int trial = 0; trial < 4; ++trial) {
      ChangedMatrix changed(intact);
      const int64_t element = rng.integer(0, static_cast<int64_t>(view.values.size()) - 1);
      changed.set(view.suffix, element, 0);
      const std::vector<float> erased = decode_matrix(file.scheme, changed.matrix);
      bool erases = false;
      for (size_t i = 0; i < weights.size(); ++i)
        erases = erases || (weights[i] != 0.0F && std::fabs(erased[i]) < 1e-30F);
      const auto problems = find_scale_problems(file.scheme, changed.matrix);
      ASSERT_EQ(problems.size(), erases ? 1U : 0U) << view.suffix << " " << element;
      if (!erases) continue;
      EXPECT_EQ(problems[0].kind, FindingKind::kZeroScale) << problems[0].message;
      EXPECT_EQ(problems[0].element, element);
    }
  }
}

// A zero under each scale in turn: the code peaks are those of the decoded weights.
TEST_P(ScaleSanityGoldenTest, CodePeaksAreTheDecodedWeightsOverTheirScales) {
  const EncodedMatrix intact = file.matrix("gate");
  for (const ScaleView& view : scale_views(file.scheme, intact)) {
    if (!view.code_peaks || view.values.size() < 2 || view.suffix == "pre_quant_scale") continue;
    const std::vector<float> peaks = view.code_peaks();
    // Scaling by one scale alone: all others are zero, so that what is left is its block.
    const auto element =
        static_cast<size_t>(rng.integer(0, static_cast<int64_t>(view.values.size()) - 1));
    ChangedMatrix changed(intact);
    const auto size = static_cast<size_t>(size_of(view.tensor->dtype));
    std::vector<std::byte>& bytes = changed.bytes(view.suffix);
    const std::vector<std::byte> own(bytes.begin() + static_cast<ptrdiff_t>(element * size),
                                     bytes.begin() + static_cast<ptrdiff_t>((element + 1) * size));
    std::fill(bytes.begin(), bytes.end(), std::byte{0});
    std::copy(own.begin(), own.end(), bytes.begin() + static_cast<ptrdiff_t>(element * size));
    float largest = 0.0F;
    for (const float weight : decode_matrix(file.scheme, changed.matrix))
      largest = std::max(largest, std::fabs(weight));
    float factor = std::fabs(view.values[element]);
    if (const EncodedTensor* global = intact.find("weight_scale_2")) {
      factor *= scale_values(*global)[0];
    } else if (const EncodedTensor* divisor = intact.find("weight_global_scale")) {
      factor /= scale_values(*divisor)[0];
    }
    EXPECT_NEAR(peaks[element] * factor, largest, 1e-5F * largest) << view.suffix << " " << element;
  }
}

TEST_P(ScaleSanityGoldenTest, ANegativeScaleIsFoundWhereTheFormatHasNone) {
  const EncodedMatrix intact = file.matrix("up");
  const std::string encoding(find_encoding(file.scheme, intact).name);
  const bool integer = encoding == "gptq" || encoding == "awq" || encoding == "pack-quantized" ||
                       encoding == "int4 row pairs" || encoding == "int8";
  for (const ScaleView& view : scale_views(file.scheme, intact)) {
    const DType dtype = view.tensor->dtype;
    if (!view.code_peaks || dtype == DType::kU8 || dtype == DType::kF8E8M0) continue;
    ChangedMatrix changed(intact);
    std::vector<std::byte>& bytes = changed.bytes(view.suffix);
    bytes[static_cast<size_t>(size_of(dtype)) - 1] ^= std::byte{0x80};  // the first one's sign
    const bool is_legal = integer && view.suffix != "pre_quant_scale";
    const auto problems = find_scale_problems(file.scheme, changed.matrix);
    ASSERT_EQ(problems.size(), is_legal || view.values[0] < 0.0F ? 0U : 1U) << view.suffix;
    if (!problems.empty()) {
      EXPECT_EQ(problems[0].kind, FindingKind::kNegativeScale);
      EXPECT_EQ(problems[0].element, 0);
    }
  }
}

TEST_P(ScaleSanityGoldenTest, ADeclaredShapeMustBeTheMatrix) {
  const EncodedMatrix intact = file.matrix("down");
  EXPECT_NO_THROW(check_declared_shape(intact));
  if (intact.find("weight_shape") == nullptr) return;
  for (const int64_t element : {0, 1}) {
    ChangedMatrix changed(intact);
    changed.set("weight_shape", element, 7);
    expect_error([&] { check_declared_shape(changed.matrix); }, ErrorCode::kFormat,
                 {"weight_shape", "found [", "7"});
  }
  EncodedMatrix cut = intact;
  cut.tensors.at("weight_shape").shape = {1};
  expect_error([&] { check_declared_shape(cut); }, ErrorCode::kFormat, {"weight_shape"});
}

// Whatever a decoder refuses to do without is named before it is asked.
TEST_P(ScaleSanityGoldenTest, AMissingTensorIsNamed) {
  const EncodedMatrix intact = file.matrix("gate");
  for (const auto& [suffix, tensor] : intact.tensors) {
    if (intact.tensors.size() == 1) continue;
    EncodedMatrix damaged = intact;
    damaged.tensors.erase(suffix);
    bool decodes = true;
    try {
      (void)decode_matrix(file.scheme, damaged);
    } catch (const Error&) {
      decodes = false;
    }
    const std::optional<std::string> missing = missing_companion(file.scheme, damaged);
    const bool is_group_order = suffix == "g_idx" || suffix == "weight_g_idx";
    const bool is_code = suffix.find("scale") == std::string::npos && suffix != "qzeros" &&
                         suffix != "weight_zero_point" && suffix != "weight.absmax" &&
                         suffix != "weight.quant_map" && suffix != "SCB";
    if (decodes) {
      EXPECT_EQ(missing.value_or(""), "") << "without " << suffix;
    } else if (!is_group_order && !is_code) {
      // fp8's multiplier has two names.
      const bool is_fp8_scale = suffix == "weight_scale_inv" && missing == "weight_scale";
      EXPECT_TRUE(missing == suffix || is_fp8_scale)
          << "without " << suffix << ": " << missing.value_or("nothing") << " is named";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Exporters, ScaleSanityGoldenTest, testing::ValuesIn(encoded_files()),
                         [](const auto& tested) { return test_name(tested.param); });

}  // namespace
}  // namespace gantry::test
