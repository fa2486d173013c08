#include "kernels/grouped_gemm/grouped_gemm.h"

#include <algorithm>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "kernels/grouped_gemm/grouped_gemm_kernels.h"

namespace gantry {
namespace {

struct Task {
  int64_t slot;
  int64_t row_begin;
  int64_t row_end;
  int64_t n_begin;
  int64_t n_end;
};

// Columns first: a task keeps its part of the weight in cache over all rows of the expert. Wide
// enough to amortise a task, narrow enough that one expert alone keeps every thread busy.
std::vector<Task> make_tasks(std::span<const int32_t> expert_offsets, int64_t n, int num_threads) {
  constexpr int64_t kMaxRows = 256;    // x rows of a task stay in the L2 cache
  constexpr int64_t kMaxColumns = 64;  // of a few KB each
  int64_t active = 0;
  for (size_t s = 0; s + 1 < expert_offsets.size(); ++s) {
    active += expert_offsets[s + 1] > expert_offsets[s] ? 1 : 0;
  }
  const int64_t wanted = active > 0 ? (int64_t{4} * num_threads + active - 1) / active : 1;
  const int64_t columns = std::clamp<int64_t>((n + wanted - 1) / wanted, 4, kMaxColumns);
  std::vector<Task> tasks;
  for (size_t s = 0; s + 1 < expert_offsets.size(); ++s) {
    const int64_t end = expert_offsets[s + 1];
    for (int64_t row = expert_offsets[s]; row < end; row += kMaxRows) {
      for (int64_t col = 0; col < n; col += columns) {
        tasks.push_back({static_cast<int64_t>(s), row, std::min(end, row + kMaxRows), col,
                         std::min(n, col + columns)});
      }
    }
  }
  return tasks;
}

void check_arguments(std::span<const float> x, const ExpertWeights& weights,
                     std::span<const int32_t> expert_offsets, std::span<float> y) {
  GANTRY_CHECK(weights.n >= 0 && weights.k >= 0 && weights.num_slots >= 0,
               ErrorCode::kInvalidArgument, "grouped_gemm: weights [{}, {}, {}]", weights.num_slots,
               weights.n, weights.k);
  GANTRY_CHECK(is_plain_float(weights.dtype), ErrorCode::kInvalidArgument,
               "grouped_gemm: expected f32, f16 or bf16 weights, found {}",
               to_string(weights.dtype));
  GANTRY_CHECK(expert_offsets.size() == static_cast<size_t>(weights.num_slots) + 1 &&
                   expert_offsets.front() == 0 &&
                   std::is_sorted(expert_offsets.begin(), expert_offsets.end()),
               ErrorCode::kInvalidArgument,
               "grouped_gemm: expected {} ascending row offsets from 0, found {}",
               weights.num_slots + 1, expert_offsets.size());
  const int64_t num_rows = expert_offsets.back();
  GANTRY_CHECK(x.size() == static_cast<size_t>(num_rows * weights.k) &&
                   y.size() == static_cast<size_t>(num_rows * weights.n),
               ErrorCode::kInvalidArgument,
               "grouped_gemm: {} rows: expected {} inputs and {} outputs, found {} and {}",
               num_rows, num_rows * weights.k, num_rows * weights.n, x.size(), y.size());
}

}  // namespace

void grouped_gemm(std::span<const float> x, const ExpertWeights& weights,
                  std::span<const int32_t> expert_offsets, std::span<float> y, IsaSet isas,
                  const Threads& threads) {
  check_arguments(x, weights, expert_offsets, y);
  const GroupedGemmKernel& kernel = select_grouped_gemm(weights.layout, weights.dtype, isas);
  log(LogLevel::kDebug, "grouped_gemm: {} for [{}, {}, {}]", kernel.name, weights.num_slots,
      weights.n, weights.k);
  const std::vector<Task> tasks = make_tasks(expert_offsets, weights.n, threads.resolved_count());
  parallel_for(threads, static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const Task& task = tasks[static_cast<size_t>(i)];
    const auto* bias = reinterpret_cast<const std::byte*>(weights.bias);
    kernel.run({.x = x.data() + task.row_begin * weights.k,
                .weight = weights.data + task.slot * weights.slot_stride_bytes,
                .bias = bias == nullptr ? nullptr
                                        : reinterpret_cast<const float*>(
                                              bias + task.slot * weights.bias_stride_bytes),
                .y = y.data() + task.row_begin * weights.n,
                .num_rows = task.row_end - task.row_begin,
                .n = weights.n,
                .k = weights.k,
                .n_begin = task.n_begin,
                .n_end = task.n_end});
  });
}

}  // namespace gantry
