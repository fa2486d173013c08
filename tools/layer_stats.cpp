#include "tools/layer_stats.h"

#include <algorithm>
#include <numeric>

#include "kernels/base/check.h"
#include "parallel/eplb.h"

namespace gantry::cli {
namespace {

// One metric family: its help, then a sample for each label set.
class Family {
 public:
  Family(std::string& text, std::string_view name, std::string_view type, std::string_view help)
      : text_(text), name_(name) {
    text_ += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
  }
  void add(std::string_view labels, double value) {
    text_ += fmt::format("{}{{{}}} {}\n", name_, labels, value);
  }
  void add(std::string_view labels, int64_t value) {
    text_ += fmt::format("{}{{{}}} {}\n", name_, labels, value);
  }

 private:
  std::string& text_;
  std::string_view name_;
};

}  // namespace

int64_t LayerStats::total() const {
  return std::accumulate(load.tokens_per_expert.begin(), load.tokens_per_expert.end(), int64_t{0});
}

double LayerStats::rank_balance() const { return balancedness(rank_tokens); }

double LayerStats::expert_balance() const {
  const std::vector<double> tokens(load.tokens_per_expert.begin(), load.tokens_per_expert.end());
  return balancedness(tokens);
}

double overall_balance(std::span<const LayerStats> layers) {
  double mean = 0.0;
  double most = 0.0;
  for (const LayerStats& layer : layers) {
    const std::vector<double>& ranks = layer.rank_tokens;
    mean += std::accumulate(ranks.begin(), ranks.end(), 0.0) / static_cast<double>(ranks.size());
    most += *std::max_element(ranks.begin(), ranks.end());
  }
  return most > 0.0 ? mean / most : 1.0;
}

void print_stats(std::span<const LayerStats> layers, const Output& output) {
  output.text(fmt::format("{:>5} {:>10} {:>22} {:>8} {:>10} {:>10} {:>11} {:>6} {:>10}", "layer",
                          "tokens", "hottest expert", "of mean", "experts", "ranks", "", "moves",
                          "moved"));
  int64_t moves = 0;
  int64_t bytes = 0;
  for (const LayerStats& layer : layers) {
    const auto& tokens = layer.load.tokens_per_expert;
    const auto hottest = std::max_element(tokens.begin(), tokens.end());
    const double mean = static_cast<double>(layer.total()) /
                        static_cast<double>(std::max<size_t>(1, tokens.size()));
    moves += layer.load.rebalances;
    bytes += layer.load.bytes_moved;
    output.text(fmt::format(
        "{:>5} {:>10} {:>22} {:>8} {:>10.3f} {:>10.3f} {:>11} {:>6} {:>10}", layer.layer,
        layer.total(), fmt::format("{} ({} tokens)", hottest - tokens.begin(), *hottest),
        mean > 0 ? fmt::format("{:.1f}x", static_cast<double>(*hottest) / mean) : "-",
        layer.expert_balance(), layer.rank_balance(), layer.measured ? "(measured)" : "(expected)",
        layer.load.rebalances, human_bytes(layer.load.bytes_moved)));
    output.event("layer", {{"layer", layer.layer},
                           {"tokens_per_expert", tokens},
                           {layer.measured ? "tokens_per_rank" : "expected_tokens_per_rank",
                            layer.rank_tokens},
                           {"expert_balancedness", layer.expert_balance()},
                           {"rank_balancedness", layer.rank_balance()},
                           {"rebalances", layer.load.rebalances},
                           {"bytes_moved", layer.load.bytes_moved}});
  }
  const double overall = overall_balance(layers);
  output.result(fmt::format(
      "{} layer(s) on {} rank(s): balancedness {:.3f} (sum of mean / sum of max over ranks), {} "
      "rebalance(s), {} moved between ranks",
      layers.size(), layers[0].rank_tokens.size(), overall, moves, human_bytes(bytes)));
  output.event("result", {{"layers", layers.size()},
                          {"ranks", layers[0].rank_tokens.size()},
                          {"balancedness", overall},
                          {"rebalances", moves},
                          {"bytes_moved", bytes}});
}

std::string prometheus_text(std::span<const LayerStats> layers) {
  std::string text;
  Family experts(text, "gantry_expert_tokens_total", "counter",
                 "Tokens that took each logical expert.");
  for (const LayerStats& layer : layers) {
    for (size_t e = 0; e < layer.load.tokens_per_expert.size(); ++e) {
      experts.add(fmt::format("layer=\"{}\",expert=\"{}\"", layer.layer, e),
                  layer.load.tokens_per_expert[e]);
    }
  }
  Family ranks(
      text, "gantry_rank_tokens_total", "counter",
      "Token and expert pairs that each expert-parallel rank computed (source=measured) or "
      "would compute under the placement (source=expected).");
  for (const LayerStats& layer : layers) {
    for (size_t rank = 0; rank < layer.rank_tokens.size(); ++rank) {
      ranks.add(fmt::format("layer=\"{}\",rank=\"{}\",source=\"{}\"", layer.layer, rank,
                            layer.measured ? "measured" : "expected"),
                layer.rank_tokens[rank]);
    }
  }
  Family balance(text, "gantry_balancedness_ratio", "gauge",
                 "Mean over maximum of the tokens of ranks; 1 is even.");
  for (const LayerStats& layer : layers)
    balance.add(fmt::format("layer=\"{}\"", layer.layer), layer.rank_balance());
  Family rebalances(text, "gantry_rebalances_total", "counter",
                    "Times that the experts of a layer moved.");
  for (const LayerStats& layer : layers)
    rebalances.add(fmt::format("layer=\"{}\"", layer.layer), layer.load.rebalances);
  Family bytes(text, "gantry_rebalance_bytes_total", "counter",
               "Bytes of expert slots sent between ranks by rebalances.");
  for (const LayerStats& layer : layers)
    bytes.add(fmt::format("layer=\"{}\"", layer.layer), layer.load.bytes_moved);
  return text;
}

}  // namespace gantry::cli
