#include "parallel/parallel_config.h"

#include <algorithm>
#include <cstdint>

#include "kernels/base/check.h"

namespace gantry {
namespace {

constexpr int kMaxRanks = 65536;

}  // namespace

std::string_view to_string(Placement placement) noexcept {
  return placement == Placement::kLinear ? "linear" : "round_robin";
}

Placement parse_placement(std::string_view name) {
  if (name == "linear") return Placement::kLinear;
  if (name == "round_robin") return Placement::kRoundRobin;
  fail(ErrorCode::kInvalidArgument, "placement: expected linear or round_robin, found '{}'", name);
}

void validate(const ParallelConfig& config) {
  const auto check_size = [](std::string_view name, int size) {
    GANTRY_CHECK(size >= 1 && size <= kMaxRanks, ErrorCode::kInvalidArgument,
                 "{}: expected 1 to {}, found {}", name, kMaxRanks, size);
  };
  check_size("tp_size", config.tp_size);
  check_size("ep_size", config.ep_size);
  check_size("dp_size", config.dp_size);
  GANTRY_CHECK(static_cast<int64_t>(config.tp_size) * config.ep_size <= kMaxRanks,
               ErrorCode::kInvalidArgument, "tp {} x ep {}: more than {} ranks", config.tp_size,
               config.ep_size, kMaxRanks);
  GANTRY_CHECK(config.ep_size % config.dp_size == 0, ErrorCode::kInvalidArgument,
               "dp_size {} does not divide ep_size {}: token groups are made of whole EP ranks",
               config.dp_size, config.ep_size);
  GANTRY_CHECK(config.rank >= 0 && config.rank < config.world_size(), ErrorCode::kInvalidArgument,
               "rank: expected 0 to {}, found {}", config.world_size() - 1, config.rank);
}

std::string describe(const ParallelConfig& config) {
  return fmt::format("tp {} x ep {} (dp {}), rank {}: tp_rank {}, ep_rank {}", config.tp_size,
                     config.ep_size, config.dp_size, config.rank, config.tp_rank(),
                     config.ep_rank());
}

Slice split_evenly(long total, int parts, int index) {
  GANTRY_CHECK(total >= 0 && parts >= 1 && index >= 0 && index < parts, ErrorCode::kInvalidArgument,
               "split_evenly: part {} of {} of {}", index, parts, total);
  const long base = total / parts;
  const long remainder = total % parts;
  const long begin = index * base + std::min<long>(index, remainder);
  return {begin, begin + base + (index < remainder ? 1 : 0)};
}

Slice split_in_units(long total, long unit, int parts, int index) {
  GANTRY_CHECK(unit >= 1, ErrorCode::kInvalidArgument, "split_in_units: units of {}", unit);
  const Slice units = split_evenly(total / unit + (total % unit != 0 ? 1 : 0), parts, index);
  return {std::min(total, units.begin * unit), std::min(total, units.end * unit)};
}

}  // namespace gantry
