// What a bench asks of cuBLAS, with a library of our own in its place.

#include "tools/cublas_experts.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/base/float_convert.h"
#include "tests/support/expect_error.h"

namespace gantry::cli {
namespace {

// Programs that were carried to another machine have it beside them.
std::string fake_cublas() {
  const char* elsewhere = std::getenv("GANTRY_TEST_FAKE_CUBLAS");
  return elsewhere != nullptr ? elsewhere : GANTRY_FAKE_CUBLAS;
}

// Multiples of 2^-6: sums of few products are exact in f32, so only bf16 rounds.
TEST(CublasExpertsTest, MultipliesTheRowsOfEachExpert) {
  for (const int64_t parts : {1, 2}) {
    const auto device = open_emulated_device();
    const CublasExpertsShape shape{
        .num_experts = 3, .hidden_size = 10, .intermediate_size = 6, .parts = parts, .max_rows = 8};
    CublasExperts experts(device, fake_cublas(), shape, 5);
    const std::vector<int64_t> rows = {2, 0, 5};
    experts.set_rows(rows);
    experts.run(nullptr);
    const int64_t middle = parts * 6;
    int64_t row = 0;
    for (int64_t e = 0; e < 3; ++e) {
      for (int64_t r = 0; r < rows[static_cast<size_t>(e)]; ++r, ++row) {
        std::vector<float> mid(static_cast<size_t>(middle));
        for (int64_t o = 0; o < middle; ++o) {
          double sum = 0.0;
          for (int64_t i = 0; i < 10; ++i) {
            sum += static_cast<double>(bf16_to_f32(experts.x()[row * 10 + i])) *
                   bf16_to_f32(experts.w13()[(e * middle + o) * 10 + i]);
          }
          mid[static_cast<size_t>(o)] = round_to_bf16(static_cast<float>(sum));
        }
        for (int64_t o = 0; o < 10; ++o) {
          double sum = 0.0;
          for (int64_t j = 0; j < 6; ++j) {
            sum += static_cast<double>(mid[static_cast<size_t>(j)]) *
                   bf16_to_f32(experts.w2()[(e * 10 + o) * 6 + j]);
          }
          // Half a step of bf16, and f32's own roundings far below it.
          EXPECT_NEAR(bf16_to_f32(experts.y()[row * 10 + o]), sum, 0x1p-8 * std::fabs(sum) + 1e-6)
              << "expert " << e << " row " << r << " output " << o;
        }
      }
    }
  }
}

TEST(CublasExpertsTest, RefusesWhatDoesNotFit) {
  const auto device = open_emulated_device();
  const CublasExpertsShape shape{
      .num_experts = 2, .hidden_size = 8, .intermediate_size = 8, .parts = 2, .max_rows = 4};
  test::expect_error([&] { CublasExperts(device, "/nowhere/libcublas.so", shape, 1); },
                     ErrorCode::kUnsupported, {"/nowhere/libcublas.so"});
  CublasExperts experts(device, fake_cublas(), shape, 1);
  test::expect_error([&] { experts.set_rows({3, 2}); }, ErrorCode::kInvalidArgument, {"4 rows"});
  test::expect_error([&] { experts.set_rows({1}); }, ErrorCode::kInvalidArgument, {"2 experts"});
}

}  // namespace
}  // namespace gantry::cli
