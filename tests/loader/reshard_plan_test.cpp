#include "loader/reshard_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>

#include "tests/support/expect_error.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/memory_sink.h"

namespace gantry::test {
namespace {

using Tensor = MutableCheckpoint::Tensor;

class ReshardTest : public testing::Test {
 protected:
  void open(const std::string& folder, const std::string& name) {
    const auto directory = golden_root() / folder / name;
    source = MutableCheckpoint::read(directory);
    checkpoint = std::make_unique<Checkpoint>(Checkpoint::open(directory));
    config = read_moe_config(checkpoint->config_text(), "config.json");
    map = std::make_unique<TensorMap>(TensorMap::build(*checkpoint, config, report));
    ASSERT_TRUE(report.ok());
  }

  std::map<std::string, Tensor> run(const RelayoutPlan& plan) const {
    MemorySink sink(plan);
    (void)run_relayout(
        *checkpoint, plan, sink,
        {.threads = {.count = 2, .executor = {}}, .memory_bytes = 1 << 20, .progress = {}});
    EXPECT_EQ(sink.written_bytes, plan.total_bytes);
    return sink.checkpoint.tensors;
  }

  std::map<std::string, Tensor> rank(int tp, int ep, int index,
                                     Placement placement = Placement::kLinear) const {
    const ParallelConfig parallel{.tp_size = tp, .ep_size = ep, .dp_size = 1, .rank = index};
    return run(plan_rank(*checkpoint, config, *map, parallel, placement));
  }

  /// Element (row, col) of the last two axes of expert `e`, as 16 bits.
  static uint16_t at(const Tensor& tensor, int64_t e, int64_t row, int64_t col) {
    const size_t rank = tensor.shape.size();
    const int64_t rows = tensor.shape[rank - 2];
    const int64_t cols = tensor.shape[rank - 1];
    uint16_t value = 0;
    std::memcpy(&value, tensor.bytes.data() + ((e * rows + row) * cols + col) * 2, 2);
    return value;
  }

