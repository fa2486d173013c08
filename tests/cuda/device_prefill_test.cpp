// Layers whose batches are large enough for the kernels of sm_90a, and shared experts on a stream
// of their own.

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "loader/weight_loader.h"
#include "runtime/device_moe_layer.h"
#include "runtime/moe_model.h"
#include "runtime/reference.h"
#include "runtime/verification.h"
#include "tests/support/device_array.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/toy_layer.h"

namespace gantry::test {
namespace {

class DevicePrefillTest : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    if (device->attributes().name.starts_with("emulated")) device = open_emulated_device(3, 90);
    if (device->attributes().compute_capability != 90) GTEST_SKIP() << "no GPU of sm_90a";
  }

  static std::vector<float> forward(const DeviceMoeLayer& layer, const MoeInput& input) {
    DeviceWorkspace workspace = layer.make_workspace(512);
    std::vector<float> out(input.hidden_states.size(), NAN);
    layer.forward_host(input, workspace, out);
    return out;
  }
  static DeviceMoeOptions one_thread() {
    DeviceMoeOptions options;
    options.threads.count = 1;
    return options;
  }
};

// 5 experts, top-3: 40 tokens are 24 rows an expert (mma.sync), 90 are 54 (tiles of 128), 230 are
// 138 (tiles of 256).
TEST_F(DevicePrefillTest, ManyTokensMatchLoopsInDouble) {
  const ToyLayer toy{.num_experts = 5,
                     .top_k = 3,
                     .hidden_size = 70,
                     .intermediate_size = 33,
                     .shared_intermediate_size = 20,
                     .dtype = DType::kBF16};
  const MoeLayerWeights weights = toy.weights(rng);
  DeviceMoeOptions options = one_thread();
  const DeviceMoeLayer layer(device, weights, toy.expert_map(), options);
  options.overlap_shared_experts = false;
  const DeviceMoeLayer one_stream(device, weights, toy.expert_map(), options);
  options.generic_kernels = true;
  const DeviceMoeLayer generic(device, weights, toy.expert_map(), options);
  EXPECT_NE(layer.kernel_text().find("wgmma"), std::string::npos);
  EXPECT_EQ(generic.kernel_text().find("wgmma, "), std::string::npos);
  for (const size_t tokens : {size_t{40}, size_t{90}, size_t{230}}) {
    const std::vector<float> x = rng.normals(tokens * 70);
    std::vector<int32_t> ids(tokens * 3);
    for (int32_t& id : ids)
      id = static_cast<int32_t>(rng.integer(-1, 4));
    const std::vector<float> w = rng.normals(tokens * 3, 0.5F);
    const MoeInput input{.hidden_states = x, .topk_ids = ids, .topk_weights = w};
    const std::vector<double> exact = naive_forward(weights, x, ids, w, 3);
    const std::vector<float> expected(exact.begin(), exact.end());
    const std::vector<float> found = forward(layer, input);
    EXPECT_LE(relative_error(found, expected), 1e-2) << tokens << " tokens, seed " << rng.seed();
    EXPECT_EQ(found, forward(one_stream, input)) << "streams change when, not what";
    EXPECT_LE(relative_error(forward(generic, input), expected), 1e-2);
  }
}

// Everything of a layer with shared experts, captured: two streams, launches that overlap.
TEST_F(DevicePrefillTest, AGraphHasBothStreams) {
  const ToyLayer toy{.num_experts = 4,
                     .top_k = 2,
                     .hidden_size = 64,
                     .intermediate_size = 48,
                     .shared_intermediate_size = 40,
                     .dtype = DType::kBF16};
  const MoeLayerWeights weights = toy.weights(rng);
  const DeviceMoeLayer layer(device, weights, toy.expert_map(), one_thread());
  const std::vector<float> x = rng.normals(9 * 64);
  const std::vector<float> expected = forward(layer, {.hidden_states = x});
  DeviceWorkspace workspace = layer.make_workspace(9);
  const DeviceArray<float> device_x(device, x);
  const DeviceArray<float> out(device, x.size());
  const OwnedStream stream(device);
  const OwnedGraph graph(device, stream.handle(), [&] {
    layer.forward({.num_tokens = 9, .hidden_states = device_x.data()}, workspace, out.data(),
                  stream.handle());
  });
  for (int i = 0; i < 3; ++i) {
    graph.launch(stream.handle());
    device->synchronize(stream.handle());
    EXPECT_EQ(out.read(), expected);
  }
}

struct SchemeCase {
  const char* name;
  const char* checkpoint;
  RowQuantization kind;
  int64_t tokens;
  bool hopper;
  const char* text;  ///< what the layer says of its kernels
};

class DeviceSchemeTest : public DevicePrefillTest,
                         public testing::WithParamInterface<SchemeCase> {};

