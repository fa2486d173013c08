// What an engine that embeds a layer relies on: no allocation in forward, calls at once, weights
// that are replaced while calls run, ids that the engine has mapped itself, rows whose bits do not
// depend on their batch.

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <map>
#include <string>
#include <thread>

#include "runtime/fused_moe_layer.h"
#include "tests/support/allocation_count.h"
#include "tests/support/expect_error.h"
#include "tests/support/toy_layer.h"

namespace gantry::test {
namespace {

constexpr int64_t kMaxTokens = 64;

class ForwardContractTest : public testing::Test {
 protected:
  std::unique_ptr<FusedMoeLayer> make_layer(const FusedMoeOptions& options, int seed = 7) const {
    SeededRng rng(static_cast<uint64_t>(seed));
    return std::make_unique<FusedMoeLayer>(toy.weights(rng), toy.expert_map(), options, nullptr);
  }
  // One thread: the OpenMP runtime may allocate when it makes its threads.
  FusedMoeOptions options() const {
    FusedMoeOptions options;
    options.threads.count = 1;
    return options;
  }
  std::vector<float> tokens(int64_t count) {
    return rng_.normals(static_cast<size_t>(count * toy.hidden_size));
  }

  const ToyLayer toy{.num_experts = 8,
                     .top_k = 3,
                     .hidden_size = 72,
                     .intermediate_size = 40,
                     .shared_intermediate_size = 24,
                     .dtype = DType::kBF16};
  SeededRng rng_;
};

TEST_F(ForwardContractTest, AllocatesNothingWhateverTheBatch) {
  const auto layer = make_layer(options());
  Workspace workspace = layer->make_workspace(kMaxTokens);
  for (const int64_t count : {1, 64, 0, 7, 33, 200}) {
    const std::vector<float> x = tokens(count);
    std::vector<float> out(x.size());
    const AllocationCount counter;
    layer->forward({.hidden_states = x}, workspace, out);
    EXPECT_EQ(counter.allocations(), 0) << count << " tokens";
  }
}

TEST_F(ForwardContractTest, AllocatesNothingWithQuantizedActivations) {
  FusedMoeOptions quantized = options();
  quantized.activations = ActivationDType::kScheme;
  const auto run = [&](RowQuantization kind, int64_t group_size) {
    SeededRng rng(7);
    MoeLayerWeights weights = toy.weights(rng);
    weights.activations.format = {kind, group_size};
    const FusedMoeLayer layer(std::move(weights), toy.expert_map(), quantized, nullptr);
    Workspace workspace = layer.make_workspace(kMaxTokens);
    SeededRng inputs(11);
    const std::vector<float> x = inputs.normals(static_cast<size_t>(100 * toy.hidden_size));
    std::vector<float> out(x.size());
    const AllocationCount counter;
    layer.forward({.hidden_states = x}, workspace, out);
    EXPECT_EQ(counter.allocations(), 0) << to_string(kind);
    return out;
  };
  const std::vector<float> plain = run(RowQuantization::kNone, 0);
  EXPECT_NE(run(RowQuantization::kInt8Token, 0), plain);
  EXPECT_NE(run(RowQuantization::kFp8Group, 32), plain);
  EXPECT_NE(run(RowQuantization::kMxFp4, 32), plain);
}

TEST_F(ForwardContractTest, TwoThreadsGiveTheBitsOfOne) {
  const auto layer = make_layer(options());
  const std::vector<float> x = tokens(50);
  std::vector<float> expected(x.size());
  Workspace workspace = layer->make_workspace(kMaxTokens);
  layer->forward({.hidden_states = x}, workspace, expected);
  std::atomic<int> different = 0;
  const auto body = [&] {
    Workspace own = layer->make_workspace(kMaxTokens);
    std::vector<float> out(x.size());
    for (int i = 0; i < 50; ++i) {
      layer->forward({.hidden_states = x}, own, out);
      different += out != expected ? 1 : 0;
    }
  };
  std::thread first(body);
  std::thread second(body);
  first.join();
  second.join();
  EXPECT_EQ(different, 0);
}

TEST_F(ForwardContractTest, ReplacedWeightsAreThoseOfANewLayer) {
  const auto layer = make_layer(options(), 7);
  const auto other = make_layer(options(), 8);
  const std::vector<float> x = tokens(20);
  std::vector<float> out(x.size());
  std::vector<float> wanted(x.size());
  Workspace workspace = layer->make_workspace(kMaxTokens);
  const auto old_weights = layer->weights();
  SeededRng rng(8);
  layer->replace_weights(toy.weights(rng));
  layer->forward({.hidden_states = x}, workspace, out);
  other->forward({.hidden_states = x}, workspace, wanted);
  EXPECT_EQ(out, wanted);
  EXPECT_EQ(old_weights->num_slots, 8) << "held weights stay valid";
  EXPECT_NE(old_weights, layer->weights());
}

TEST_F(ForwardContractTest, ARunningCallSeesOldOrNewWeightsAndNothingBetween) {
  const auto layer = make_layer(options(), 7);
  const std::vector<float> x = tokens(40);
  std::vector<float> with_old(x.size());
  std::vector<float> with_new(x.size());
  Workspace workspace = layer->make_workspace(kMaxTokens);
  layer->forward({.hidden_states = x}, workspace, with_old);
  make_layer(options(), 8)->forward({.hidden_states = x}, workspace, with_new);
  std::atomic<bool> stop = false;
  std::atomic<int> mixed = 0;
  std::atomic<int> calls = 0;
  std::thread runner([&] {
    Workspace own = layer->make_workspace(kMaxTokens);
    std::vector<float> out(x.size());
    while (!stop) {
      layer->forward({.hidden_states = x}, own, out);
      mixed += out != with_old && out != with_new ? 1 : 0;
      ++calls;
    }
  });
  for (int i = 0; i < 20; ++i) {
    SeededRng rng(i % 2 == 0 ? 8 : 7);
    layer->replace_weights(toy.weights(rng));
  }
  while (calls == 0)
    std::this_thread::yield();
  stop = true;
  runner.join();
  EXPECT_EQ(mixed, 0);
}

TEST_F(ForwardContractTest, RefusesWeightsOfAnotherShapeAndKeepsTheOld) {
  const auto layer = make_layer(options());
  const auto before = layer->weights();
  ToyLayer larger = toy;
  larger.intermediate_size = 48;
  SeededRng rng(9);
  expect_error([&] { layer->replace_weights(larger.weights(rng)); }, ErrorCode::kInvalidArgument,
               {"another shape"});
  EXPECT_EQ(layer->weights(), before);
}

TEST_F(ForwardContractTest, PhysicalIdsNameCopiesOfThisRank) {
  // Experts 0..7 and copies of 5 and 2, all on one rank: physical 8 is expert 5, 9 is expert 2.
  SeededRng rng(7);
  MoeLayerWeights weights = toy.weights(rng);
  MoeLayerWeights wide = toy.weights(rng);
  const int64_t stride = weights.layout.stride_bytes;
  const std::vector<int32_t> map = {0, 1, 2, 3, 4, 5, 6, 7, 5, 2};
  wide.num_slots = 10;
  wide.slots = ByteBuffer(static_cast<size_t>(10 * stride));
  for (size_t slot = 0; slot < map.size(); ++slot) {
    std::memcpy(wide.slots.data() + static_cast<int64_t>(slot) * stride,
                weights.slots.data() + map[slot] * stride, static_cast<size_t>(stride));
  }
  std::memcpy(wide.shared.data(), weights.shared.data(), weights.shared.size());
  const FusedMoeLayer plain(std::move(weights), toy.expert_map(), options(), nullptr);
  const FusedMoeLayer copied(std::move(wide),
                             ExpertMap::with_redundancy(8, map, 1, Placement::kLinear), options(),
                             nullptr);
  const std::vector<float> x = tokens(3);
  const std::vector<int32_t> logical = {5, 2, 0, 2, -1, 5, 7, 6, 1};
  const std::vector<int32_t> physical = {8, 9, 0, 2, -1, 5, 7, 6, 1};
  const std::vector<float> factors(9, 0.5F);
  std::vector<float> wanted(x.size());
  std::vector<float> found(x.size());
  Workspace workspace = plain.make_workspace(4);
  Workspace other = copied.make_workspace(4);
  plain.forward({.hidden_states = x, .topk_ids = logical, .topk_weights = factors}, workspace,
                wanted);
  copied.forward(
      {.hidden_states = x, .topk_ids = physical, .topk_weights = factors, .physical_ids = true},
      other, found);
  EXPECT_EQ(found, wanted);
  EXPECT_EQ(other.tokens_per_expert()[5], 2);
  const std::vector<int32_t> outside = {10, -1, -1, -1, -1, -1, -1, -1, -1};
  expect_error(
      [&] {
        copied.forward({.hidden_states = x,
                        .topk_ids = outside,
                        .topk_weights = factors,
                        .physical_ids = true},
                       other, found);
      },
      ErrorCode::kInvalidArgument, {"found 10"});
}

// One hash a row, whatever its batch: 1,000 random batches of rows from a pool, in any order, with
// 1 to 5 threads, on every set of kernels that this machine has.
class BatchInvarianceTest : public ForwardContractTest, public testing::WithParamInterface<Isa> {};

TEST_P(BatchInvarianceTest, EveryRowHasOneHashOverManyBatches) {
  IsaSet isas = detected_isas().capped(GetParam());
  if (GetParam() == Isa::kAmxEmulated) isas.insert(Isa::kAmxEmulated);
  const int batches = GetParam() == Isa::kAmxEmulated || GetParam() == Isa::kScalar ? 50 : 1000;
  constexpr size_t kPool = 96;
  const auto h = static_cast<size_t>(toy.hidden_size);
  const std::vector<float> pool = tokens(kPool);
  std::vector<std::unique_ptr<FusedMoeLayer>> layers;
  for (const int threads : {1, 2, 5}) {
    FusedMoeOptions invariant = options();
    invariant.isas = isas;
    invariant.batch_invariant = true;
    // Work is cut for that many threads; tasks run last first.
    invariant.threads = {.count = threads, .executor = [](int64_t tasks, const auto& body) {
                           for (int64_t task = tasks - 1; task >= 0; --task)
                             body(task);
                         }};
    layers.push_back(make_layer(invariant));
  }
  Workspace workspace = layers[0]->make_workspace(kMaxTokens);
  std::map<size_t, std::string> seen;
  for (int batch = 0; batch < batches; ++batch) {
    const size_t count =
        static_cast<size_t>(rng_.integer(0, 150));  // chunks of the workspace's 64, too
    std::vector<size_t> rows(count);
    std::vector<float> x;
    for (size_t& row : rows) {
      row = static_cast<size_t>(rng_.integer(0, static_cast<int64_t>(kPool) - 1));
      x.insert(x.end(), pool.begin() + static_cast<ptrdiff_t>(row * h),
               pool.begin() + static_cast<ptrdiff_t>((row + 1) * h));
    }
    std::vector<float> out(x.size());
    layers[static_cast<size_t>(batch) % layers.size()]->forward({.hidden_states = x}, workspace,
                                                                out);
    for (size_t i = 0; i < count; ++i) {
      std::string bits(reinterpret_cast<const char*>(out.data() + i * h), h * sizeof(float));
      const auto [found, is_new] = seen.try_emplace(rows[i], bits);
      ASSERT_TRUE(is_new || found->second == bits)
          << "row " << rows[i] << " in batch " << batch << ", seed " << rng_.seed();
    }
  }
  EXPECT_EQ(seen.size(), kPool);
}

INSTANTIATE_TEST_SUITE_P(Isas, BatchInvarianceTest,
                         testing::Values(Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAmxBf16,
                                         Isa::kAmxEmulated),
                         [](const auto& isa) { return std::string(to_string(isa.param)); });

}  // namespace
}  // namespace gantry::test