  MutableCheckpoint source;
  std::unique_ptr<Checkpoint> checkpoint;
  MoeModelConfig config;
  LoadReport report;
  std::unique_ptr<TensorMap> map;
};

constexpr const char* kExperts = "model.layers.0.mlp.experts";

TEST_F(ReshardTest, ACopyHasEveryByte) {
  open("quant", "gptqmodel-w4-g32-desc_act");
  const auto copy = run(plan_copy(*checkpoint));
  ASSERT_EQ(copy.size(), source.tensors.size());
  for (const auto& [name, tensor] : source.tensors) {
    EXPECT_TRUE(copy.at(name).bytes == tensor.bytes) << name;
    EXPECT_EQ(copy.at(name).shape, tensor.shape) << name;
  }
}

TEST_F(ReshardTest, RanksOfAnExpertsRowsAndColumnsGiveTheWholeMatrix) {
  open("families", "qwen3_moe");
  constexpr int kTp = 5;  // 48 rows: 10, 10, 10, 9, 9
  const std::string prefix = std::string(kExperts) + ".3.";
  const Tensor& gate = source.tensors.at(prefix + "gate_proj.weight");
  const Tensor& down = source.tensors.at(prefix + "down_proj.weight");
  int64_t begin = 0;
  for (int r = 0; r < kTp; ++r) {
    const auto own = rank(kTp, 1, r);
    const Tensor& rows = own.at(prefix + "gate_proj.weight");
    const Tensor& cols = own.at(prefix + "down_proj.weight");
    const int64_t size = r < 3 ? 10 : 9;
    ASSERT_EQ(rows.shape, (std::vector<int64_t>{size, 64}));
    ASSERT_EQ(cols.shape, (std::vector<int64_t>{64, size}));
    for (int64_t j = 0; j < size; ++j) {
      for (int64_t h = 0; h < 64; ++h) {
        ASSERT_EQ(at(rows, 0, j, h), at(gate, 0, begin + j, h));
        ASSERT_EQ(at(cols, 0, h, j), at(down, 0, h, begin + j));
      }
    }
    begin += size;
    EXPECT_TRUE(own.at("model.layers.0.mlp.gate.weight").bytes ==
                source.tensors.at("model.layers.0.mlp.gate.weight").bytes);
  }
}

TEST_F(ReshardTest, EachExpertIsOnOneRank) {
  open("families", "qwen3_moe");
  for (const Placement placement : {Placement::kLinear, Placement::kRoundRobin}) {
    const ExpertMap owners = ExpertMap::create(8, 3, placement);
    for (int r = 0; r < 3; ++r) {
      const auto own = rank(1, 3, r, placement);
      for (int e = 0; e < 8; ++e) {
        const std::string name =
            std::string(kExperts) + "." + std::to_string(e) + ".up_proj.weight";
        ASSERT_EQ(own.contains(name), owners.computing_rank(e) == r) << name;
        if (own.contains(name)) {
          EXPECT_TRUE(own.at(name).bytes == source.tensors.at(name).bytes);
        }
      }
    }
  }
}

TEST_F(ReshardTest, FusedTensorsAreCutInGateAndInUp) {
  open("families", "qwen3_moe-fused");
  const Tensor& whole = source.tensors.at(std::string(kExperts) + ".gate_up_proj");
  const auto own = rank(2, 2, 3);  // experts 4 to 7, rows 24 to 47 of gate and of up
  const Tensor& part = own.at(std::string(kExperts) + ".gate_up_proj");
  ASSERT_EQ(part.shape, (std::vector<int64_t>{4, 48, 64}));
  for (int64_t e = 0; e < 4; ++e) {
    for (int64_t j = 0; j < 24; ++j) {
      for (int64_t h = 0; h < 64; ++h) {
        ASSERT_EQ(at(part, e, j, h), at(whole, 4 + e, 24 + j, h));
        ASSERT_EQ(at(part, e, 24 + j, h), at(whole, 4 + e, 48 + 24 + j, h));
      }
    }
  }
}

TEST_F(ReshardTest, InterleavedTransposedTensorsAndBiasesAreCutByPairs) {
  open("families", "gpt_oss");
  const std::string experts = kExperts;
  const Tensor& whole = source.tensors.at(experts + ".gate_up_proj");
  const Tensor& bias = source.tensors.at(experts + ".gate_up_proj_bias");
  const auto own = rank(2, 4, 5);  // ep 2, tp 1: experts 4 and 5, pairs 24 to 47
  const Tensor& part = own.at(experts + ".gate_up_proj");
  ASSERT_EQ(part.shape, (std::vector<int64_t>{2, 64, 48}));
  for (int64_t e = 0; e < 2; ++e) {
    for (int64_t h = 0; h < 64; ++h) {
      for (int64_t c = 0; c < 48; ++c)
        ASSERT_EQ(at(part, e, h, c), at(whole, 4 + e, h, 48 + c));
    }
  }
  const Tensor& own_bias = own.at(experts + ".gate_up_proj_bias");
  ASSERT_EQ(own_bias.shape, (std::vector<int64_t>{2, 48}));
  for (int64_t c = 0; c < 48; ++c)
    ASSERT_EQ(at(own_bias, 0, 1, c), at(bias, 0, 5, 48 + c));
  // Added by one rank, held by all.
  EXPECT_EQ(own.at(experts + ".down_proj_bias").shape, (std::vector<int64_t>{2, 64}));
}

TEST_F(ReshardTest, QuantizedTensorsAreCutByExperts) {
  open("quant", "hf_fp8-block-fused");
  const auto own = rank(1, 2, 1);
  const std::string name = std::string(kExperts) + ".gate_up_proj_scale_inv";
  EXPECT_EQ(own.at(name).shape, (std::vector<int64_t>{2, 2, 2}));
  EXPECT_TRUE(std::equal(own.at(name).bytes.begin(), own.at(name).bytes.end(),
                         source.tensors.at(name).bytes.begin() + 32));
}

TEST_F(ReshardTest, FilesByRankHaveThatRanksExpertsAndNoOthers) {
  open("families", "qwen3_moe");
  const RelayoutPlan plan = plan_copy(*checkpoint);
  const auto shards = shards_by_rank(plan, config, *map, 3, Placement::kLinear, 0);
  ASSERT_EQ(shards.size(), 4U);
  EXPECT_EQ(shards[1].file, "model-ep-00001-of-00003.safetensors");
  EXPECT_EQ(shards[3].file, "model-common.safetensors");
  EXPECT_EQ(shards[1].tensors.size(), 2U * 3 * 3);  // layers, experts 3 to 5, projections
  std::set<std::string> names;
  for (const ShardPlan& shard : shards) {
    for (const TensorInfo& tensor : shard.tensors)
      names.insert(tensor.name);
  }
  EXPECT_EQ(names.size(), plan.tensors.size());
}

TEST_F(ReshardTest, FilesByRankAreRefusedForTensorsOfSeveralRanks) {
  open("families", "qwen3_moe-fused");
  expect_error(
      [&] { (void)shards_by_rank(plan_copy(*checkpoint), config, *map, 2, Placement::kLinear, 0); },
      ErrorCode::kUnsupported, {"experts.down_proj", "unfuse"});
}

}  // namespace
}  // namespace gantry::test
