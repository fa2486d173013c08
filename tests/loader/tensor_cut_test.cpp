// Cutting quantized tensors for tensor parallelism. The oracle is the loader: a rank's files, read
// as a checkpoint of narrower experts, must give the slots that the loader cuts out of the source.

#include "loader/tensor_cut.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "loader/reshard_plan.h"
#include "loader/weight_loader.h"
#include "tests/support/expect_error.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/memory_sink.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

/// A checkpoint with its config and map.
struct Opened {
  explicit Opened(const std::filesystem::path& directory, const MoeModelConfig* given = nullptr)
      : checkpoint(Checkpoint::open(directory)) {
    config = given != nullptr ? *given : read_moe_config(checkpoint.config_text(), "config.json");
    map = std::make_unique<TensorMap>(TensorMap::build(checkpoint, config, report));
  }

  MoeLayerWeights load(int layer, const ParallelConfig& parallel) {
    const int experts = config.find_layer(layer)->num_experts;
    LoadStats stats;
    return WeightLoader(checkpoint, config, *map)
        .load_layer(layer, parallel,
                    ExpertMap::create(experts, parallel.ep_size, Placement::kLinear), {}, report,
                    stats);
  }

  Checkpoint checkpoint;
  MoeModelConfig config;
  LoadReport report;
  std::unique_ptr<TensorMap> map;
};

/// The config of what one rank of TP holds: narrower experts.
MoeModelConfig narrowed(MoeModelConfig config, const ParallelConfig& parallel) {
  for (MoeLayerSpec& layer : config.layers) {
    const auto own = [&](int64_t size) {
      return static_cast<int64_t>(split_evenly(size, parallel.tp_size, parallel.tp_rank()).size());
    };
    layer.intermediate_size = own(layer.intermediate_size);
    if (layer.shared.intermediate_size > 0) {
      layer.shared.intermediate_size = own(layer.shared.intermediate_size);
    }
  }
  return config;
}

std::string refusal(Opened& source, const ParallelConfig& parallel) {
  try {
    (void)plan_rank(source.checkpoint, source.config, *source.map, parallel, Placement::kLinear);
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << error.what();
    return error.what();
  }
}

template <typename Memory>
bool same_bytes(const Memory& a, const Memory& b) {
  return std::equal(a.data(), a.data() + a.size(), b.data(), b.data() + b.size());
}

/// The same bytes; or, where a narrow matrix has one group left and its slots keep the scale of a
/// group as that of a row, the same weights and nothing else.
bool same_slots(const MoeLayerWeights& a, const MoeLayerWeights& b) {
  if (a.layout == b.layout) return same_bytes(a.slots, b.slots);
  if (a.num_slots != b.num_slots || a.layout.static_inputs || a.layout.bias) return false;
  for (int64_t slot = 0; slot < a.num_slots; ++slot) {
    const std::byte* own = a.slots.data() + slot * a.layout.stride_bytes;
    const std::byte* other = b.slots.data() + slot * b.layout.stride_bytes;
    if (read_w13(a.layout, own) != read_w13(b.layout, other)) return false;
    if (read_w2(a.layout, own) != read_w2(b.layout, other)) return false;
  }
  return true;
}

/// Compares the slots of the first and the last rank, in every layer.
void expect_equal_slots(Opened& source, const std::string& name, int tp) {
  for (const int rank : {0, tp - 1}) {
    const ParallelConfig parallel{.tp_size = tp, .ep_size = 1, .dp_size = 1, .rank = rank};
    const RelayoutPlan plan =
        plan_rank(source.checkpoint, source.config, *source.map, parallel, Placement::kLinear);
    MemorySink sink(plan);
    (void)run_relayout(
        source.checkpoint, plan, sink,
        {.threads = {.count = 2, .executor = {}}, .memory_bytes = 1 << 20, .progress = {}});
    ASSERT_EQ(sink.written_bytes, plan.total_bytes);
    TempDir dir;
    sink.checkpoint.config = source.checkpoint.config_text();
    sink.checkpoint.write(dir.path());
    const MoeModelConfig config = narrowed(source.config, parallel);
    Opened cut(dir.path(), &config);
    ASSERT_TRUE(cut.report.ok()) << name << ": " << summarize(cut.report, 5);
    for (const MoeLayerSpec& layer : source.config.layers) {
      const MoeLayerWeights expected = source.load(layer.layer, parallel);
      const MoeLayerWeights found = cut.load(layer.layer, {});
      ASSERT_TRUE(cut.report.ok()) << name << ": " << summarize(cut.report, 5);
      ASSERT_TRUE(same_slots(found, expected))
          << name << ", layer " << layer.layer << ", rank " << rank << " of " << tp;
      ASSERT_TRUE(same_bytes(found.shared, expected.shared))
          << name << ", layer " << layer.layer << ", shared experts, rank " << rank;
    }
  }
}

