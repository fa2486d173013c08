#include "runtime/fused_moe_layer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/base/float_convert.h"
#include "tests/support/expect_error.h"
#include "tests/support/toy_layer.h"

namespace gantry::test {
namespace {

// ||y - ref|| / ||ref||; f32 sums over at most 32 terms keep it below 1e-6.
double error_of(const std::vector<float>& y, const std::vector<double>& reference) {
  double difference = 0.0;
  double norm = 1e-300;
  for (size_t i = 0; i < y.size(); ++i) {
    difference += (y[i] - reference[i]) * (y[i] - reference[i]);
    norm += reference[i] * reference[i];
  }
  return std::sqrt(difference / norm);
}

constexpr double kF32Limit = 1e-6;

class FusedMoeLayerTest : public testing::Test {
 protected:
  FusedMoeOptions f32_options() const {
    FusedMoeOptions options;
    options.activations = ActivationDType::kF32;
    options.threads.count = 2;
    return options;
  }
  std::unique_ptr<FusedMoeLayer> make_layer(const ToyLayer& toy, FusedMoeOptions options) {
    SeededRng weights_rng(7);
    return std::make_unique<FusedMoeLayer>(toy.weights(weights_rng), toy.expert_map(), options,
                                           nullptr);
  }
  std::vector<float> run(const FusedMoeLayer& layer, const MoeInput& input,
                         int64_t max_num_tokens = 128) {
    std::vector<float> out(input.hidden_states.size(), -1.0F);
    workspace_ = layer.make_workspace(max_num_tokens);
    layer.forward(input, workspace_, out);
    return out;
  }
  std::vector<float> tokens(const ToyLayer& toy, int64_t count) {
    return rng_.normals(static_cast<size_t>(count * toy.hidden_size));
  }

