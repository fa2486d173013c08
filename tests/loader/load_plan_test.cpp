// Loads a layer in every spelling of the family table, split in every way, and compares each
// element of each slot with the value that belongs there.

#include "loader/load_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "loader/weight_loader.h"
#include "tests/support/synthetic_layer.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

struct Spelling {
  const char* name;
  const char* model_type;
  std::vector<std::string_view> patterns;
  Orientation orientation = Orientation::kOutIn;
  bool gated = true;
  bool bias = false;
  std::vector<std::string_view> shared = {};
};

const std::vector<Spelling>& spellings() {
  constexpr auto kInOut = Orientation::kInOut;
  constexpr auto kOutIn = Orientation::kOutIn;
  static const std::vector<Spelling> list = {
      {"PerExpert",
       "deepseek_v2",
       {"{b}.experts.{e}.gate_proj", "{b}.experts.{e}.up_proj", "{b}.experts.{e}.down_proj"},
       kOutIn,
       true,
       true,
       {"{b}.shared_experts.gate_proj", "{b}.shared_experts.up_proj",
        "{b}.shared_experts.down_proj"}},
      {"PerExpertW123",
       "mixtral",
       {"{b}.experts.{e}.w1", "{b}.experts.{e}.w3", "{b}.experts.{e}.w2"}},
      {"PerExpertFused",
       "qwen3_moe",
       {"{b}.experts.{e}.gate_up_proj", "{b}.experts.{e}.down_proj"},
       kOutIn,
       true,
       true},
      {"FusedOutIn",
       "qwen3_moe",
       {"{b}.experts.gate_up_proj", "{b}.experts.down_proj"},
       kOutIn,
       true,
       true},
      {"FusedInOut",
       "llama4_text",
       {"{b}.experts.gate_up_proj", "{b}.experts.down_proj"},
       kInOut,
       true,
       true},
      {"FusedInterleavedInOut",
       "gpt_oss",
       {"{b}.experts.gate_up_proj", "{b}.experts.down_proj"},
       kInOut,
       true,
       true},
      {"FusedModulesInOut", "aria_text", {"{b}.experts.fc1", "{b}.experts.fc2"}, kInOut},
      {"FusedSharedOutIn",
       "granitemoeshared",
       {"{b}.input_linear", "{b}.output_linear"},
       kOutIn,
       true,
       false,
       {"shared_mlp.input_linear", "shared_mlp.output_linear"}},
      {"Separate3d",
       "step3_text",
       {"{b}.gate_proj", "{b}.up_proj", "{b}.down_proj"},
       kOutIn,
       true,
       true,
       {"share_expert.gate_proj", "share_expert.up_proj", "share_expert.down_proj"}},
      {"Stacked2d", "dbrx", {"{b}.experts.mlp.w1", "{b}.experts.mlp.v1"}},
      {"NoGate",
       "nemotron_h",
       {"{b}.experts.{e}.up_proj", "{b}.experts.{e}.down_proj"},
       kOutIn,
       false,
       false,
       {"{b}.shared_experts.up_proj", "{b}.shared_experts.down_proj"}},
      {"NoGate3d", "nemotron_h", {"{b}.experts.up_proj", "{b}.experts.down_proj"}, kOutIn, false}};
  return list;
}

SyntheticLayer make_layer(const Spelling& spelling, DType dtype) {
  SyntheticLayer layer = SyntheticLayer::create(spelling.model_type, dtype);
  MoeLayerSpec& spec = layer.spec();
  spec.activation.kind = spelling.gated ? Activation::kSilu : Activation::kRelu2NoMul;
  spec.shared.activation = spec.activation;
  spec.expert_bias = spelling.bias;
  if (!spelling.shared.empty()) spec.shared.intermediate_size = 9;
  layer.add_single(Part::kRouter);
  std::vector<int> patterns;
  for (const auto name : spelling.patterns) {
    patterns.push_back(layer.find_pattern(name, spelling.orientation));
  }
  if (spelling.model_type == std::string("dbrx")) {
    patterns.push_back(layer.find_pattern("{b}.experts.mlp.w2", Orientation::kInOut));
  }
  for (const int pattern : patterns) {
    layer.add(pattern, TensorKind::kWeight);
    if (spelling.bias) layer.add(pattern, TensorKind::kBias);
  }
  for (const auto name : spelling.shared) {
    layer.add(layer.find_pattern(name, Orientation::kOutIn), TensorKind::kWeight);
  }
  return layer;
}

/// A rank's part of an axis: sizes differ by at most one, larger ones first.
std::pair<int64_t, int64_t> part_of(int64_t total, int64_t parts, int64_t index) {
  int64_t begin = 0;
  for (int64_t i = 0; i < index; ++i)
    begin += total / parts + (i < total % parts ? 1 : 0);
  return {begin, begin + total / parts + (index < total % parts ? 1 : 0)};
}

