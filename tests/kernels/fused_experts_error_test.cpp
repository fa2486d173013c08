// What fused_experts() refuses, and how large its scratch must be.

#include <gtest/gtest.h>

#include <string_view>
#include <vector>

#include "kernels/fused_moe/row_ops.h"
#include "tests/kernels/fused_case.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

constexpr auto kF32 = ActivationDType::kF32;

// Two experts with rows 0, 1 and 2 on the scalar kernel; each test makes one thing wrong.
class FusedExpertsArgumentTest : public testing::Test {
 protected:
  void SetUp() override {
    c.expert_to_slot = {0, 1};
    kernels = select_fused_experts({.weights = DType::kF32, .activations = kF32, .isas = IsaSet{}});
    resize_scratch(3, 2);
    call = {.experts = c.experts,
            .activation = c.shape.activation,
            .activations = kF32,
            .rows = {token.data(), choice.data(), offsets, order},
            .x = x,
            .input_weights = {},
            .weights = weights,
            .add_w2_bias = true,
            .clear = true,
            .out = out};
  }

  void resize_scratch(int64_t rows, int64_t num_slots) {
    FusedExpertsScratchSize size = fused_experts_scratch(c.experts, kernels, rows);
    size.num_slots = num_slots;
    scratch = FusedExpertsScratch(size);
  }
  void run() { fused_experts(call, kernels, {.count = 1, .executor = {}}, scratch); }
  void expect_refused(std::initializer_list<std::string_view> parts) {
    expect_error([&] { run(); }, ErrorCode::kInvalidArgument, parts);
  }

  SeededRng rng;
  FusedCase c = random_fused(
      rng, {.hidden = 8, .intermediate = 5, .num_experts = 2, .num_tokens = 2, .top_k = 2});
  std::vector<int32_t> token = {0, 1, 1};
  std::vector<int32_t> choice = {0, 2, 3};
  std::vector<int32_t> offsets = {0, 1, 3};
  std::vector<int32_t> order = {0, 1};
  std::vector<float> x = std::vector<float>(16);
  std::vector<float> out = std::vector<float>(16);
  std::vector<float> weights = std::vector<float>(4);
  FusedExpertsKernels kernels;
  FusedExpertsScratch scratch;
  FusedExpertsCall call;
};

TEST_F(FusedExpertsArgumentTest, AcceptsWhatFits) { EXPECT_NO_THROW(run()); }

TEST_F(FusedExpertsArgumentTest, RowsOfTheirOwnAddUpToTheTokens) {
  x = rng.normals(16);
  weights = {0.5F, 1.0F, 0.25F, 2.0F};
  call.x = x;
  call.weights = weights;
  run();
  const std::vector<int32_t> out_row = {2, 0, 1};
  std::vector<float> rows(24, -7.0F);
  call.rows.out_row = out_row.data();
  call.weights = {};
  call.out = rows;
  run();
  std::vector<float> sums(16, 0.0F);
  for (size_t r = 0; r < 3; ++r) {
    for (size_t i = 0; i < 8; ++i) {
      sums[static_cast<size_t>(token[r]) * 8 + i] +=
          weights[static_cast<size_t>(choice[r])] * rows[static_cast<size_t>(out_row[r]) * 8 + i];
    }
  }
  EXPECT_EQ(sums, out);
}

TEST_F(FusedExpertsArgumentTest, RefusesARowOutsideTheOutput) {
  for (const int32_t outside : {-1, 2}) {
    const std::vector<int32_t> out_row = {0, 1, outside};
    call.rows.out_row = out_row.data();
    expect_refused({"an output row outside the 2"});
  }
}

TEST_F(FusedExpertsArgumentTest, RefusesAScratchForFewerRows) {
  resize_scratch(2, 2);
  expect_refused({"3 rows", "scratch"});
}

TEST_F(FusedExpertsArgumentTest, RefusesAScratchForFewerSlots) {
  resize_scratch(3, 1);
  expect_refused({"scratch"});
}

TEST_F(FusedExpertsArgumentTest, RefusesAScratchWithoutRoomBetweenTheGemms) {
  scratch.intermediate = ByteBuffer(scratch.intermediate.size() - 1);
  expect_refused({"scratch"});
}

TEST_F(FusedExpertsArgumentTest, AcceptsAScratchForMoreRowsAndSlots) {
  resize_scratch(50, 9);
  EXPECT_NO_THROW(run());
}

