// The contract of DeviceMoeLayer.

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "runtime/device_moe_layer.h"
#include "runtime/reference.h"
#include "tests/support/device_array.h"
#include "tests/support/expect_error.h"
#include "tests/support/toy_layer.h"

namespace gantry::test {
namespace {

class DeviceLayerTest : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    weights = toy.weights(rng);
  }

  [[nodiscard]] std::unique_ptr<DeviceMoeLayer> make(bool batch_invariant = false) const {
    return std::make_unique<DeviceMoeLayer>(
        device, weights, toy.expert_map(),
        DeviceMoeOptions{.threads = {.count = 1, .executor = {}},
                         .skip_shared_experts = false,
                         .batch_invariant = batch_invariant});
  }
  std::vector<float> run(const DeviceMoeLayer& layer, const MoeInput& input,
                         int64_t max_tokens = 64) const {
    DeviceWorkspace workspace = layer.make_workspace(max_tokens);
    std::vector<float> out(input.hidden_states.size(), NAN);
    layer.forward_host(input, workspace, out);
    return out;
  }
  std::vector<int32_t> random_ids(size_t count) {
    std::vector<int32_t> ids(count);
    for (int32_t& id : ids)
      id = static_cast<int32_t>(rng.integer(-1, toy.num_experts - 1));
    return ids;
  }

  ToyLayer toy{.num_experts = 5,
               .top_k = 3,
               .hidden_size = 70,
               .intermediate_size = 33,
               .shared_intermediate_size = 20,
               .dtype = DType::kBF16};
  MoeLayerWeights weights;
};

TEST_F(DeviceLayerTest, TakesNoToken) { EXPECT_TRUE(run(*make(), {}).empty()); }

TEST_F(DeviceLayerTest, ComputesGivenIdsAndWeightsInChunksOrAtOnce) {
  const std::vector<float> x = rng.normals(19 * 70);
  const std::vector<int32_t> ids = random_ids(19 * 3);
  const std::vector<float> w = rng.normals(19 * 3, 0.5F);
  const MoeInput input{.hidden_states = x, .topk_ids = ids, .topk_weights = w};
  const auto layer = make();
  const std::vector<double> exact = naive_forward(weights, x, ids, w, 3);
  const std::vector<float> expected(exact.begin(), exact.end());
  EXPECT_LE(relative_error(run(*layer, input), expected), 1e-2) << rng.seed();
  EXPECT_LE(relative_error(run(*layer, input, 4), expected), 1e-2) << rng.seed();
}

TEST_F(DeviceLayerTest, GivesOnlySharedExpertsToATokenWithoutExperts) {
  const std::vector<float> x = rng.normals(70);
  const std::vector<int32_t> none(3, -1);
  const std::vector<float> w(3, 1.0F);
  const std::vector<double> exact = naive_forward(weights, x, none, w, 3);
  const std::vector<float> found =
      run(*make(), {.hidden_states = x, .topk_ids = none, .topk_weights = w});
  EXPECT_LE(relative_error(found, {exact.begin(), exact.end()}), 1e-2);
}

TEST_F(DeviceLayerTest, PhysicalIdsOfAMapWithoutCopiesAreLogicalIds) {
  const std::vector<float> x = rng.normals(7 * 70);
  const std::vector<int32_t> ids = random_ids(7 * 3);
  const std::vector<float> w = rng.normals(7 * 3);
  const auto layer = make();
  const auto logical = run(*layer, {.hidden_states = x, .topk_ids = ids, .topk_weights = w});
  const auto physical =
      run(*layer, {.hidden_states = x, .topk_ids = ids, .topk_weights = w, .physical_ids = true});
  EXPECT_EQ(logical, physical);
}

TEST_F(DeviceLayerTest, GivesTheSameBitsEachTime) {
  const std::vector<float> x = rng.normals(40 * 70);
  const auto layer = make();
  EXPECT_EQ(run(*layer, {.hidden_states = x}), run(*layer, {.hidden_states = x}));
}

TEST_F(DeviceLayerTest, ARowsBitsDoNotDependOnItsBatchInBatchInvariantMode) {
  const std::vector<float> x = rng.normals(48 * 70);
  const auto layer = make(/*batch_invariant=*/true);
  const std::vector<float> all = run(*layer, {.hidden_states = x});
  for (const size_t t : {size_t{0}, size_t{17}, size_t{47}}) {
    const std::vector<float> alone =
        run(*layer, {.hidden_states = std::span(x).subspan(t * 70, 70)});
    EXPECT_EQ(alone, std::vector<float>(all.begin() + static_cast<ptrdiff_t>(t * 70),
                                        all.begin() + static_cast<ptrdiff_t>((t + 1) * 70)));
  }
}

TEST_F(DeviceLayerTest, CountsTokensOfEachExpert) {
  const std::vector<float> x = rng.normals(3 * 70);
  const std::vector<int32_t> ids = {0, 1, -1, 1, 1, 4, -1, -1, -1};
  const std::vector<float> w(9, 0.5F);
  const auto layer = make();
  DeviceWorkspace workspace = layer->make_workspace(8);
  std::vector<float> out(x.size());
  layer->forward_host({.hidden_states = x, .topk_ids = ids, .topk_weights = w}, workspace, out);
  EXPECT_EQ(layer->last_tokens_per_expert(workspace), (std::vector<int64_t>{1, 3, 0, 0, 1}));
}

TEST_F(DeviceLayerTest, ReplaysAsACapturedGraph) {
  const std::vector<float> x = rng.normals(6 * 70);
  const auto layer = make();
  const std::vector<float> expected = run(*layer, {.hidden_states = x}, 6);
  DeviceWorkspace workspace = layer->make_workspace(6);
  const DeviceArray<float> device_x(device, std::vector<float>(x.size(), 0.0F));
  const DeviceArray<float> out(device, x.size());
  const OwnedStream stream(device);
  const OwnedGraph graph(device, stream.handle(), [&] {
    layer->forward({.num_tokens = 6, .hidden_states = device_x.data()}, workspace, out.data(),
                   stream.handle());
  });
  device->copy_in(device_x.data(), x.data(), x.size() * sizeof(float), stream.handle());
  graph.launch(stream.handle());
  device->synchronize(stream.handle());
  EXPECT_EQ(out.read(), expected);
}

TEST_F(DeviceLayerTest, RefusesSizesThatDoNotFit) {
  const std::vector<float> x(71);
  expect_error([&] { (void)run(*make(), {.hidden_states = x}); }, ErrorCode::kInvalidArgument,
               {"hidden states", "71"});
  expect_error([&] { (void)make()->make_workspace(0); }, ErrorCode::kInvalidArgument,
               {"max_num_tokens"});
}

TEST_F(DeviceLayerTest, RefusesCustomRouting) {
  weights.spec.routing.method = RoutingMethod::kCustom;
  expect_error([&] { (void)make(); }, ErrorCode::kUnsupported, {"custom routing"});
}

TEST(OpenDeviceTest, RefusesNamesThatMeanNothing) {
  for (const char* name : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x"}) {
    expect_error([&] { (void)open_device(name); }, ErrorCode::kInvalidArgument, {"cuda:N"});
  }
}

}  // namespace
}  // namespace gantry::test
