// The layer on several ranks' devices: goldens in every layout of ranks over both transports (NCCL
// is its double), the orders of sums, the contract of DeviceMoeLayer with ranks.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string_view>

#include "loader/weight_loader.h"
#include "parallel/communicator_nccl.h"
#include "runtime/verification.h"
#include "tests/support/device_array.h"
#include "tests/support/expect_error.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/nccl_double_control.h"
#include "tests/support/same_bits.h"

namespace gantry::test {
namespace {

using WorldMaker = std::function<std::shared_ptr<DeviceCommunicator>(Communicator& world)>;

WorldMaker nccl_double(const std::shared_ptr<Device>& device) {
  return [=](Communicator& world) -> std::shared_ptr<DeviceCommunicator> {
    return make_nccl_communicator(
        device, bootstrap_over(world),
        {.waits = {.timeout = std::chrono::seconds(60)}, .library = nccl_double_path()});
  };
}

struct Layout {
  const char* name;
  ParallelConfig config;
  Placement placement = Placement::kLinear;
  bool over_nccl = false;  // as well as over the host: emulation is slow
  ExchangeOptions exchange{};
};

const Layout kLayouts[] = {
    {"ep 2", {.ep_size = 2}, Placement::kLinear, true},
    {"tp 2", {.tp_size = 2}},
    {"dp 2 ep 2", {.ep_size = 2, .dp_size = 2}},
    {"ep 3 round_robin", {.ep_size = 3}, Placement::kRoundRobin},
    {"tp 2 ep 2 dp 2", {.tp_size = 2, .ep_size = 2, .dp_size = 2}, Placement::kLinear, true},
    {"ep 4 dp 2", {.ep_size = 4, .dp_size = 2}},
    {"tp 2 ep 2 dp 2 all_to_all",
     {.tp_size = 2, .ep_size = 2, .dp_size = 2},
     Placement::kLinear,
     false,
     {.kind = ExchangeKind::kAllToAll}},
    {"ep 3 all_to_all ordered",
     {.ep_size = 3},
     Placement::kRoundRobin,
     false,
     {.kind = ExchangeKind::kAllToAll, .combine = CombineOrder::kOrdered}},
};

// Emulated kernels are slow: one checkpoint of each thing that ranks treat in their own way, unless
// GANTRY_ALL_GOLDENS asks for all.
std::vector<Golden> chosen_goldens() {
  std::vector<Golden> all = all_goldens();
  if (std::getenv("GANTRY_ALL_GOLDENS") != nullptr) return all;
  // Shared experts with a gate, biases, latent projections, identity experts, norms before the
  // router, weights on the input, hash routing, codes with scales.
  constexpr std::array<std::string_view, 9> kNames = {
      "qwen3_next", "gpt_oss",     "nemotron_h-latent",      "longcat_flash",       "gemma4_text",
      "llama4",     "deepseek_v4", "modelopt-nvfp4-mixtral", "gptqmodel-awq-w4-g32"};
  std::erase_if(all, [&](const Golden& golden) {
    const std::string name = golden.directory.filename();
    return std::find(kNames.begin(), kNames.end(), name) == kNames.end();
  });
  return all;
}

class DeviceRanksTest : public testing::TestWithParam<Golden> {
 protected:
  void SetUp() override {
    device = test_device();
    if (device == nullptr) GTEST_SKIP() << no_device_reason();
    if (device->attributes().memory_bytes != 0) GTEST_SKIP() << "the double moves host memory";
    model.emplace(GetParam().directory, /*names_only=*/false);
    reference = read_reference(GetParam().directory / "moe_io.safetensors", model->config());
    settings.activations = ActivationDType::kBF16;
    settings.load.threads.count = 1;
    settings.ranks.device = device;
  }

  std::string reason_against(const ParallelConfig& config) {
    for (const MoeLayerSpec& layer : model->config().layers) {
      std::string reason = infeasible_reason(layer, config.tp_size, config.ep_size);
      if (!reason.empty()) return reason;
    }
    return {};
  }

  std::vector<float> run(const Layout& layout, SumOrder order, const WorldMaker& make_world) {
    settings.parallel = layout.config;
    settings.placement = layout.placement;
    settings.exchange = layout.exchange;
    settings.ranks.device_options.reduce = order;
    settings.ranks.make_device_world = make_world;
    const VerifyResult result = verify_model(*model, &reference, settings, {});
    EXPECT_TRUE(model->report().ok()) << summarize(model->report(), 5);
    EXPECT_EQ(result.blocks.size(), reference.blocks.size());
    std::vector<float> out;
    for (const BlockResult& block : result.blocks)
      out.insert(out.end(), block.out.begin(), block.out.end());
    return out;
  }

  std::shared_ptr<Device> device;
  std::optional<MoeModel> model;
  Reference reference;
  VerifySettings settings;
};

TEST_P(DeviceRanksTest, MatchesTheReferenceInEveryLayoutOverEveryTransport) {
  int layouts = 0;
  for (const Layout& layout : kLayouts) {
    SCOPED_TRACE(layout.name);
    if (!reason_against(layout.config).empty()) continue;
    const std::vector<float> staged = run(layout, SumOrder::kRank, {});
    if (!layout.over_nccl && std::getenv("GANTRY_ALL_GOLDENS") == nullptr) continue;
    // Sums in rank order have the same bits, whatever carries them.
    EXPECT_TRUE(same_bits(staged, run(layout, SumOrder::kRank, nccl_double(device))));
    if (layouts++ > 0) continue;
    const NcclDoubleCounts before = nccl_double_counts();
    run(layout, SumOrder::kNative, nccl_double(device));
    EXPECT_GT(nccl_double_counts().native_sums, before.native_sums);
  }
  EXPECT_GT(layouts, 0);
}

INSTANTIATE_TEST_SUITE_P(Goldens, DeviceRanksTest, testing::ValuesIn(chosen_goldens()),
                         [](const auto& golden) { return golden.param.name; });

// What no layout of ranks on GPUs does is an error that says so.
TEST(DeviceRanksRefusalTest, SaysWhyACombinationIsNotThere) {
  if (test_device() == nullptr) GTEST_SKIP() << no_device_reason();
  MoeModel model(golden_root() / "families/mixtral", /*names_only=*/false);
  const Reference reference =
      read_reference(golden_root() / "families/mixtral/moe_io.safetensors", model.config());
  struct Refusal {
    std::function<void(VerifySettings&)> ask;
    std::string_view why;
  };
  const std::vector<Refusal> refusals = {
      {[](VerifySettings& s) { s.exchange.slots = 4; }, "slots"},
      {[](VerifySettings& s) { s.no_reduce = true; }, "no-reduce"},
      {[](VerifySettings& s) { s.parallel.sequence_parallel = true; }, "sequence parallel"},
      {[](VerifySettings& s) { s.activations = ActivationDType::kF32; }, "bf16 activations"},
  };
  for (const Refusal& refusal : refusals) {
    VerifySettings settings;
    settings.activations = ActivationDType::kBF16;
    settings.parallel.ep_size = 2;
    settings.ranks.device = test_device();
    refusal.ask(settings);
    expect_error([&] { verify_model(model, &reference, settings, {}); }, ErrorCode::kUnsupported,
                 {refusal.why});
  }
}

}  // namespace
}  // namespace gantry::test
