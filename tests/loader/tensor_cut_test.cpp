// Cutting quantized tensors for tensor parallelism. The oracle is the loader: a rank's files, read
// as a checkpoint of narrower experts, must give the slots that the loader cuts out of the source.

#include "loader/tensor_cut.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
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

bool same_bytes(const ByteBuffer& a, const ByteBuffer& b) {
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

}  // namespace
}  // namespace gantry::test