// The checkpoint declares how activations are quantized: the host simulates that in f32, the device
// multiplies codes.
TEST_P(DeviceSchemeTest, MatchesTheHostsSimulation) {
  const bool emulated = device->attributes().name.starts_with("emulated");
  if (emulated) device = open_emulated_device(3, GetParam().hopper ? 90 : 86);
  MoeModel model(golden_root() / "quant" / GetParam().checkpoint, /*names_only=*/false);
  ASSERT_TRUE(model.report().ok());
  const MoeLayerSpec& spec = model.config().layers.at(0);
  const ExpertMap experts = ExpertMap::create(spec.num_experts, 1, Placement::kLinear);
  const WeightLoader loader(model.checkpoint(), model.config(), model.tensors());
  LoadOptions load;
  load.threads.count = 1;
  LoadStats stats;
  const auto weights = [&] {
    return loader.load_layer(spec.layer, {}, experts, load, model.report(), stats);
  };
  ASSERT_EQ(weights().activations.format.kind, GetParam().kind);
  const int64_t tokens = GetParam().tokens;
  const std::vector<float> x = rng.normals(static_cast<size_t>(tokens * spec.hidden_size));

  FusedMoeOptions host_options;
  host_options.activations = ActivationDType::kScheme;
  host_options.threads.count = 1;
  const FusedMoeLayer host(weights(), experts, host_options, nullptr);
  Workspace workspace = host.make_workspace(tokens);
  std::vector<float> expected(x.size());
  host.forward({.hidden_states = x}, workspace, expected);

  DeviceMoeOptions options = one_thread();
  options.quantize_rows = true;
  options.generic_kernels = !GetParam().hopper;
  const DeviceMoeLayer quantized(device, weights(), experts, options);
  if (emulated || !GetParam().hopper) {
    EXPECT_NE(quantized.kernel_text().find(GetParam().text), std::string::npos)
        << quantized.kernel_text();
  }
  const double error = relative_error(forward(quantized, {.hidden_states = x}), expected);
  // What is between the GEMMs is rounded to bf16 first: by d <= 2^-9 of a value. Codes of e4m3 are
  // steps of s = 2^-4 to 2^-3 of a value apart, so that a share of 2 d / s of them falls to the
  // other side, a step each: sqrt(2 d / s) * s of the norm, at most 2^-2 * 2^-3. Steps of int8 are
  // 1/127 of the row's largest value, less for all but the smallest ones.
  EXPECT_LE(error, 0x1p-5) << rng.seed();
  EXPECT_GT(error, 0.0);
  if (GetParam().kind == RowQuantization::kInt8Token) return;

  options.quantize_rows = false;
  const DeviceMoeLayer plain(device, weights(), experts, options);
  const double without = relative_error(forward(plain, {.hidden_states = x}), expected);
  EXPECT_GT(without, 1.5 * error) << "the noise of all codes is larger than that of a few";
}

INSTANTIATE_TEST_SUITE_P(
    Schemes, DeviceSchemeTest,
    testing::Values(SchemeCase{"GroupsOnWgmma", "hf_fp8-block-fused", RowQuantization::kFp8Group,
                               80, true, "e4m3 x e4m3 with wgmma"},
                    SchemeCase{"GroupsOfFewTokens", "hf_fp8-block-fused",
                               RowQuantization::kFp8Group, 5, true, "codes in bf16 below"},
                    SchemeCase{"GroupsEverywhere", "hf_fp8-block-fused", RowQuantization::kFp8Group,
                               150, false, "codes in bf16, mma.sync"},
                    SchemeCase{"StaticOnWgmma", "quark-fp8", RowQuantization::kFp8Static, 90, true,
                               "e4m3 x e4m3 with wgmma"},
                    SchemeCase{"StaticOfFewTokens", "quark-fp8", RowQuantization::kFp8Static, 6,
                               false, "rows fp8 static: codes in bf16"},
                    SchemeCase{"Int8OnWgmma", "llmcompressor-w8a8", RowQuantization::kInt8Token, 90,
                               true, "rows int8 per token: codes in bf16"},
                    SchemeCase{"Int8OfFewTokens", "llmcompressor-w8a8", RowQuantization::kInt8Token,
                               6, false, "rows int8 per token: codes in bf16"}),
    [](const auto& tested) { return std::string(tested.param.name); });

TEST_F(DevicePrefillTest, SaysWhyRowsAreNotQuantized) {
  MoeModel model(golden_root() / "quant" / "hf_fp8-block-fused", /*names_only=*/false);
  const MoeLayerSpec& spec = model.config().layers.at(0);
  const ExpertMap experts = ExpertMap::create(spec.num_experts, 1, Placement::kLinear);
  const WeightLoader loader(model.checkpoint(), model.config(), model.tensors());
  LoadOptions load;
  LoadStats stats;
  MoeLayerWeights weights = loader.load_layer(spec.layer, {}, experts, load, model.report(), stats);
  DeviceMoeOptions options = one_thread();
  options.quantize_rows = true;
  const auto text = [&](const std::shared_ptr<Device>& on) {
    return DeviceMoeLayer(on, weights, experts, options).kernel_text();
  };
  EXPECT_NE(text(open_emulated_device(1, 86)).find("wgmma needs sm_90a"), std::string::npos);
  EXPECT_NE(text(open_emulated_device(1, 86)).find("codes in bf16, mma.sync"), std::string::npos);
  weights.activations.format.kind = RowQuantization::kFp8Static;
  EXPECT_NE(text(device).find("no static input scales were loaded"), std::string::npos);
  weights.activations.format.kind = RowQuantization::kMxFp8;
  EXPECT_NE(text(device).find("the scheme is mxfp8"), std::string::npos);
}

}  // namespace
}  // namespace gantry::test
