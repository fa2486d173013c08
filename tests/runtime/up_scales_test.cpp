// Layers whose experts get, or lose, static input scales of up that differ from those of gate:
// weights that are replaced, experts that move. activation_golden_test.cpp has their numbers.

#include <gtest/gtest.h>

#include "kernels/base/float_convert.h"
#include "tests/runtime/rebalance_case.h"
#include "tests/support/expect_error.h"
#include "tests/support/mutable_checkpoint.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

class UpScalesTest : public testing::Test {
 protected:
  // quark-fp8 and a copy in which up of expert 3 has another scale.
  UpScalesTest() {
    MutableCheckpoint checkpoint = MutableCheckpoint::read(golden_root() / "quant" / "quark-fp8");
    checkpoint.write(temp_ / "equal");
    MutableCheckpoint::Tensor& scale =
        checkpoint.tensors.at("model.layers.0.mlp.experts.3.up_proj.input_scale");
    const float other = 1.75F * load_as_f32(scale.bytes.data(), scale.dtype, 0);
    scale.dtype = DType::kF32;
    scale.bytes.resize(sizeof(other));
    std::memcpy(scale.bytes.data(), &other, sizeof(other));
    checkpoint.write(temp_ / "differ");
    equal_ = std::make_unique<RebalanceCase>(temp_ / "equal");
    differ_ = std::make_unique<RebalanceCase>(temp_ / "differ");
    x_ = rng_.normals(static_cast<size_t>(kTokens * equal_->spec().hidden_size));
  }

  static std::unique_ptr<FusedMoeLayer> make_layer(RebalanceCase& from, ParallelConfig parallel,
                                                   const ExpertMap& map, Communicator* world) {
    FusedMoeOptions options;
    options.activations = ActivationDType::kScheme;
    options.batch_invariant = true;
    options.threads.count = 1;
    return std::make_unique<FusedMoeLayer>(from.load(parallel, map), map, options, world);
  }
  std::vector<float> forward(const FusedMoeLayer& layer, Workspace& workspace) const {
    std::vector<float> out(x_.size());
    layer.forward({.hidden_states = x_}, workspace, out);
    return out;
  }
  std::vector<float> forward(const FusedMoeLayer& layer) const {
    Workspace workspace = layer.make_workspace(kTokens);
    return forward(layer, workspace);
  }

  static constexpr int64_t kTokens = 16;
  const ExpertMap all_ = ExpertMap::create(4, 1, Placement::kLinear);
  TempDir temp_;
  SeededRng rng_;
  std::unique_ptr<RebalanceCase> equal_;
  std::unique_ptr<RebalanceCase> differ_;
  std::vector<float> x_;
};

TEST_F(UpScalesTest, ThatWorkspacesInUseHaveNoRoomForAreNotTakenInto) {
  const auto layer = make_layer(*equal_, {}, all_, nullptr);
  Workspace workspace = layer->make_workspace(kTokens);
  const std::vector<float> before = forward(*layer, workspace);
  expect_error([&] { layer->replace_weights(differ_->load({}, all_)); },
               ErrorCode::kInvalidArgument, {"layer 0", "no room"});
  EXPECT_EQ(forward(*layer, workspace), before);
}

TEST_F(UpScalesTest, MayBecomeEqual) {
  const auto layer = make_layer(*differ_, {}, all_, nullptr);
  Workspace workspace = layer->make_workspace(kTokens);
  const std::vector<float> differing = forward(*layer, workspace);
  layer->replace_weights(equal_->load({}, all_));
  const std::vector<float> after = forward(*layer, workspace);
  EXPECT_NE(after, differing);
  EXPECT_EQ(after, forward(*make_layer(*equal_, {}, all_, nullptr)));
  layer->replace_weights(equal_->load({}, all_));  // and stay so
  EXPECT_EQ(forward(*layer, workspace), after);
}

// Only where they differ costs workspace; with expert parallelism such an expert may come.
TEST_F(UpScalesTest, TakeRoomOnlyWhereTheyDifferOrMayCome) {
  const auto bytes = [&](RebalanceCase& from) {
    return make_layer(from, {}, all_, nullptr)->make_workspace(kTokens).bytes();
  };
  EXPECT_LT(bytes(*equal_), bytes(*differ_));
}

// Expert 3 moves to the rank whose workspace was made before.
TEST_F(UpScalesTest, MoveWithTheirExpert) {
  const std::vector<float> expected = forward(*make_layer(*differ_, {}, all_, nullptr));
  const ExpertMap linear = ExpertMap::create(4, 2, Placement::kLinear);
  const ExpertMap swapped = ExpertMap::from_slots(4, {{3, 2}, {1, 0}});
  run_local_ranks(2, [&](Communicator& world) {
    RebalanceCase own(temp_ / "differ");
    const ParallelConfig parallel = of_rank({.ep_size = 2}, world);
    const auto layer = make_layer(own, parallel, linear, &world);
    Workspace workspace = layer->make_workspace(kTokens);
    // Two partial sums of a token instead of one: f32 sums of top-2.
    EXPECT_LE(relative_difference(forward(*layer, workspace), expected), 1e-6);
    rebalance(*layer, swapped, world);
    EXPECT_LE(relative_difference(forward(*layer, workspace), expected), 1e-6);
  });
}

}  // namespace
}  // namespace gantry::test