TEST(TensorCutTest, RanksFilesGiveTheSlotsThatTheLoaderCutsItself) {
  int equal = 0;
  for (const auto& [directory, name] : quant_goldens()) {
    Opened source(directory);
    if (!source.report.ok()) continue;
    for (const int tp : {2, 4}) {
      const std::string reason =
          refusal(source, {.tp_size = tp, .ep_size = 1, .dp_size = 1, .rank = 1});
      if (!reason.empty()) {
        std::printf("  tp %d, %s: %s\n", tp, name.c_str(), reason.c_str());
        continue;
      }
      expect_equal_slots(source, name, tp);
      if (HasFatalFailure()) return;
      ++equal;
    }
  }
  EXPECT_GT(equal, 20);
}

/// Rules on their own: a matrix of 4 outputs and 32 inputs, 4 bits, groups of 16.
class TensorCutRuleTest : public testing::Test {
 protected:
  EncodedCut cut(std::string_view suffix, DType dtype, std::vector<int64_t> dims, const Slice& in,
                 const std::vector<int32_t>& values = {}) const {
    EncodedPart part{.name = "w", .suffix = suffix, .dtype = dtype, .shape = {}};
    part.shape = {.dims = dims, .rows = dims[0], .cols = dims.size() > 1 ? dims[1] : 1};
    const auto bytes = std::as_bytes(std::span(values));
    return cut_encoded(part, {.size = {4, 32}, .out = {0, 4}, .in = in}, scheme,
                       [&] { return std::vector<std::byte>(bytes.begin(), bytes.end()); });
  }

  QuantScheme scheme{
      .method = "test", .bits = 4, .grid = ScaleGrid::kGroup, .group_size = 16, .activations = {}};
};

TEST_F(TensorCutRuleTest, WordsOfCodesStayWhole) {
  const EncodedCut kept = cut("weight_packed", DType::kI32, {4, 4}, {8, 24});
  EXPECT_EQ(kept.first_col, 1);
  EXPECT_EQ(kept.dims, (std::vector<int64_t>{4, 2}));
  expect_error(
      [&] {
        (void)cut("weight_packed", DType::kI32, {4, 4}, {4, 12});
      },
      ErrorCode::kUnsupported, {"w:", "4 bits", "[4, 12)"});
}

TEST_F(TensorCutRuleTest, WeightsKeepTheirGroups) {
  EXPECT_EQ(cut("weight_scale", DType::kBF16, {4, 2}, {16, 32}).first_col, 1);
  // Groups are counted from the rank's first input on, so one may end early but not begin late ...
  EXPECT_EQ(cut("weight_scale", DType::kBF16, {4, 2}, {0, 24}).dims[1], 2);
  expect_error(
      [&] {
        (void)cut("weight_scale", DType::kBF16, {4, 2}, {8, 24});
      },
      ErrorCode::kUnsupported, {"w:", "16 inputs", "[8, 24)"});
  // ... unless all of the rank's inputs are in one.
  const EncodedCut inside = cut("weight_scale", DType::kBF16, {4, 2}, {20, 28});
  EXPECT_EQ(inside.first_col, 1);
  EXPECT_EQ(inside.dims[1], 1);
}

TEST_F(TensorCutRuleTest, GroupIndicesAreCountedAnew) {
  std::vector<int32_t> groups(32, 0);
  std::fill(groups.begin() + 16, groups.end(), 1);
  const EncodedCut kept = cut("g_idx", DType::kI32, {32}, {16, 32}, groups);
  EXPECT_EQ(kept.dims, std::vector<int64_t>{16});
  EXPECT_EQ(kept.literal, std::vector<std::byte>(16 * sizeof(int32_t)));  // all of group 0
  std::swap(groups.front(), groups.back());
  expect_error(
      [&] {
        (void)cut("g_idx", DType::kI32, {32}, {16, 32}, groups);
      },
      ErrorCode::kUnsupported, {"w:", "activation order"});
}

TEST_F(TensorCutRuleTest, SizesAreThoseOfThePart) {
  const EncodedCut kept = cut("weight_shape", DType::kI32, {2}, {16, 32});
  const std::vector<int32_t> expected = {4, 16};
  const auto bytes = std::as_bytes(std::span(expected));
  EXPECT_EQ(kept.literal, std::vector<std::byte>(bytes.begin(), bytes.end()));
}

TEST_F(TensorCutRuleTest, TensorsOfUnknownAxesAreRefused) {
  expect_error(
      [&] {
        (void)cut("weight.absmax", DType::kF32, {8}, {16, 32});
      },
      ErrorCode::kUnsupported, {"w:", "weight.absmax", "not defined"});
}

}  // namespace
}  // namespace gantry::test
