#include "tools/verify_matrix.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <map>

#include "kernels/base/check.h"
#include "parallel/exchange_options.h"

namespace gantry::cli {
namespace {

struct Layout {
  std::string_view name;
  ParallelConfig config;
  Placement placement = Placement::kLinear;
};

const std::array<Layout, 8> kLayouts = {{
    {"tp 2", {.tp_size = 2}},
    {"ep 2", {.ep_size = 2}},
    {"ep 3 round_robin", {.ep_size = 3}, Placement::kRoundRobin},
    {"ep 4", {.ep_size = 4}},
    {"tp 2 x ep 2", {.tp_size = 2, .ep_size = 2}},
    {"dp 2 x ep 2", {.ep_size = 2, .dp_size = 2}},
    {"tp 2 x ep 2, sequence parallel", {.tp_size = 2, .ep_size = 2, .sequence_parallel = true}},
    {"dp 2 x ep 4, sequence parallel", {.ep_size = 4, .dp_size = 2, .sequence_parallel = true}},
}};

std::string why_not(const MoeModel& model, const ParallelConfig& config) {
  for (const MoeLayerSpec& layer : model.config().layers) {
    std::string reason = infeasible_reason(layer, config.tp_size, config.ep_size);
    if (!reason.empty()) return reason;
  }
  return {};
}

bool same_bits(const VerifyResult& a, const VerifyResult& b) {
  const auto same_value = [](float x, float y) {
    return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
  };
  return std::equal(a.blocks.begin(), a.blocks.end(), b.blocks.begin(), b.blocks.end(),
                    [&](const BlockResult& x, const BlockResult& y) {
                      return std::equal(x.out.begin(), x.out.end(), y.out.begin(), y.out.end(),
                                        same_value);
                    });
}

// Runs one cell after another and counts.
class Matrix {
 public:
  Matrix(MoeModel& model, const Reference& reference, VerifySettings settings, const Output& output)
      : model_(model), reference_(reference), settings_(std::move(settings)), output_(output) {
    settings_.batch_invariant = true;
  }

  void run(const Layout& layout) {
    const std::string reason = why_not(model_, layout.config);
    if (!reason.empty()) {
      output_.text(fmt::format("  {:<32} not possible: {}", layout.name, reason));
      output_.event("cell", {{"layout", layout.name}, {"possible", false}, {"reason", reason}});
      return;
    }
    const int tp = layout.config.tp_size;
    if (one_ep_rank_.count(tp) == 0) {
      one_ep_rank_[tp] =
          verify({.tp_size = tp}, Placement::kLinear, {.combine = CombineOrder::kOrdered});
    }
    for (const ExchangeKind kind :
         {ExchangeKind::kAllGatherReduceScatter, ExchangeKind::kAllToAll}) {
      std::string line = fmt::format("  {:<32} {:<24}", layout.name, to_string(kind));
      for (const CombineOrder combine : {CombineOrder::kRank, CombineOrder::kOrdered})
        line += cell(layout, kind, combine);
      output_.text(line);
    }
  }

  void finish() const {
    const bool ok = passed_ == cells_ && equal_ == ordered_;
    output_.result(
        fmt::format("matrix: {} of {} match the reference, {} of {} ordered have the "
                    "bits of one EP rank{}",
                    passed_, cells_, equal_, ordered_, ok ? "" : ": FAILED"));
    output_.event(
        "matrix",
        {{"cells", cells_}, {"passed", passed_}, {"ordered", ordered_}, {"bit_equal", equal_}});
  }

 private:
  VerifyResult verify(const ParallelConfig& config, Placement placement,
                      const ExchangeOptions& exchange) {
    settings_.parallel = config;
    settings_.placement = placement;
    settings_.exchange = exchange;
    return verify_model(model_, &reference_, settings_, {});
  }

  std::string cell(const Layout& layout, ExchangeKind kind, CombineOrder combine) {
    const VerifyResult result =
        verify(layout.config, layout.placement, {.kind = kind, .combine = combine});
    // Not by the number of findings: the report holds each once.
    bool ok = result.blocks.size() == reference_.blocks.size();
    double error = 0.0;
    for (const BlockResult& block : result.blocks) {
      ok = ok && block.ok();
      error = std::max(error, block.error);
    }
    ++cells_;
    passed_ += ok ? 1 : 0;
    const bool is_ordered = combine == CombineOrder::kOrdered;
    const bool equal = is_ordered && same_bits(result, one_ep_rank_[layout.config.tp_size]);
    if (is_ordered) {
      ++ordered_;
      equal_ += equal ? 1 : 0;
      if (!equal) {
        model_.report().add({FindingKind::kReference,
                             fmt::format("{}, {}, ordered: other bits than one EP rank",
                                         layout.name, to_string(kind)),
                             "", "", -1, -1, ""});
      }
    }
    output_.event("cell", {{"layout", layout.name},
                           {"possible", true},
                           {"exchange", to_string(kind)},
                           {"combine", to_string(combine)},
                           {"ok", ok},
                           {"rel", error},
                           {"bit_equal", equal},
                           {"moved_bytes", result.moved.received()}});
    return fmt::format("  {} {} rel {:.1e}, {:>8} moved{}", to_string(combine), ok ? "ok" : "BAD",
                       error, human_bytes(result.moved.received()),
                       !is_ordered ? ""
                       : equal     ? ", same bits"
                                   : ", OTHER BITS");
  }

  MoeModel& model_;
  const Reference& reference_;
  VerifySettings settings_;
  const Output& output_;
  std::map<int, VerifyResult> one_ep_rank_;  // by tp_size
  int cells_ = 0;
  int passed_ = 0;
  int ordered_ = 0;
  int equal_ = 0;
};

}  // namespace

void verify_matrix(MoeModel& model, const Reference& reference, VerifySettings settings,
                   const Output& output) {
  Matrix matrix(model, reference, std::move(settings), output);
  for (const Layout& layout : kLayouts)
    matrix.run(layout);
  matrix.finish();
}

}  // namespace gantry::cli
