#include "tools/bench_ranks.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "kernels/base/check.h"
#include "parallel/digest.h"
#include "parallel/rank_vote.h"
#include "tools/current_work.h"

namespace gantry::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kWarmUpCalls = 2;
constexpr int kFewestCalls = 5;
constexpr int kMostCalls = 100000;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// A rank's part of a batch of its token group.
MoeInput part_of(const BenchBatch& batch, Slice tokens, int64_t hidden, int64_t top_k) {
  const auto rows = [&](const auto& all, int64_t width) {
    return std::span(all).subspan(static_cast<size_t>(tokens.begin * width),
                                  static_cast<size_t>(tokens.size() * width));
  };
  return {.hidden_states = rows(batch.hidden_states, hidden),
          .topk_ids = rows(batch.topk_ids, top_k),
          .topk_weights = rows(batch.topk_weights, top_k)};
}

// What one rank measured; all gathered as they lie in memory.
struct Measured {
  double ms = 0.0;  // median
  double dispatch_ms = 0.0;
  double experts_ms = 0.0;
  double combine_ms = 0.0;
  double bytes_sent = 0.0;  // a call
  double bytes_received = 0.0;
  Digest output;
};

template <typename Value>
double largest(const std::vector<Measured>& all, Value value) {
  double most = 0.0;
  for (const Measured& one : all)
    most = std::max(most, one.*value);
  return most;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// One rank's side of the benchmark.
class RankBench {
 public:
  RankBench(const RankBenchOptions& options, const BenchRank& rank, const Output& output)
      : options_(options), rank_(rank), output_(&output), world_(rank.world) {
    const auto bytes = static_cast<int64_t>(options.rotate_gb * 1e9);
    note_work("load", -1);
    model_ = options.directory.empty()
                 ? make_bench_model(options.shape, options.format, bytes, options.run,
                                    options.activations, options.seed, rank_)
                 : load_bench_model(options.directory, bytes, options.run, options.activations,
                                    parse_allowed(options.allow), rank_);
    const auto layers = gather_values(*world_, model_.layers.size());
    GANTRY_CHECK(std::count(layers.begin(), layers.end(), layers[0]) == world_->size(),
                 ErrorCode::kInternal, "bench: ranks have different numbers of layers");
  }

  void print_head() const {
    if (world_->rank() != 0) return;
    const auto weights = model_.layers[0]->weights();
    output_->text(fmt::format(
        "{}: {} layer(s) of {} experts, {} weights, {} activations; {}, {} thread(s) a rank, {}",
        model_.shape, model_.layers.size(), weights->spec.num_experts, model_.format,
        model_.activations.text, describe(rank_.config), options_.run.threads.resolved_count(),
        model_.layers[0]->kernel_name()));
    const std::string exchange = describe_exchange(
        options_.exchange, rank_.config, /*on_gpu=*/false, weights->spec.routing.num_slots());
    const std::string experts = model_.layers[0]->experts().describe();
    output_->text(exchange);
    output_->text(fmt::format("experts ({}): {}", rank_.placement.describe(), experts));
    output_->event("bench_head", {{"shape", model_.shape},
                                  {"format", model_.format},
                                  {"tp", rank_.config.tp_size},
                                  {"ep", rank_.config.ep_size},
                                  {"dp", rank_.config.dp_size},
                                  {"exchange", exchange},
                                  {"placement", rank_.placement.describe()},
                                  {"experts", experts}});
    output_->text(
        "\n| tokens a group | routing | ms | dispatch | experts | combine | tokens/s in all | "
        "tokens/s a rank | balancedness | sent a rank | received a rank |\n"
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
  }

  void run(int64_t num_tokens, BenchRouting routing) {
    note_work("bench", -1);
    // Ranks of one token group draw the same batches, other groups others.
    const auto batches =
        make_batches(model_, num_tokens, routing, /*min_bytes=*/0,
                     options_.seed + 1000 * static_cast<uint64_t>(rank_.config.dp_rank()));
    std::vector<Workspace> workspaces;
    for (const auto& layer : model_.layers)
      workspaces.push_back(layer->make_workspace(num_tokens));
    const auto weights = model_.layers[0]->weights();
    const int64_t hidden = weights->spec.hidden_size;
    const Slice tokens = tokens_of_rank(num_tokens);
    std::vector<float> out(static_cast<size_t>(tokens.size() * hidden));
    std::vector<int64_t> computed(batches.size());  // (token, expert) pairs of this rank
    const auto forward = [&](size_t call) {
      const size_t number = call % batches.size();
      const BenchBatch& batch = batches[number];
      Workspace& workspace = workspaces[batch.layer];
      model_.layers[batch.layer]->forward(
          part_of(batch, tokens, hidden, weights->spec.routing.num_slots()), workspace, out);
      const auto slots = workspace.tokens_per_slot();
      computed[number] = std::accumulate(slots.begin(), slots.end(), int64_t{0});
      return workspace.last_times();
    };
    for (int call = 0; call < kWarmUpCalls; ++call)
      forward(static_cast<size_t>(call));
    const int calls = agree_on_calls([&] { forward(0); });

    world_->barrier();
    const Traffic before = world_->traffic();
    std::vector<double> ms;
    ForwardTimes sum;
    for (int call = 0; call < calls; ++call) {
      const auto start = Clock::now();
      const ForwardTimes times = forward(static_cast<size_t>(call));
      ms.push_back(milliseconds_since(start));
      sum.dispatch_us += times.dispatch_us;
      sum.experts_us += times.experts_us;
      sum.combine_us += times.combine_us;
    }
    const Traffic after = world_->traffic();
    const double balance = balancedness(computed);
    const Digest output = digest_of(std::as_bytes(std::span(out)));
    print(num_tokens, routing,
          {.ms = median(ms),
           .dispatch_ms = sum.dispatch_us / calls / 1e3,
           .experts_ms = sum.experts_us / calls / 1e3,
           .combine_ms = sum.combine_us / calls / 1e3,
           .bytes_sent = static_cast<double>(after.bytes_sent - before.bytes_sent) / calls,
           .bytes_received =
               static_cast<double>(after.bytes_received - before.bytes_received) / calls,
           .output = output},
          balance);
  }

 private:
  // Of a token group's tokens.
  [[nodiscard]] Slice tokens_of_rank(int64_t num_tokens) const {
    const ParallelConfig& config = rank_.config;
    if (!config.sequence_parallel) return {0, num_tokens};
    return split_evenly(num_tokens, config.token_group_size(),
                        config.rank - config.first_of_token_group());
  }

  // Sum over the batches of the mean of the EP ranks' tokens / sum of their maxima. Every rank of a
  // TP group computes the same tokens.
  [[nodiscard]] double balancedness(const std::vector<int64_t>& computed) const {
    double means = 0.0;
    double maxima = 0.0;
    for (const int64_t own : computed) {
      const std::vector<int64_t> all = gather_values(*world_, own);
      means += static_cast<double>(std::accumulate(all.begin(), all.end(), int64_t{0})) /
               static_cast<double>(all.size());
      maxima += static_cast<double>(*std::max_element(all.begin(), all.end()));
    }
    return maxima > 0.0 ? means / maxima : 1.0;
  }

  // As many calls as take options.seconds on the slowest rank.
  template <typename Forward>
  int agree_on_calls(Forward forward) {
    const auto start = Clock::now();
    forward();
    const auto all = gather_values(*world_, milliseconds_since(start));
    const double slowest = std::max(1e-3, *std::max_element(all.begin(), all.end()));
    return static_cast<int>(std::clamp(options_.seconds * 1e3 / slowest,
                                       static_cast<double>(kFewestCalls),
                                       static_cast<double>(kMostCalls)));
  }

  void print(int64_t num_tokens, BenchRouting routing, const Measured& own, double balance) {
    const bool whole_outputs = !rank_.config.sequence_parallel && !options_.run.no_reduce;
    const std::vector<Measured> all = gather_values(*world_, own);
    for (size_t rank = 0; rank < all.size(); ++rank) {
      ParallelConfig other = rank_.config;
      other.rank = static_cast<int>(rank);
      GANTRY_CHECK(!whole_outputs || other.dp_rank() != rank_.config.dp_rank() ||
                       all[rank].output == own.output,
                   ErrorCode::kInternal,
                   "bench: ranks {} and {} hold the same tokens but differ in the output", rank,
                   world_->rank());
    }
    if (world_->rank() != 0) return;
    const double ms = largest(all, &Measured::ms);
    const double in_all = static_cast<double>(num_tokens * rank_.config.dp_size) * 1e3 / ms;
    const double a_rank = in_all / static_cast<double>(all.size());
    const double sent = largest(all, &Measured::bytes_sent);
    const double received = largest(all, &Measured::bytes_received);
    output_->text(fmt::format(
        "| {} | {} | {:.3f} | {:.3f} | {:.3f} | {:.3f} | {:.0f} | {:.0f} | {:.3f} | {} | {} |",
        num_tokens, to_string(routing), ms, largest(all, &Measured::dispatch_ms),
        largest(all, &Measured::experts_ms), largest(all, &Measured::combine_ms), in_all, a_rank,
        balance, human_bytes(std::llround(sent)), human_bytes(std::llround(received))));
    nlohmann::ordered_json ranks = nlohmann::ordered_json::array();
    for (const Measured& one : all) {
      ranks.push_back({{"ms", one.ms},
                       {"dispatch_ms", one.dispatch_ms},
                       {"experts_ms", one.experts_ms},
                       {"combine_ms", one.combine_ms},
                       {"bytes_sent", one.bytes_sent},
                       {"bytes_received", one.bytes_received}});
    }
    output_->event("bench_ranks", {{"tokens", num_tokens},
                                   {"token_groups", rank_.config.dp_size},
                                   {"routing", to_string(routing)},
                                   {"ms_median", ms},
                                   {"tokens_per_s", in_all},
                                   {"tokens_per_s_rank", a_rank},
                                   {"balancedness", balance},
                                   {"ranks", ranks}});
  }

  const RankBenchOptions& options_;
  BenchRank rank_;
  const Output* output_;
  Communicator* world_;
  BenchModel model_;
};

}  // namespace

void bench_on_ranks(const RankBenchOptions& options, const RankSession& ranks,
                    const Output& output) {
  const auto body = [&](Communicator& world) {
    RankBenchOptions own = options;
    BenchRank rank{.config = options.parallel, .placement = options.placement, .world = &world};
    rank.config.rank = world.rank();
    if (ranks.world() == nullptr) {  // threads share the CPUs
      own.run.threads.count =
          std::max(1, options.run.threads.resolved_count() / rank.config.world_size());
    }
    RankBench bench(own, rank, output);
    bench.print_head();
    for (const std::string& name : options.routing) {
      for (const int64_t tokens : options.tokens)
        bench.run(tokens, name == "zipf" ? BenchRouting::kZipf : BenchRouting::kUniform);
    }
  };
  if (ranks.world() != nullptr) {
    body(*ranks.world());
  } else {
    run_local_ranks(options.parallel.world_size(), body);
  }
}

}  // namespace gantry::cli