  SeededRng rng_;
  Workspace workspace_;  // of the last run
};

TEST_F(FusedMoeLayerTest, MatchesTheNaiveLoopsForExternalIdsAndWeights) {
  const ToyLayer toy;
  const auto layer = make_layer(toy, f32_options());
  const std::vector<float> x = tokens(toy, 5);
  const std::vector<int32_t> ids = {0, 1, 5, 2, -1, 3, 4, -1, -1, -1};
  const std::vector<float> weights = {0.5F, 0.25F, 1.0F, -2.0F, 9.0F, 0.1F, 0.7F, 9.0F, 1.0F, 1.0F};
  const std::vector<float> y =
      run(*layer, {.hidden_states = x, .topk_ids = ids, .topk_weights = weights});
  EXPECT_LE(error_of(y, naive_forward(*layer->weights(), x, ids, weights, 2)), kF32Limit);
  for (int64_t i = 0; i < toy.hidden_size; ++i) {
    EXPECT_EQ(y[static_cast<size_t>(4 * toy.hidden_size + i)], 0.0F) << "a token without experts";
  }
}

TEST_F(FusedMoeLayerTest, AddsSharedExpertsToEveryToken) {
  const ToyLayer toy{.shared_intermediate_size = 12};
  const auto layer = make_layer(toy, f32_options());
  const std::vector<float> x = tokens(toy, 3);
  const std::vector<int32_t> ids = {0, 1, -1, -1, 2, 2};
  const std::vector<float> weights = {0.5F, 0.5F, 0.0F, 0.0F, 0.3F, 0.2F};
  const std::vector<float> y =
      run(*layer, {.hidden_states = x, .topk_ids = ids, .topk_weights = weights});
  EXPECT_LE(error_of(y, naive_forward(*layer->weights(), x, ids, weights, 2)), kF32Limit);
}

TEST_F(FusedMoeLayerTest, TakesAllTokensOnOneExpert) {
  const ToyLayer toy;
  const auto layer = make_layer(toy, f32_options());
  const std::vector<float> x = tokens(toy, 70);
  std::vector<int32_t> ids;
  for (int t = 0; t < 70; ++t)
    ids.insert(ids.end(), {3, -1});
  const std::vector<float> weights(ids.size(), 1.0F);
  const std::vector<float> y =
      run(*layer, {.hidden_states = x, .topk_ids = ids, .topk_weights = weights});
  EXPECT_LE(error_of(y, naive_forward(*layer->weights(), x, ids, weights, 2)), kF32Limit);
  EXPECT_EQ(workspace_.tokens_per_expert()[3], 70);
  EXPECT_EQ(workspace_.tokens_per_expert()[0], 0);
}

TEST_F(FusedMoeLayerTest, TakesNoTokens) {
  const ToyLayer toy{.shared_intermediate_size = 12};
  const auto layer = make_layer(toy, f32_options());
  EXPECT_TRUE(run(*layer, {}).empty());
}

TEST_F(FusedMoeLayerTest, GivenLogitsRouteLikeComputedOnes) {
  const ToyLayer toy;
  const auto layer = make_layer(toy, f32_options());
  const std::vector<float> x = tokens(toy, 9);
  const std::vector<float> expected = run(*layer, {.hidden_states = x});
  const std::vector<float> logits = workspace_.last_routing().logits;
  EXPECT_EQ(run(*layer, {.hidden_states = x, .router_logits = logits}), expected);
}

// A router whose values all fit bf16 is kept so; one value that does not makes it f32.
TEST_F(FusedMoeLayerTest, RoutersOfBf16AndOfF32GiveTheirExactLogits) {
  const ToyLayer toy;
  const std::vector<float> x = tokens(toy, 9);
  for (const float first : {0.25F, 0.25F + 0x1p-20F}) {
    SeededRng weights_rng(7);
    MoeLayerWeights weights = toy.weights(weights_rng);
    for (float& value : weights.router.span())
      value = round_to_bf16(value);
    weights.router[0] = first;
    const FusedMoeLayer layer(std::move(weights), toy.expert_map(), f32_options(), nullptr);
    run(layer, {.hidden_states = x});
    const std::vector<float> logits = workspace_.last_routing().logits;
    const auto held = layer.weights();
    for (size_t i = 0; i < logits.size(); ++i) {
      const auto experts = static_cast<size_t>(toy.num_experts);
      const auto hidden = static_cast<size_t>(toy.hidden_size);
      double sum = 0.0;
      double size = 0.0;
      for (size_t k = 0; k < hidden; ++k) {
        const double term = static_cast<double>(x[i / experts * hidden + k]) *
                            static_cast<double>(held->router[i % experts * hidden + k]);
        sum += term;
        size += std::fabs(term);
      }
      // Each of `hidden` additions rounds by at most 2^-24 of the sum so far.
      EXPECT_NEAR(logits[i], sum, static_cast<double>(hidden) * 0x1p-24 * size) << i;
    }
  }
}

TEST_F(FusedMoeLayerTest, ARowDoesNotDependOnItsBatch) {
  const ToyLayer toy{.shared_intermediate_size = 12};
  const auto layer = make_layer(toy, f32_options());
  const std::vector<float> x = tokens(toy, 33);
  const std::vector<float> whole = run(*layer, {.hidden_states = x});
  const auto h = static_cast<size_t>(toy.hidden_size);
  for (size_t t = 0; t < 33; ++t) {
    const std::span<const float> row(x.data() + t * h, h);
    const std::vector<float> alone = run(*layer, {.hidden_states = row});
    EXPECT_EQ(std::memcmp(alone.data(), whole.data() + t * h, h * 4), 0) << "token " << t;
  }
}

TEST_F(FusedMoeLayerTest, ChunksOfALongBatchGiveTheSameBits) {
  const ToyLayer toy;
  const auto layer = make_layer(toy, f32_options());
  const std::vector<float> x = tokens(toy, 50);
  EXPECT_EQ(run(*layer, {.hidden_states = x}, 7), run(*layer, {.hidden_states = x}));
}

TEST_F(FusedMoeLayerTest, TheNumberOfThreadsDoesNotChangeABit) {
  const ToyLayer toy;
  const std::vector<float> x = tokens(toy, 40);
  FusedMoeOptions one = f32_options();
  one.threads.count = 1;
  FusedMoeOptions five = f32_options();
  five.threads.count = 5;
  EXPECT_EQ(run(*make_layer(toy, one), {.hidden_states = x}),
            run(*make_layer(toy, five), {.hidden_states = x}));
}

TEST_F(FusedMoeLayerTest, RunsOnTheCallersExecutor) {
  const ToyLayer toy;
  int64_t tasks = 0;
  FusedMoeOptions options = f32_options();
  options.threads.executor = [&](int64_t count, const std::function<void(int64_t)>& body) {
    tasks += count;
    for (int64_t i = count - 1; i >= 0; --i)
      body(i);
  };
  const std::vector<float> x = tokens(toy, 12);
  EXPECT_EQ(run(*make_layer(toy, options), {.hidden_states = x}),
            run(*make_layer(toy, f32_options()), {.hidden_states = x}));
  EXPECT_GT(tasks, 0);
}

TEST_F(FusedMoeLayerTest, Bf16ActivationsStayNearTheF32Result) {
  const ToyLayer toy{.shared_intermediate_size = 12, .dtype = DType::kBF16};
  const std::vector<float> x = tokens(toy, 64);
  FusedMoeOptions options = f32_options();
  options.activations = ActivationDType::kBF16;
  const std::vector<float> exact = run(*make_layer(toy, f32_options()), {.hidden_states = x});
  const std::vector<float> rounded = run(*make_layer(toy, options), {.hidden_states = x});
  const double error = error_of(rounded, {exact.begin(), exact.end()});
  EXPECT_GT(error, 1e-5);  // it does round
  EXPECT_LE(error, 1e-2);
}

TEST_F(FusedMoeLayerTest, EveryIsaAgreesWithTheScalarReference) {
  const ToyLayer toy{.hidden_size = 37, .intermediate_size = 21, .dtype = DType::kF16};
  const std::vector<float> x = tokens(toy, 19);
  FusedMoeOptions scalar = f32_options();
  scalar.isas = IsaSet();
  const std::vector<float> reference = run(*make_layer(toy, scalar), {.hidden_states = x});
  for (const Isa cap : {Isa::kAvx2, Isa::kAvx512, Isa::kAmxBf16}) {
    FusedMoeOptions options = f32_options();
    options.isas = detected_isas().capped(cap);
    EXPECT_LE(error_of(run(*make_layer(toy, options), {.hidden_states = x}),
                       {reference.begin(), reference.end()}),
              kF32Limit)
        << to_string(cap);
  }
}

TEST_F(FusedMoeLayerTest, RefusesSizesThatDoNotFit) {
  const ToyLayer toy;
  const auto layer = make_layer(toy, f32_options());
  const std::vector<float> x = tokens(toy, 2);
  std::vector<float> out(x.size());
  Workspace workspace = layer->make_workspace(4);
  const std::vector<int32_t> ids = {0, 1, 2, 3};
  const std::vector<float> weights = {1.0F};
  expect_error([&] { layer->forward({.hidden_states = std::span(x).first(5)}, workspace, out); },
               ErrorCode::kInvalidArgument, {"hidden states"});
  expect_error([&] { layer->forward({.hidden_states = x, .topk_ids = ids}, workspace, out); },
               ErrorCode::kInvalidArgument, {"topk_weights"});
  const std::vector<int32_t> bad_ids = {0, 1, 2, 6};
  const std::vector<float> four(4, 1.0F);
  expect_error(
      [&] {
        layer->forward({.hidden_states = x, .topk_ids = bad_ids, .topk_weights = four}, workspace,
                       out);
      },
      ErrorCode::kInvalidArgument, {"expert id"});
  Workspace none;
  expect_error([&] { layer->forward({.hidden_states = x}, none, out); },
               ErrorCode::kInvalidArgument, {"workspace"});
}

TEST_F(FusedMoeLayerTest, RefusesAWorldOfAnotherSize) {
  const ToyLayer toy;
  SeededRng rng(7);
  MoeLayerWeights weights = toy.weights(rng);
  weights.parallel.tp_size = 2;
  expect_error([&] { FusedMoeLayer(std::move(weights), toy.expert_map(), f32_options(), nullptr); },
               ErrorCode::kInvalidArgument, {"rank"});
}

}  // namespace
}  // namespace gantry::test