/// What a slot of `expert` must hold: w13 rows, then w2, then b13, then b2.
std::vector<float> wanted_slot(const SyntheticLayer& layer, int64_t expert, int64_t intermediate,
                               bool bias, int64_t tp_size, int64_t tp_rank) {
  const MoeLayerSpec& spec = layer.spec();
  const auto [begin, end] = part_of(intermediate, tp_size, tp_rank);
  const std::vector<Part> halves =
      spec.gated() ? std::vector{Part::kW1, Part::kW3} : std::vector{Part::kW1};
  std::vector<float> values;
  const auto add = [&](Part part, TensorKind kind, int64_t out, int64_t in) {
    const Element element{.expert = expert, .part = part, .kind = kind, .out = out, .in = in};
    values.push_back(element_value(element, layer.dtype));
  };
  for (const Part half : halves) {
    for (int64_t o = begin; o < end; ++o) {
      for (int64_t i = 0; i < spec.hidden_size; ++i)
        add(half, TensorKind::kWeight, o, i);
    }
  }
  for (int64_t o = 0; o < spec.hidden_size; ++o) {
    for (int64_t i = begin; i < end; ++i)
      add(Part::kW2, TensorKind::kWeight, o, i);
  }
  if (!bias) return values;
  for (const Part half : halves) {
    for (int64_t o = begin; o < end; ++o)
      add(half, TensorKind::kBias, o, 0);
  }
  for (int64_t o = 0; o < spec.hidden_size; ++o)
    add(Part::kW2, TensorKind::kBias, o, 0);
  return values;
}

std::vector<float> read_slot(const SlotLayout& layout, const std::byte* slot) {
  std::vector<float> values = read_w13(layout, slot);
  const std::vector<float> w2 = read_w2(layout, slot);
  values.insert(values.end(), w2.begin(), w2.end());
  for (const SlotSection& section : {layout.b13, layout.b2}) {
    const auto* bias = reinterpret_cast<const float*>(slot + section.offset);
    values.insert(values.end(), bias, bias + section.bytes / 4);
  }
  return values;
}

class LoadTest : public testing::TestWithParam<std::tuple<size_t, DType>> {
 protected:
  LoadTest()
      : spelling(spellings()[std::get<0>(GetParam())]),
        layer(make_layer(spelling, std::get<1>(GetParam()))) {
    layer.write(dir.path());
    checkpoint = std::make_unique<Checkpoint>(Checkpoint::open(dir.path()));
    map = std::make_unique<TensorMap>(TensorMap::build(*checkpoint, layer.config, report));
    EXPECT_TRUE(report.ok()) << summarize(report, 5);
    loader = std::make_unique<WeightLoader>(*checkpoint, layer.config, *map);
  }

  /// Loads every rank of a world and checks every element of every slot.
  void check_world(int tp_size, int ep_size, const ExpertMap& experts, const LoadOptions& options) {
    for (int rank = 0; rank < tp_size * ep_size; ++rank) {
      SCOPED_TRACE("tp " + std::to_string(tp_size) + ", ep " + std::to_string(ep_size) + ", rank " +
                   std::to_string(rank));
      check_rank({.tp_size = tp_size, .ep_size = ep_size, .dp_size = 1, .rank = rank}, experts,
                 options);
    }
  }

  void check_rank(const ParallelConfig& parallel, const ExpertMap& experts,
                  const LoadOptions& options) {
    LoadStats stats;
    const MoeLayerWeights weights =
        loader->load_layer(0, parallel, experts, options, report, stats);
    ASSERT_TRUE(report.ok()) << summarize(report, 5);
    const auto slots = experts.slot_to_logical(parallel.ep_rank());
    ASSERT_EQ(weights.num_slots, static_cast<int64_t>(slots.size()));
    for (size_t s = 0; s < slots.size(); ++s) {
      const auto* slot =
          weights.slots.data() + static_cast<int64_t>(s) * weights.layout.stride_bytes;
      ASSERT_EQ(read_slot(weights.layout, slot),
                wanted_slot(layer, slots[s], layer.spec().intermediate_size, spelling.bias,
                            parallel.tp_size, parallel.tp_rank()))
          << "expert " << slots[s];
    }
    const bool shared = !spelling.shared.empty() && parallel.ep_rank() == 0;
    ASSERT_EQ(weights.shared.size() > 0, shared);
    if (shared) {
      ASSERT_EQ(read_slot(weights.shared_layout, weights.shared.data()),
                wanted_slot(layer, layer.spec().num_experts, 9, false, parallel.tp_size,
                            parallel.tp_rank()));
    }
    const int64_t owned = weights.num_slots * weights.layout.owned_bytes() +
                          (shared ? weights.shared_layout.owned_bytes() : 0);
    const LoadPlan plan = loader->plan(0, parallel, experts);
    EXPECT_EQ(plan.bytes_owned, owned);
    EXPECT_EQ(plan.bytes_read + router_bytes(), stats.bytes_read);
    EXPECT_EQ(owned + 4 * 5 * 6, stats.bytes_owned);  // the router is widened to f32
  }

  [[nodiscard]] int64_t router_bytes() const { return 5 * 6 * size_of(layer.dtype); }

