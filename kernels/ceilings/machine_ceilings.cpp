#include "kernels/ceilings/machine_ceilings.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/check.h"
#include "kernels/ceilings/peak_loops.h"

namespace gantry {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kPageBytes = 4096;
static_assert(kPageBytes % kPeakReadBlock == 0);
constexpr int64_t kMinShareBytes = int64_t{1} << 20;

// Arithmetic runs in rounds of some 3 ms, long against leaving the start line, four for each
// repeat: on a shared machine a short round is more likely to have the CPUs to itself.
constexpr int kRoundsPerRepeat = 4;
constexpr int64_t kVectorSteps = 1'000'000;
constexpr int64_t kTileSteps = 125'000;

// Lets all tasks of a round go at once. An executor may run them one after another, and then
// nobody would ever come: waiting ends after kPatience for everyone.
class StartLine {
 public:
  explicit StartLine(int64_t num_tasks) : num_tasks_(num_tasks) {}

  void wait() noexcept {
    arrived_.fetch_add(1);
    const Clock::time_point deadline = Clock::now() + kPatience;
    while (arrived_.load() < num_tasks_ && !abandoned_.load()) {
      if (Clock::now() > deadline) abandoned_.store(true);
      __builtin_ia32_pause();
    }
  }
  [[nodiscard]] bool abandoned() const noexcept { return abandoned_.load(); }

 private:
  static constexpr std::chrono::milliseconds kPatience{50};

  const int64_t num_tasks_;
  std::atomic<int64_t> arrived_ = 0;
  std::atomic<bool> abandoned_ = false;
};

struct Round {
  double seconds;  ///< from the first start to the last end
  bool together;   ///< all tasks ran at once
};

// One task for each thread, so that no thread is idle and none has two shares.
Round run_round(const Threads& threads, const std::function<void(int64_t task)>& work) {
  struct alignas(64) Span {
    Clock::time_point start;
    Clock::time_point end;
  };
  const int64_t num_tasks = threads.resolved_count();
  std::vector<Span> spans(static_cast<size_t>(num_tasks));
  StartLine start_line(num_tasks);
  parallel_for(threads, num_tasks, [&](int64_t task) {
    Span& span = spans[static_cast<size_t>(task)];
    start_line.wait();
    span.start = Clock::now();
    work(task);
    span.end = Clock::now();
  });
  const auto first = std::min_element(
      spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.start < b.start; });
  const auto last = std::max_element(spans.begin(), spans.end(),
                                     [](const Span& a, const Span& b) { return a.end < b.end; });
  return {.seconds = std::chrono::duration<double>(last->end - first->start).count(),
          .together = !start_line.abandoned()};
}

// Seconds of the best of `num_rounds`. One whose tasks did not start together is run again, and
// counts only if there is no other: an executor that never runs them so is asked kMaxApart times.
double best_seconds(const Threads& threads, int num_rounds,
                    const std::function<void(int64_t task)>& work) {
  constexpr int kMaxApart = 5;
  double best_together = std::numeric_limits<double>::infinity();
  double best_apart = std::numeric_limits<double>::infinity();
  int num_together = 0;
  int num_apart = 0;
  while (num_together < num_rounds && num_apart < kMaxApart) {
    const Round round = run_round(threads, work);
    double& best = round.together ? best_together : best_apart;
    best = std::min(best, round.seconds);
    ++(round.together ? num_together : num_apart);
  }
  return num_together > 0 ? best_together : best_apart;
}

// TFLOP/s of all threads.
double measure_tflops(const Threads& threads, int repeats, void (*loop)(int64_t) noexcept,
                      int64_t steps, int64_t flop_per_step) {
  const double seconds =
      best_seconds(threads, repeats * kRoundsPerRepeat, [&](int64_t) { loop(steps); });
  const auto flop = static_cast<double>(flop_per_step) * static_cast<double>(steps) *
                    static_cast<double>(threads.resolved_count());
  return flop / seconds / 1e12;
}

double measure_fma(IsaSet isas, const Threads& threads, int repeats) {
  const auto measure = [&](void (*loop)(int64_t) noexcept, int64_t flop) {
    return measure_tflops(threads, repeats, loop, kVectorSteps, flop);
  };
  if (isas.contains(Isa::kAvx512)) return measure(avx512::peak_fma, avx512::kPeakFmaFlop);
  if (isas.contains(Isa::kAvx2)) return measure(avx2::peak_fma, avx2::kPeakFmaFlop);
  return measure(scalar::peak_fma, scalar::kPeakFmaFlop);
}

auto select_read(IsaSet isas) {
  if (isas.contains(Isa::kAvx512)) return avx512::peak_read;
  if (isas.contains(Isa::kAvx2)) return avx2::peak_read;
  return scalar::peak_read;
}

void check_repeats(int repeats) {
  GANTRY_CHECK(repeats >= 1, ErrorCode::kInvalidArgument,
               "ceilings: repeats must be at least 1, found {}", repeats);
}

}  // namespace

ReadProbe::ReadProbe(IsaSet isas, Threads threads, int64_t read_bytes)
    : threads_(std::move(threads)), read_(select_read(isas)) {
  const int64_t num_tasks = threads_.resolved_count();
  GANTRY_CHECK(read_bytes >= num_tasks * kMinShareBytes, ErrorCode::kInvalidArgument,
               "ceilings: {} threads must read at least {} bytes, found {}", num_tasks,
               num_tasks * kMinShareBytes, read_bytes);
  share_ = read_bytes / num_tasks / kPageBytes * kPageBytes;
  memory_ = ByteBuffer(static_cast<size_t>(share_ * num_tasks));
  // Pages that were never written are all the same page of zeros, which caches hold.
  parallel_for(threads_, num_tasks, [&](int64_t task) {
    std::memset(memory_.data() + task * share_, 1, static_cast<size_t>(share_));
  });
}

double ReadProbe::gb_s(int repeats) {
  check_repeats(repeats);
  const double seconds = best_seconds(
      threads_, repeats, [&](int64_t task) { read_(memory_.data() + task * share_, share_); });
  return static_cast<double>(memory_.size()) / seconds / 1e9;
}

MachineCeilings measure_ceilings(IsaSet isas, const Threads& threads, int64_t read_bytes,
                                 int repeats) {
  check_repeats(repeats);
  MachineCeilings ceilings;
  ceilings.threads = threads.resolved_count();
  ceilings.read_gb_s = ReadProbe(isas, threads, read_bytes).gb_s(repeats);
  ceilings.fma_f32_tflops = measure_fma(isas, threads, repeats);
  if (isas.contains(Isa::kAvx512Bf16)) {
    ceilings.dot_bf16_tflops =
        measure_tflops(threads, repeats, avx512::peak_dot_bf16, kVectorSteps, avx512::kPeakDotFlop);
  }
  if (isas.contains(Isa::kAvx512Vnni)) {
    ceilings.dot_int8_tops =
        measure_tflops(threads, repeats, avx512::peak_dot_int8, kVectorSteps, avx512::kPeakInt8Op);
  }
  if (isas.contains(Isa::kAmxBf16)) {
    ceilings.amx_bf16_tflops =
        measure_tflops(threads, repeats, amx::peak_dot_bf16, kTileSteps, amx::kPeakDotFlop);
  }
  return ceilings;
}

}  // namespace gantry