TEST_F(FusedExpertsArgumentTest, RefusesAnotherHiddenSizeOfW2) {
  call.experts.w2.n = 9;
  expect_refused({"w13 [10, 8]", "w2 [9, 5]"});
}

TEST_F(FusedExpertsArgumentTest, RefusesAnotherIntermediateSizeOfW2) {
  call.experts.w2.k = 6;
  expect_refused({"w13 [10, 8]", "w2 [8, 6]"});
}

TEST_F(FusedExpertsArgumentTest, RefusesMatricesOfDifferentTypes) {
  call.experts.w2.dtype = DType::kBF16;
  expect_refused({"w13", "w2"});
}

TEST_F(FusedExpertsArgumentTest, RefusesAnUngatedActivationOfAGatedW13) {
  call.activation.kind = Activation::kSiluNoMul;
  expect_refused({"silu_no_mul", "gated"});
}

TEST_F(FusedExpertsArgumentTest, RefusesTooFewOffsets) {
  offsets = {0, 3};
  call.rows.offsets = offsets;
  expect_refused({"2 slots", "offsets"});
}

TEST_F(FusedExpertsArgumentTest, RefusesNoOffsets) {
  call.rows.offsets = {};
  expect_refused({"2 slots", "offsets"});
}

TEST_F(FusedExpertsArgumentTest, RefusesOffsetsThatDoNotStartAtZero) {
  offsets[0] = 1;
  expect_refused({"offsets"});
}

TEST_F(FusedExpertsArgumentTest, RefusesOffsetsThatDescend) {
  offsets[1] = 4;
  expect_refused({"offsets"});
}

TEST_F(FusedExpertsArgumentTest, RefusesAnOrderOfOtherSlots) {
  order.pop_back();
  call.rows.order = order;
  expect_refused({"2 slots"});
}

TEST_F(FusedExpertsArgumentTest, RefusesOutputsOfAnotherSize) {
  out.resize(24);
  call.out = out;
  expect_refused({"16 inputs", "24 outputs"});
}

TEST_F(FusedExpertsArgumentTest, RefusesPartsOfTokens) {
  x.resize(15);
  out.resize(15);
  call.x = x;
  call.out = out;
  expect_refused({"15 inputs"});
}

TEST(FusedExpertsSelectTest, RowOperationsAreThoseOfTheBestInstructionSet) {
  for (const DType weights : {DType::kBF16, DType::kF16, DType::kF32}) {
    KernelRequest request{.weights = weights, .activations = kF32, .isas = IsaSet{}};
    EXPECT_EQ(select_fused_experts(request).w13.gemm->isa, Isa::kScalar);
    EXPECT_EQ(select_fused_experts(request).row_ops, &scalar::kRowOps);
    request.isas.insert(Isa::kAvx2);
    EXPECT_EQ(select_fused_experts(request).w13.gemm->isa, Isa::kAvx2);
    EXPECT_EQ(select_fused_experts(request).row_ops, &avx2::kRowOps);
    request.isas.insert(Isa::kAvx512);
    EXPECT_EQ(select_fused_experts(request).w13.gemm->isa, Isa::kAvx512);
    EXPECT_EQ(select_fused_experts(request).row_ops, &avx512::kRowOps);
  }
}

TEST(FusedExpertsSelectTest, SaysWhatNoKernelReads) {
  expect_error(
      [] {
        (void)select_fused_experts(
            {.weights = DType::kF8E4M3, .activations = kF32, .isas = IsaSet{}});
      },
      ErrorCode::kUnsupported, {"f8_e4m3"});
}

TEST(FusedExpertsScratchTest, CoversTheLargestOfEveryPart) {
  FusedExpertsScratchSize size{.rows_bytes = 100, .intermediate_bytes = 5, .num_slots = 7};
  size.cover({.rows_bytes = 50, .intermediate_bytes = 60, .num_slots = 8});
  EXPECT_EQ(size.rows_bytes, 100);
  EXPECT_EQ(size.intermediate_bytes, 60);
  EXPECT_EQ(size.num_slots, 8);
  const FusedExpertsScratch scratch(size);
  EXPECT_EQ(scratch.rows.size(), 100U);
  EXPECT_EQ(scratch.intermediate.size(), 60U);
  EXPECT_EQ(scratch.task_offsets.size(), 9U);
  EXPECT_EQ(scratch.bytes(), 100U + 60U + 9U * sizeof(int64_t));
}

}  // namespace
}  // namespace gantry::test
