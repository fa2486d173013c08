// Every golden checkpoint on many ranks: each layout with both exchanges and both orders of sums,
// in f32, against the same reference as a single rank; ordered sums bit by bit against the single
// rank's (with tensor parallel ranks: against one EP rank's).

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <string>

#include "runtime/verification.h"
#include "tests/support/golden_dirs.h"

namespace gantry::test {
namespace {

struct Layout {
  const char* name;
  ParallelConfig config;
  Placement placement = Placement::kLinear;
  int slots = 0;
};

// The slots are fewer than tokens (24 to 48 a checkpoint), as in a batch that is no decode.
const Layout kLayouts[] = {
    {"tp 2", {.tp_size = 2}},
    {"ep 2", {.ep_size = 2}},
    {"ep 3 round_robin", {.ep_size = 3}, Placement::kRoundRobin},
    {"ep 4", {.ep_size = 4}},
    {"tp 2 ep 2", {.tp_size = 2, .ep_size = 2}},
    {"dp 2 ep 2", {.ep_size = 2, .dp_size = 2}, Placement::kLinear, 4},
    {"dp 2 ep 4 tp 2 sp",
     {.tp_size = 2, .ep_size = 4, .dp_size = 2, .sequence_parallel = true},
     Placement::kRoundRobin,
     1},
};

std::string bits_of(const VerifyResult& result) {
  std::string bits;
  for (const BlockResult& block : result.blocks) {
    bits.append(reinterpret_cast<const char*>(block.out.data()), block.out.size() * sizeof(float));
  }
  return bits;
}

class RankLayoutTest : public testing::TestWithParam<Golden> {
 protected:
  RankLayoutTest() : model(GetParam().directory, /*names_only=*/false) {
    reference = read_reference(GetParam().directory / "moe_io.safetensors", model.config());
    settings.load.threads.count = 1;
    settings.batch_invariant = true;
  }

  std::string reason_against(const ParallelConfig& config) {
    for (const MoeLayerSpec& layer : model.config().layers) {
      std::string reason = infeasible_reason(layer, config.tp_size, config.ep_size);
      if (!reason.empty()) return reason;
    }
    return {};
  }

  // The bits of all blocks.
  std::string run(const ParallelConfig& config, Placement placement,
                  const ExchangeOptions& exchange) {
    settings.parallel = config;
    settings.placement = placement;
    settings.exchange = exchange;
    const VerifyResult result = verify_model(model, &reference, settings, {});
    EXPECT_TRUE(model.report().ok()) << summarize(model.report(), 5);
    EXPECT_EQ(result.blocks.size(), reference.blocks.size());
    return bits_of(result);
  }

  MoeModel model;
  Reference reference;
  VerifySettings settings;
};

TEST_P(RankLayoutTest, MatchesWithEveryExchangeAndOrderedSumsBitByBit) {
  std::map<int, std::string> one_ep_rank;  // by tp_size
  for (const Layout& layout : kLayouts) {
    if (!reason_against(layout.config).empty()) continue;
    const int tp = layout.config.tp_size;
    const ExchangeOptions ordered{.combine = CombineOrder::kOrdered};
    if (one_ep_rank.count(tp) == 0) {
      one_ep_rank[tp] = run({.tp_size = tp}, Placement::kLinear, ordered);
    }
    for (const ExchangeKind kind :
         {ExchangeKind::kAllGatherReduceScatter, ExchangeKind::kAllToAll}) {
      SCOPED_TRACE(std::string(layout.name) + ", " + std::string(to_string(kind)));
      for (const CombineOrder combine : {CombineOrder::kRank, CombineOrder::kOrdered}) {
        const std::string bits = run(layout.config, layout.placement,
                                     {.kind = kind, .combine = combine, .slots = layout.slots});
        if (HasFailure()) return;
        if (combine == CombineOrder::kOrdered) {
          EXPECT_TRUE(bits == one_ep_rank[tp]) << "other bits than one EP rank";
        }
      }
    }
  }
}

// Quantized activations: under TP the largest magnitudes of a row come from all TP ranks, in the
// rows that the exchange gave them.
class RankSchemeTest : public RankLayoutTest {};

TEST_P(RankSchemeTest, MatchesWithTheActivationsOfTheScheme) {
  if (!reference.has_act_quant()) GTEST_SKIP() << "the reference has no quantized activations";
  settings.activations = ActivationDType::kScheme;
  for (const ParallelConfig& config :
       {ParallelConfig{.tp_size = 2, .ep_size = 2, .dp_size = 2},
        ParallelConfig{.tp_size = 3, .ep_size = 2, .sequence_parallel = true}}) {
    if (!reason_against(config).empty()) continue;
    for (const CombineOrder combine : {CombineOrder::kRank, CombineOrder::kOrdered}) {
      SCOPED_TRACE(describe(config));
      run(config, Placement::kRoundRobin, {.kind = ExchangeKind::kAllToAll, .combine = combine});
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Goldens, RankLayoutTest, testing::ValuesIn(all_goldens()),
                         [](const auto& golden) { return golden.param.name; });

INSTANTIATE_TEST_SUITE_P(Goldens, RankSchemeTest, testing::ValuesIn(quant_goldens()),
                         [](const auto& golden) { return golden.param.name; });

}  // namespace
}  // namespace gantry::test
