// Launch parameters against the limits of GPUs that are not here.

#include <gtest/gtest.h>

#include <array>
#include <string>

#include "kernels/cuda/device_ceilings.h"
#include "kernels/cuda/device_kernels.h"
#include "kernels/cuda/skinny_gemm.h"
#include "kernels/cuda/tiled_gemm.h"
#include "kernels/cuda/wgmma_gemm.h"

namespace gantry::test {
namespace {

/// @source CUDA C++ programming guide, technical specifications per compute capability
std::vector<DeviceAttributes> known_gpus() {
  const auto gpu = [](const char* name, int capability, int sms, int64_t shared_kb) {
    return DeviceAttributes{.name = name,
                            .compute_capability = capability,
                            .num_sms = sms,
                            .max_threads_per_block = 1024,
                            .shared_bytes_per_block = shared_kb << 10,
                            .memory_bytes = 0};
  };
  return {gpu("A100 (sm_80)", 80, 108, 163),   gpu("A10 (sm_86)", 86, 72, 99),
          gpu("L40S (sm_89)", 89, 142, 99),    gpu("H200 (sm_90)", 90, 132, 227),
          gpu("B200 (sm_100)", 100, 148, 227), gpu("RTX PRO 6000 (sm_120)", 120, 188, 99)};
}

template <DeviceElement kElement>
void expect_gemms_fit(const DeviceAttributes& gpu, const ExpertGemm& gemm) {
  const int64_t most = most_gemm_blocks(gpu);
  EXPECT_EQ(launch_problem(SkinnyGemm<kElement, 1>{gemm}.launch_shape(most), gpu), "");
  EXPECT_EQ(launch_problem(SkinnyGemm<kElement, 2>{gemm}.launch_shape(most), gpu), "");
  EXPECT_EQ(launch_problem(SkinnyGemm<kElement, 4>{gemm}.launch_shape(most), gpu), "");
  const int stages = TiledGemm<kElement>::stages_in(gpu.shared_bytes_per_block);
  EXPECT_GE(stages, 3) << gpu.name;
  EXPECT_EQ(launch_problem(TiledGemm<kElement>{gemm, stages}.launch_shape(most), gpu), "");
}

TEST(DeviceLaunchTest, EveryKernelOfLargeLayersFitsEveryGpu) {
  // DeepSeek-V3 (256 experts, 7168 x 2048, top-8) with a batch of 65536 tokens.
  constexpr int64_t kTokens = 65536;
  constexpr int64_t kChoices = kTokens * 8;
  ExpertGemm gemm;
  gemm.matrix = device_matrix({DType::kBF16, true, 2 * 2048, 7168, {}});
  gemm.max_tiles = RowPlan::max_tiles(kChoices, 256, 8);
  RouteTokens route{};
  route.spec.num_experts = 1024;
  route.spec.top_k = 32;
  route.spec.num_groups = 8;
  route.num_tokens = kTokens;
  RowPlan plan{};
  plan.num_choices = kChoices;
  plan.num_slots = 1024;
  GatherExpertRows gather{};
  gather.padded_k = 7168;
  gather.max_rows = RowPlan::max_rows(kChoices, 256);
  CombineRows combine{};
  combine.num_tokens = kTokens;
  combine.n = 7168;
  combine.top_k = 8;
  LinearRows linear{};
  linear.num_tokens = kTokens;
  linear.n = 1024;
  AddRows add{};  // of 8 ranks
  add.count = kTokens * 7168;
  add.rows = 8;
  RankLists lists;  // of 64 EP ranks in as many token groups
  lists.num_ranks = 64;
  lists.num_parts = 1;
  GatherTokens tokens;
  tokens.num_lists = 64;
  tokens.stride = kTokens;
  SumReturnedRows returned;
  returned.num_tokens = kTokens;
  returned.n = 7168;
  GatherChoiceRows choices;
  choices.num_rows = kChoices;
  choices.n = 7168;
  QuantizeExpertRows quantize{};
  quantize.padded_k = 7168;
  quantize.max_rows = gather.max_rows;
  quantize.kind = RowQuantization::kFp8Group;
  for (const DeviceAttributes& gpu : known_gpus()) {
    EXPECT_EQ(launch_problem(lists.launch_shape(), gpu), "");
    EXPECT_EQ(launch_problem(tokens.launch_shape(), gpu), "");
    EXPECT_EQ(launch_problem(returned.launch_shape(), gpu), "");
    EXPECT_EQ(launch_problem(choices.launch_shape(), gpu), "");
    expect_gemms_fit<DeviceElement::kBF16>(gpu, gemm);
    expect_gemms_fit<DeviceElement::kF16>(gpu, gemm);
    expect_gemms_fit<DeviceElement::kE4M3>(gpu, gemm);
    expect_gemms_fit<DeviceElement::kInt8>(gpu, gemm);
    expect_gemms_fit<DeviceElement::kInt4>(gpu, gemm);
    expect_gemms_fit<DeviceElement::kE2M1>(gpu, gemm);
    EXPECT_EQ(launch_problem(quantize.launch_shape(), gpu), "");
    EXPECT_EQ(launch_problem(route.launch_shape(), gpu), "");
    EXPECT_EQ(launch_problem(PlanBatch{plan}.launch_shape(), gpu), "");
    EXPECT_EQ(launch_problem(CountChoices{plan}.launch_shape(), gpu), "");
    EXPECT_EQ(launch_problem(ScanCounts{plan}.launch_shape(), gpu), "");
    EXPECT_EQ(launch_problem(PlaceChoices{plan}.launch_shape(), gpu), "");
    EXPECT_EQ(launch_problem(gather.launch_shape(), gpu), "");
    EXPECT_EQ(launch_problem(combine.launch_shape(), gpu), "");
    EXPECT_EQ(launch_problem(linear.launch_shape(), gpu), "");
    EXPECT_EQ(launch_problem(add.launch_shape(), gpu), "");
  }
}

/// Shared memory that a block has and dynamic shared memory does not: 1 KB of the system's.
constexpr int64_t kSharedWindow = 1024;

template <DeviceElement kElement, WgmmaMath kMath, int kColumns>
void expect_wgmma_fits(const ExpertGemm& gemm) {
  using Kernel = WgmmaGemm<kElement, kMath, kColumns>;
  const DeviceAttributes hopper = known_gpus()[3];
  const int stages = Kernel::stages_in(hopper.shared_bytes_per_block);
  EXPECT_GE(stages, 3) << "a stage is read, one has landed, one is on its way";
  EXPECT_LE(2 * stages * 8, Kernel::kBarrierBytes);
  const LaunchShape shape = Kernel{gemm, stages}.launch_shape(hopper.num_sms);
  EXPECT_EQ(launch_problem(shape, hopper), "");
  EXPECT_LE(shape.blocks, hopper.num_sms);
  // fewer_registers<40> of the producer, more_registers<232> of the others: what a block of
  // kThreads has at launch, 168 each, no more (the inc would wait for ever) and no less.
  EXPECT_EQ(128 * 40 + Kernel::kConsumerThreads * 232, Kernel::kThreads * 168);
  EXPECT_LE(Kernel::kThreads * 168, 65536);
  EXPECT_EQ(Kernel::kStageBytes % 128, 0);
  EXPECT_EQ(Kernel::kStagesAt % 128, 0);
  // What a barrier can expect, and what descriptors can name (PTX ISA: tx-count, 18-bit addresses).
  EXPECT_LT(Kernel::kStageBytes, 1 << 20);
  EXPECT_LT(kSharedWindow + shape.shared_bytes, 1 << 18);
  // Destinations and sizes of cp.async.bulk are multiples of 16, wherever a stage begins and
  // however little of k is left.
  for (const int64_t at : {int64_t{Kernel::kRowsAt}, int64_t{Kernel::kScalesAt},
                           int64_t{Kernel::kZerosAt}, int64_t{Kernel::kRowScalesAt},
                           int64_t{Kernel::kTileBytes}, int64_t{Kernel::kColumnBytes}}) {
    EXPECT_EQ(at % 16, 0);
  }
  EXPECT_EQ(Kernel::kTileBytes / Kernel::kDepth * kDeviceDepth % 16, 0);
  EXPECT_EQ(Kernel::kColumnBytes / Kernel::kDepth * kDeviceDepth % 16, 0);
  EXPECT_EQ(Kernel::kDepth % kDeviceDepth, 0);
}

TEST(DeviceLaunchTest, WgmmaKernelsFitHopper) {
  ExpertGemm gemm;
  gemm.matrix = device_matrix({DType::kBF16, true, 2 * 2048, 7168, {}});
  gemm.max_tiles = RowPlan::max_tiles(65536 * 8, 256, 128);
  using E = DeviceElement;
  using M = WgmmaMath;
  expect_wgmma_fits<E::kBF16, M::kPlain, 16>(gemm);
  expect_wgmma_fits<E::kBF16, M::kPlain, 32>(gemm);
  expect_wgmma_fits<E::kF16, M::kPlain, 16>(gemm);
  expect_wgmma_fits<E::kF16, M::kPlain, 32>(gemm);
  expect_wgmma_fits<E::kE2M1, M::kPromoted, 16>(gemm);
  expect_wgmma_fits<E::kE4M3, M::kPromoted, 16>(gemm);
  expect_wgmma_fits<E::kE4M3, M::kRows8, 16>(gemm);
  expect_wgmma_fits<E::kInt8, M::kPromoted, 16>(gemm);
  expect_wgmma_fits<E::kInt4, M::kPromoted, 16>(gemm);
  expect_wgmma_fits<E::kE2M1, M::kFolded, 16>(gemm);
  expect_wgmma_fits<E::kE2M1, M::kFolded, 32>(gemm);
}

TEST(DeviceLaunchTest, TakesWgmmaFromWhereItPays) {
  using P = PrefillKernels;
  EXPECT_EQ(choose_gemm(32 * 128, 128, P::kWideWgmma), 2);
  EXPECT_EQ(choose_gemm(33 * 128, 128, P::kWideWgmma), kWgmmaGemm);
  EXPECT_EQ(choose_gemm(128 * 128, 128, P::kWideWgmma), kWgmmaGemm);
  EXPECT_EQ(choose_gemm(129 * 128, 128, P::kWideWgmma), kWideWgmmaGemm);
  EXPECT_EQ(choose_gemm(129 * 128, 128, P::kWgmma), kWgmmaGemm);
  EXPECT_EQ(choose_gemm(64 * 128, 128, P::kMma), kTiledGemm);
}

// Emulated: that the kernels run and every figure is there, not how large it is.
TEST(DeviceCeilingsTest, MeasuresWhatTheDeviceHas) {
  const CeilingWork work{.read_bytes = 100000, .rounds = 2, .repeats = 1};
  const DeviceCeilings generic = measure_device_ceilings(open_emulated_device(), work);
  EXPECT_GT(generic.read_gb_s, 0.0);
  EXPECT_GT(generic.mma_bf16_tflops, 0.0);
  EXPECT_EQ(generic.wgmma_bf16_tflops, 0.0);
  const DeviceCeilings hopper = measure_device_ceilings(open_emulated_device(1, 90), work);
  EXPECT_GT(hopper.wgmma_bf16_tflops, 0.0);
  EXPECT_GT(hopper.wgmma_e4m3_tflops, 0.0);
}

TEST(DeviceLaunchTest, NamesTheLimitThatIsBroken) {
  const DeviceAttributes gpu = known_gpus()[1];
  EXPECT_NE(launch_problem({1, 128, 100 << 10}, gpu).find("shared memory"), std::string::npos);
  EXPECT_NE(launch_problem({1, 2048, 0}, gpu).find("threads"), std::string::npos);
  EXPECT_NE(launch_problem({int64_t{1} << 31, 128, 0}, gpu).find("blocks"), std::string::npos);
  EXPECT_EQ(launch_problem({0, 128, 0}, gpu), "");
}

TEST(DeviceLaunchTest, TakesTheTokenTileThatHoldsAnExpertsRows) {
  EXPECT_EQ(choose_gemm(8, 128), 0);       // 1 token, top-8
  EXPECT_EQ(choose_gemm(64 * 8, 128), 0);  // 4 rows an expert
  EXPECT_EQ(choose_gemm(16 * 128, 128), 1);
  EXPECT_EQ(choose_gemm(32 * 128, 128), 2);
  EXPECT_EQ(choose_gemm(4096 * 8, 128), 3);
  EXPECT_EQ(choose_gemm(0, 128), 0);
}

TEST(DeviceLaunchTest, RowsAndTilesNeverExceedTheirMemory) {
  EXPECT_EQ(RowPlan::max_rows(0, 8), 0);
  EXPECT_EQ(RowPlan::max_rows(1, 8), 8);
  EXPECT_EQ(RowPlan::max_rows(9, 1), 16);
  EXPECT_EQ(RowPlan::max_tiles(0, 8, 8), 0);
  EXPECT_EQ(RowPlan::max_tiles(9, 1, 8), 2);
  EXPECT_EQ(RowPlan::max_tiles(3, 8, 128), 3);
}

}  // namespace
}  // namespace gantry::test
