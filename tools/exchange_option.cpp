#include "tools/exchange_option.h"

#include <CLI/CLI.hpp>

#include "kernels/base/check.h"

namespace gantry::cli {

void add_exchange_options(CLI::App& app, ExchangeOption& option) {
  app.add_option("--exchange", option.exchange, "how tokens get to the ranks of their experts")
      ->check(CLI::IsMember({"auto", "allgather_reducescatter", "all_to_all"}))
      ->capture_default_str();
  app.add_option("--exchange-slots", option.slots,
                 "tokens that every message between two ranks has room for: one collective instead "
                 "of two while they suffice")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--combine", option.combine,
                 "rank: sums of ranks are added in rank order; ordered: outputs of experts are "
                 "added in ascending expert id, for bits that do not depend on --ep")
      ->check(CLI::IsMember({"rank", "ordered"}))
      ->capture_default_str();
  app.add_option(
         "--reduce", option.reduce,
         "how sums of ranks are added: in rank order, or (native) by MPI's own reduction, on GPUs "
         "as the transport does it: in an order of its own")
      ->check(CLI::IsMember({"rank", "native"}))
      ->capture_default_str();
  app.add_flag("--no-reduce", option.no_reduce,
               "ranks keep their parts of the sums, as for an engine that reduces itself");
  app.add_flag("--sequence-parallel", option.sequence_parallel,
               "the ranks of a token group hold parts of its tokens instead of all");
}

ExchangeOptions ExchangeOption::options() const {
  return {.kind = parse_exchange_kind(exchange),
          .combine = parse_combine_order(combine),
          .reduce = parse_reduce_order(reduce),
          .slots = slots};
}

ParallelConfig ExchangeOption::config(ParallelConfig parallel) const {
  parallel.sequence_parallel = sequence_parallel;
  return parallel;
}

void ExchangeOption::apply(const ParallelConfig& parallel, const Communicator* world, bool on_gpu,
                           FusedMoeOptions& options) const {
  const auto check = [&](bool possible, std::string_view what) {
    GANTRY_CHECK(possible, ErrorCode::kInvalidArgument, "{}", what);
  };
  const bool native = reduce == "native" && parallel.world_size() > 1 && !on_gpu;
  check(!native || (world != nullptr && world->has_native_reduction()),
        "--reduce native: ranks that are threads of one process have no reduction of their own; "
        "start them with mpirun");
  const std::string infeasible =
      native ? infeasible_reduction(this->options(), options.batch_invariant) : std::string();
  check(infeasible.empty(), fmt::format("--reduce native: {}", infeasible));
  check(!native || !no_reduce, "--reduce native with --no-reduce: there are no sums to add");
  check(!no_reduce || parallel.dp_size == 1,
        "--no-reduce with --dp: the tokens of an engine that dispatches itself are needed, and "
        "this command is none");
  check(!no_reduce || combine == "rank",
        "--no-reduce with --combine ordered: there are no sums to put into order");
  check(!no_reduce || exchange != "all_to_all",
        "--no-reduce with --exchange all_to_all: it sends tokens, but nothing is to be sent");
  check(!no_reduce || !sequence_parallel,
        "--no-reduce with --sequence-parallel: the ranks of a token group have to exchange their "
        "parts");
  options.exchange = this->options();
  options.no_reduce = no_reduce;
}

std::string ExchangeOption::text() const {
  return fmt::format("{}, {} slots, combine {}, reduce {}{}{}", exchange, slots, combine, reduce,
                     no_reduce ? ", no reduce" : "",
                     sequence_parallel ? ", sequence parallel" : "");
}

std::string describe_exchange(const ExchangeOption& option, const ParallelConfig& parallel,
                              bool on_gpu, int64_t top_k) {
  if (parallel.world_size() == 1) return {};
  if (on_gpu) {
    const bool all_to_all = option.exchange == "all_to_all";
    return fmt::format(
        "exchange: {}, {} slots; combine {}; sums of ranks {}",
        all_to_all ? "all_to_all (as asked)" : "allgather_reducescatter (in which no host waits)",
        option.slots, option.combine,
        option.reduce == "native" ? "in the transport's own order (--reduce native)"
                                  : "in rank order");
  }
  if (option.no_reduce) return "exchange: none (--no-reduce): ranks keep their parts of the sums";
  const ExchangeChoice choice = choose_exchange(parse_exchange_kind(option.exchange), parallel,
                                                top_k, parse_reduce_order(option.reduce));
  return fmt::format("exchange: {} ({}), {} slots{}; combine {}; sums of ranks {}",
                     to_string(choice.kind), choice.reason, option.slots,
                     parallel.sequence_parallel ? ", sequence parallel" : "", option.combine,
                     option.reduce == "native"
                         ? "by MPI's own reduction: bits may differ between numbers of tokens, "
                           "layouts and versions of MPI, and its messages are not counted"
                         : "in rank order");
}

}  // namespace gantry::cli