  const Spelling& spelling;
  SyntheticLayer layer;
  TempDir dir;
  LoadReport report;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<TensorMap> map;
  std::unique_ptr<WeightLoader> loader;
};

TEST_P(LoadTest, FillsEverySlotOfEveryWorld) {
  LoadOptions options;
  options.threads.count = 2;
  for (const int tp : {1, 2, 3, 5, 7}) {
    for (const int ep : {1, 2, 3}) {
      for (const Placement placement : {Placement::kLinear, Placement::kRoundRobin}) {
        check_world(tp, ep, ExpertMap::create(5, ep, placement), options);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(LoadTest, FillsEveryCopyOfAnExpert) {
  for (const Placement placement : {Placement::kLinear, Placement::kRoundRobin}) {
    // Experts 0 and 3 have copies, two of them on one rank.
    const std::vector<int32_t> physical = {0, 1, 2, 3, 4, 0, 3, 0};
    for (const int ep : {1, 2, 3}) {
      check_world(2, ep, ExpertMap::with_redundancy(5, physical, ep, placement), {});
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(LoadTest, DoesNotDependOnTheSizeOfTheStagingMemory) {
  const ExpertMap experts = ExpertMap::create(5, 2, Placement::kLinear);
  for (const int64_t staging : {int64_t{1}, int64_t{64}, int64_t{1} << 20}) {
    LoadOptions options;
    options.threads.count = 2;
    options.staging_bytes = staging;
    check_world(3, 2, experts, options);
    if (HasFatalFailure()) return;
  }
}

TEST_P(LoadTest, ReadsEachWeightOnceOverAllTpAndEpRanksWhereRowsAreOwned) {
  int64_t read = 0;
  const ExpertMap experts = ExpertMap::create(5, 5, Placement::kLinear);
  for (int rank = 0; rank < 5; ++rank) {
    read += loader->plan(0, {.tp_size = 1, .ep_size = 5, .dp_size = 1, .rank = rank}, experts)
                .bytes_read;
  }
  EXPECT_EQ(read, checkpoint->total_bytes() - router_bytes());
}

TEST_P(LoadTest, PlansReadsInFileOrder) {
  const LoadPlan plan = loader->plan(0, {}, ExpertMap::create(5, 1, Placement::kLinear));
  const auto position = [](const ReadJob& job) {
    return std::pair(job.source->tensor->info.begin, job.slab_offset);
  };
  EXPECT_TRUE(std::is_sorted(plan.jobs.begin(), plan.jobs.end(), [&](const auto& a, const auto& b) {
    return position(a) < position(b);
  }));
  EXPECT_FALSE(plan.jobs.empty());
}

INSTANTIATE_TEST_SUITE_P(Spellings, LoadTest,
                         testing::Combine(testing::Range(size_t{0}, spellings().size()),
                                          testing::Values(DType::kBF16, DType::kF16, DType::kF32)),
                         [](const auto& test) {
                           return std::string(spellings()[std::get<0>(test.param)].name) + "_" +
                                  std::string(to_string(std::get<1>(test.param)));
                         });

/// Rows [begin, end) of a job's ranges.
std::vector<std::pair<int64_t, int64_t>> ranges_of(const ReadJob& job) {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (const RowRange& range : rows_to_read(job))
    ranges.emplace_back(range.begin, range.end);
  return ranges;
}

PlannedCopy rows(int64_t begin, int64_t step, int64_t count) {
  PlannedCopy copy;
  copy.outer_begin = begin;
  copy.outer_step = step;
  copy.outer_count = count;
  return copy;
}

using Ranges = std::vector<std::pair<int64_t, int64_t>>;

TEST(RowsToReadTest, KeepsTheTwoHalvesOfAFusedSliceApart) {
  ReadJob job;
  job.copies = {rows(2, 1, 2), rows(9, 1, 2)};  // gate and up rows of TP rank 1: I = 7, J = 2
  EXPECT_EQ(ranges_of(job), (Ranges{{2, 4}, {9, 11}}));
}

TEST(RowsToReadTest, MergesHalvesThatTouch) {
  ReadJob job;
  job.copies = {rows(7, 1, 7), rows(0, 1, 7)};
  EXPECT_EQ(ranges_of(job), (Ranges{{0, 14}}));
}

TEST(RowsToReadTest, MergesInterleavedRows) {
  ReadJob job;
  job.copies = {rows(4, 2, 3), rows(5, 2, 3)};
  EXPECT_EQ(ranges_of(job), (Ranges{{4, 10}}));
}

TEST(RowsToReadTest, ReadsOnceWhatSeveralSlotsTake) {
  ReadJob job;
  job.copies = {rows(3, 1, 2), rows(3, 1, 2), rows(3, 1, 2)};
  EXPECT_EQ(ranges_of(job), (Ranges{{3, 5}}));
}

TEST(RowsToReadTest, TakesARangeInsideAnother) {
  ReadJob job;
  job.copies = {rows(0, 1, 9), rows(2, 1, 2), rows(8, 1, 4)};
  EXPECT_EQ(ranges_of(job), (Ranges{{0, 12}}));
}

}  // namespace
}  // namespace gantry::test
