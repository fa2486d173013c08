#include "bench/support/exchange_latency.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <random>
#include <string_view>
#include <utility>

#include "kernels/base/check.h"
#include "parallel/token_exchange.h"

namespace gantry::bench {
namespace {

using Clock = std::chrono::steady_clock;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// One rank with its tokens, routed evenly.
class Rank {
 public:
  Rank(const ExchangeLatencyCase& c, Communicator& world)
      : world_(world),
        exchange_({.ep_size = c.ep_size, .dp_size = c.ep_size, .rank = world.rank()}, world,
                  {.hidden_size = c.hidden_size, .top_k = c.top_k}, c.options),
        scratch_(exchange_.make_scratch(c.num_tokens, 0)),
        width_(c.hidden_size),
        hidden_(static_cast<size_t>(c.num_tokens * c.hidden_size), 0.5F),
        weights_(static_cast<size_t>(c.num_tokens * c.top_k), 1.0F),
        own_(hidden_.size()),
        partial_(hidden_.size() * static_cast<size_t>(c.ep_size), 0.25F) {
    std::mt19937 engine(static_cast<unsigned>(world.rank()));
    std::vector<int32_t> experts(static_cast<size_t>(c.num_experts));
    for (size_t e = 0; e < experts.size(); ++e) {
      experts[e] = static_cast<int32_t>(e);
      id_to_rank_.push_back(
          static_cast<int32_t>(static_cast<int64_t>(e) * c.ep_size / c.num_experts));
    }
    for (int64_t t = 0; t < c.num_tokens; ++t) {
      std::shuffle(experts.begin(), experts.end(), engine);
      ids_.insert(ids_.end(), experts.begin(), experts.begin() + c.top_k);
    }
  }

  void exchange() {
    const ExchangedTokens tokens = exchange_.dispatch({.hidden_states = hidden_,
                                                       .topk_ids = ids_,
                                                       .topk_weights = weights_,
                                                       .id_to_rank = id_to_rank_,
                                                       .id_to_logical = {}},
                                                      scratch_);
    exchange_.reduce(std::span(partial_).first(tokens.hidden_states.size()), width_, own_,
                     scratch_);
  }

  // The sizes of plain all-to-alls: this rank's bytes, evenly over the other ranks.
  void plan_plain() {
    const ExchangeBytes before = exchange_.bytes();
    exchange();
    per_call_ = exchange_.bytes().received() - before.received();
    collectives_ = exchange_.bytes().collectives - before.collectives;
    const int64_t others = std::max(1, world_.size() - 1);
    const int64_t each[2] = {(exchange_.bytes().dispatch_sent - before.dispatch_sent) / others,
                             (exchange_.bytes().combine_sent - before.combine_sent) / others};
    const std::vector<int64_t> two_each(static_cast<size_t>(world_.size()), sizeof(each));
    std::vector<int64_t> all(2 * two_each.size());
    world_.all_gather(std::as_bytes(std::span(each)), std::as_writable_bytes(std::span(all)),
                      two_each);
    for (size_t step = 0; step < 2; ++step) {
      for (size_t rank = 0; rank < two_each.size(); ++rank) {
        const bool self = static_cast<int>(rank) == world_.rank();
        send_sizes_[step].push_back(self ? 0 : each[step]);
        receive_sizes_[step].push_back(self ? 0 : all[2 * rank + step]);
        receive_total_[step] += receive_sizes_[step].back();
      }
      send_.resize(std::max(send_.size(), static_cast<size_t>(each[step] * others)));
      receive_.resize(std::max(receive_.size(), static_cast<size_t>(receive_total_[step])));
    }
  }

  void all_to_all() {
    move([&](auto... parts) { world_.all_to_all(parts...); });
  }
  void plain(const PlainAllToAll& other) { move(other); }

  // Microseconds a call, over `calls` of them.
  template <typename Call>
  double time(int calls, Call call) {
    world_.barrier();
    const auto start = Clock::now();
    for (int i = 0; i < calls; ++i)
      call();
    world_.barrier();
    return std::chrono::duration<double, std::micro>(Clock::now() - start).count() / calls;
  }

  // Rank 0 decides for all of them.
  int agree(int calls) {
    world_.broadcast(std::as_writable_bytes(std::span(&calls, 1)), 0);
    return calls;
  }

  [[nodiscard]] int64_t bytes() const { return per_call_; }
  [[nodiscard]] int64_t collectives() const { return collectives_; }

 private:
  template <typename AllToAll>
  void move(const AllToAll& all_to_all) {
    for (size_t step = 0; step < 2; ++step) {
      int64_t total = 0;
      for (const int64_t bytes : send_sizes_[step])
        total += bytes;
      all_to_all(std::span<const std::byte>(send_).first(static_cast<size_t>(total)),
                 std::span<const int64_t>(send_sizes_[step]),
                 std::span(receive_).first(static_cast<size_t>(receive_total_[step])),
                 std::span<const int64_t>(receive_sizes_[step]));
    }
  }

  Communicator& world_;
  TokenExchange exchange_;
  ExchangeScratch scratch_;
  int64_t width_;
  std::vector<float> hidden_;
  std::vector<int32_t> ids_;
  std::vector<float> weights_;
  std::vector<int32_t> id_to_rank_;
  std::vector<float> own_;
  std::vector<float> partial_;
  int64_t per_call_ = 0;
  int64_t collectives_ = 0;
  std::vector<int64_t> send_sizes_[2];
  std::vector<int64_t> receive_sizes_[2];
  int64_t receive_total_[2] = {0, 0};
  std::vector<std::byte> send_;
  std::vector<std::byte> receive_;
};

}  // namespace

ExchangeLatency measure_exchange(const RankRunner& run, const ExchangeLatencyCase& c) {
  ExchangeLatency result;
  run(c.ep_size, [&](Communicator& world) {
    Rank rank(c, world);
    rank.plan_plain();
    const double once = rank.time(3, [&] { rank.exchange(); });
    constexpr int kRounds = 9;
    const int calls = rank.agree(
        std::clamp(static_cast<int>(c.seconds * 1e6 / (2.0 * kRounds * once)), 3, 100000));
    std::vector<double> exchange_us;
    std::vector<double> all_to_all_us;
    std::vector<double> plain_us;
    for (int round = 0; round < kRounds; ++round) {
      exchange_us.push_back(rank.time(calls, [&] { rank.exchange(); }));
      all_to_all_us.push_back(rank.time(calls, [&] { rank.all_to_all(); }));
      if (c.plain) plain_us.push_back(rank.time(calls, [&] { rank.plain(c.plain); }));
    }
    if (world.rank() != 0) return;
    result = {.exchange_us = median(exchange_us),
              .all_to_all_us = median(all_to_all_us),
              .plain_us = plain_us.empty() ? 0.0 : median(plain_us),
              .bytes = rank.bytes(),
              .collectives = rank.collectives()};
  });
  return result;
}

std::vector<int64_t> parse_token_counts(int argc, char** argv, std::vector<int64_t> otherwise) {
  std::vector<int64_t> tokens;
  for (const std::string_view text : std::span(argv, static_cast<size_t>(argc)).subspan(1)) {
    int64_t count = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
    GANTRY_CHECK(
        error == std::errc() && end == text.data() + text.size() && count >= 1 && count <= 65536,
        ErrorCode::kInvalidArgument, "expected numbers of tokens from 1 to 65536, found '{}'",
        text);
    tokens.push_back(count);
  }
  return tokens.empty() ? std::move(otherwise) : tokens;
}

void print_exchange_latencies(const RankRunner& run, const std::vector<int>& ep_sizes,
                              const std::vector<int64_t>& tokens, const PlainAllToAll& plain,
                              const char* plain_name) {
  bool header = false;
  for (const int ep_size : ep_sizes) {
    for (const int64_t count : tokens) {
      for (const ExchangeKind kind :
           {ExchangeKind::kAllGatherReduceScatter, ExchangeKind::kAllToAll}) {
        for (const int slots : {0, static_cast<int>(count)}) {
          ExchangeLatencyCase c{.ep_size = ep_size, .num_tokens = count};
          c.options.kind = kind;
          c.options.slots = slots;
          c.plain = plain;
          const ExchangeLatency found = measure_exchange(run, c);
          if (found.exchange_us == 0.0) continue;  // rank 0 is another process
          if (!header) {
            std::printf(
                "dispatch + combine, H %lld, top-%lld, us a call, and two all-to-alls of the same "
                "bytes\n",
                static_cast<long long>(c.hidden_size), static_cast<long long>(c.top_k));
            std::printf("%3s %12s %-24s %6s %12s %12s %12s %12s", "ep", "tokens/rank", "exchange",
                        "slots", "collectives", "bytes/rank", "exchange us", "all_to_all");
            if (plain) std::printf(" %14s %7s", plain_name, "ratio");
            std::printf("\n");
            header = true;
          }
          std::printf("%3d %12lld %-24s %6d %12lld %12lld %12.1f %12.1f", ep_size,
                      static_cast<long long>(count), std::string(to_string(kind)).c_str(), slots,
                      static_cast<long long>(found.collectives),
                      static_cast<long long>(found.bytes), found.exchange_us, found.all_to_all_us);
          if (plain) {
            std::printf(" %14.1f %7.2f", found.plain_us, found.exchange_us / found.plain_us);
          }
          std::printf("\n");
          std::fflush(stdout);
        }
      }
    }
  }
}

}  // namespace gantry::bench
