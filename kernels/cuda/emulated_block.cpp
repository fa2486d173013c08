#include "kernels/cuda/emulated_block.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <deque>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/cuda/emulated_barriers.h"
#include "kernels/cuda/emulated_wgmma.h"
#include "kernels/cuda/float_bits.h"
#include "kernels/cuda/mma_fragments.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

// Threads of a block as fibers. A fiber runs until it waits for others; when all whom a wait
// concerns have come, the operation is done for all at once and they may go on.

namespace gantry {
namespace {

constexpr int kWarp = 32;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = size_t{256} << 10;  // AddressSanitizer's frames are larger
#else
constexpr size_t kStackBytes = size_t{64} << 10;
#endif

enum class Collective {
  kNone,
  kBlockBarrier,
  kWarpBarrier,
  kShuffle,
  kMmaBf16,
  kMmaF16,
  kMbarrier,   // of each thread on its own
  kWgmmaWait,  // of the warpgroup
};

struct ShuffleCall {
  uint32_t value;
  int mask;
  uint32_t result;
};
struct MmaCall {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};

struct BarrierCall {
  const void* barrier;
  uint32_t parity;
};
struct WgmmaWaitCall {
  int newest;
};

struct Copy {
  void* target;
  const void* source;
};

struct Fiber {
  ucontext_t context;
  bool started = false;
  jmp_buf at;  // where it waits
  Collective waits_in = Collective::kNone;
  void* call = nullptr;
  bool finished = false;
  std::deque<std::vector<Copy>> groups;  // committed, oldest first
  std::vector<Copy> open;
  EmulatedWgmma wgmma;
};

class StackPool {
 public:
  explicit StackPool(int count) : bytes_(kStackBytes * static_cast<size_t>(count)) {
    base_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    GANTRY_CHECK(base_ != MAP_FAILED, ErrorCode::kOutOfMemory, "emulated threads: {} bytes",
                 bytes_);
  }
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;
  ~StackPool() { munmap(base_, bytes_); }
  [[nodiscard]] void* stack(int i) const {
    return static_cast<std::byte*>(base_) + kStackBytes * static_cast<size_t>(i);
  }

 private:
  size_t bytes_;
  void* base_;
};

}  // namespace

class EmulatedBlock {
 public:
  EmulatedBlock(const LaunchShape& shape, uint64_t seed,
                const std::function<void(EmulatedMachine&)>& body)
      : shape_(shape),
        body_(body),
        engine_(seed),
        stacks_(shape.threads),
        fibers_(static_cast<size_t>(shape.threads)),
        shared_(static_cast<size_t>(shape.shared_bytes) + kGuardBytes) {}

  void run(int64_t block) {
    block_ = block;
    std::fill(shared_.begin(), shared_.end(), std::byte{0xff});
    barriers_.reset(shared_.data(), static_cast<size_t>(shape_.shared_bytes));
    for (int t = 0; t < shape_.threads; ++t)
      start(t);
    std::vector<int> order(fibers_.size());
    std::iota(order.begin(), order.end(), 0);
    for (;;) {
      std::shuffle(order.begin(), order.end(), engine_);
      bool ran = false;
      for (const int t : order) {
        Fiber& fiber = at(t);
        if (fiber.finished || fiber.waits_in != Collective::kNone) continue;
        resume(t);
        ran = true;
        if (error_) std::rethrow_exception(error_);
      }
      barriers_.land_some(engine_, /*at_least_one=*/false);
      const bool released = release(ran);
      if (!ran && !released) break;
    }
    for (const Fiber& fiber : fibers_) {
      GANTRY_CHECK(fiber.finished, ErrorCode::kInternal,
                   "emulated block {}: threads wait for each other for ever", block);
    }
    GANTRY_CHECK(barriers_.idle(), ErrorCode::kInternal,
                 "emulated block {}: ended with bytes that never came", block);
    const bool intact =
        std::all_of(shared_.end() - static_cast<ptrdiff_t>(kGuardBytes), shared_.end(),
                    [](std::byte b) { return b == std::byte{0xff}; });
    GANTRY_CHECK(intact, ErrorCode::kInternal,
                 "emulated block {}: wrote past its {} bytes of shared memory", block,
                 shape_.shared_bytes);
  }

  // Called on a fiber: goes back to the scheduler until the others have come.
  void wait(int thread, Collective collective, void* call) {
    Fiber& fiber = at(thread);
    fiber.waits_in = collective;
    fiber.call = call;
    leave(thread, /*last=*/false);
  }

  [[nodiscard]] const LaunchShape& shape() const { return shape_; }
  [[nodiscard]] int64_t block() const { return block_; }
  [[nodiscard]] std::byte* shared() { return shared_.data(); }
  [[nodiscard]] std::span<const std::byte> shared_bytes() const {
    return {shared_.data(), static_cast<size_t>(shape_.shared_bytes)};
  }
  EmulatedBarriers& barriers() { return barriers_; }
  Fiber& at(int thread) { return fibers_[static_cast<size_t>(thread)]; }

 private:
  static constexpr size_t kGuardBytes = 256;

  void start(int thread) {
    Fiber& fiber = at(thread);
    fiber.waits_in = Collective::kNone;
    fiber.finished = false;
    fiber.started = false;
    fiber.groups.clear();
    fiber.open.clear();
    fiber.wgmma.reset();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks_.stack(thread);
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    const auto address = reinterpret_cast<uintptr_t>(this);
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&EmulatedBlock::entry), 3,
                static_cast<unsigned>(address >> 32), static_cast<unsigned>(address & 0xffffffffu),
                thread);
  }

  static void entry(unsigned high, unsigned low, int thread) {
    auto* self = reinterpret_cast<EmulatedBlock*>((static_cast<uintptr_t>(high) << 32) | low);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &self->main_bottom_, &self->main_size_);
#endif
    try {
      EmulatedMachine machine(*self, thread);
      self->body_(machine);
      GANTRY_CHECK(self->at(thread).wgmma.idle(), ErrorCode::kInternal,
                   "emulated block {}: a thread ended with products in flight", self->block_);
    } catch (...) {
      self->error_ = std::current_exception();
    }
    self->at(thread).finished = true;
    self->leave(thread, /*last=*/true);
  }

  // The first switch to a fiber is swapcontext, which makes its stack; those after it are jumps,
  // which save no signal mask and so need no system call.
  void resume(int thread) {
    Fiber& fiber = at(thread);
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stacks_.stack(thread), kStackBytes);
    swapcontext(&main_, &fiber.context);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.started) _longjmp(fiber.at, 1);
    fiber.started = true;
    setcontext(&fiber.context);
#endif
  }

  void leave(int thread, [[maybe_unused]] bool last) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(last ? nullptr : &fake, main_bottom_, main_size_);
    swapcontext(&at(thread).context, &main_);
    __sanitizer_finish_switch_fiber(fake, &main_bottom_, &main_size_);
#else
    if (_setjmp(at(thread).at) == 0) _longjmp(scheduler_, 1);
#endif
  }

  // Does what whole warps, warpgroups or the whole block have come for. Products of a warpgroup
  // take their time while anybody else has something to do: who may overwrite their operands does.
  bool release(bool ran) {
    bool released = release_mbarriers();
    for (int begin = 0; begin < shape_.threads; begin += kWarp)
      released = release_warp(begin) || released;
    for (int begin = 0; begin + kWarpgroup <= shape_.threads; begin += kWarpgroup) {
      if ((ran || released) && engine_() % 4 != 0) continue;
      released = release_warpgroup(begin) || released;
    }
    const auto waits = [](const Fiber& f) { return f.waits_in == Collective::kBlockBarrier; };
    if (released) return true;
    if (std::all_of(fibers_.begin(), fibers_.end(), waits)) {
      for (Fiber& fiber : fibers_)
        fiber.waits_in = Collective::kNone;
      return true;
    }
    if (barriers_.land_some(engine_, /*at_least_one=*/true)) return true;
    GANTRY_CHECK(std::none_of(fibers_.begin(), fibers_.end(), waits), ErrorCode::kInternal,
                 "emulated block {}: some threads wait at a barrier that others never reach",
                 block_);
    return false;
  }

  bool release_mbarriers() {
    bool released = false;
    for (Fiber& fiber : fibers_) {
      if (fiber.waits_in != Collective::kMbarrier) continue;
      const auto& call = *static_cast<BarrierCall*>(fiber.call);
      if (!barriers_.passed(call.barrier, call.parity)) continue;
      fiber.waits_in = Collective::kNone;
      released = true;
    }
    return released;
  }

  bool release_warp(int begin) {
    const auto lanes = std::span(fibers_).subspan(static_cast<size_t>(begin), kWarp);
    Collective first = Collective::kNone;
    for (const Fiber& fiber : lanes) {
      if (fiber.waits_in == Collective::kMbarrier) return false;  // comes later
      const bool warp_wide = fiber.waits_in != Collective::kNone &&
                             fiber.waits_in != Collective::kBlockBarrier &&
                             fiber.waits_in != Collective::kWgmmaWait;
      if (warp_wide) first = fiber.waits_in;
    }
    if (first == Collective::kNone) return false;
    for (const Fiber& fiber : lanes) {
      if (!fiber.finished && fiber.waits_in == Collective::kNone) return false;  // runs next
      GANTRY_CHECK(!fiber.finished && fiber.waits_in == first, ErrorCode::kInternal,
                   "emulated block {}: lanes of the warp of thread {} meet in different "
                   "collectives",
                   block_, begin);
    }
    perform(first, begin);
    return true;
  }

  bool release_warpgroup(int begin) {
    std::array<EmulatedWgmma*, kWarpgroup> threads{};
    const int newest = at(begin).waits_in == Collective::kWgmmaWait
                           ? static_cast<WgmmaWaitCall*>(at(begin).call)->newest
                           : -1;
    for (int t = 0; t < kWarpgroup; ++t) {
      Fiber& fiber = at(begin + t);
      if (fiber.waits_in != Collective::kWgmmaWait) return false;
      GANTRY_CHECK(static_cast<WgmmaWaitCall*>(fiber.call)->newest == newest, ErrorCode::kInternal,
                   "emulated block {}: threads of a warpgroup wait for different groups", block_);
      threads[static_cast<size_t>(t)] = &fiber.wgmma;
    }
    EmulatedWgmma::land(threads, newest, shared_bytes());
    for (int t = 0; t < kWarpgroup; ++t)
      at(begin + t).waits_in = Collective::kNone;
    return true;
  }

  void perform(Collective collective, int begin) {
    if (collective == Collective::kShuffle) {
      for (int lane = 0; lane < kWarp; ++lane) {
        auto& call = *static_cast<ShuffleCall*>(at(begin + lane).call);
        call.result = static_cast<ShuffleCall*>(at(begin + (lane ^ call.mask)).call)->value;
      }
    } else if (collective != Collective::kWarpBarrier) {
      multiply(begin, collective == Collective::kMmaBf16);
    }
    for (int lane = 0; lane < kWarp; ++lane)
      at(begin + lane).waits_in = Collective::kNone;
  }

  // The products are exact in f32; they are summed in double and rounded once, which is as near to
  // the hardware (whose order is its own) as any order.
  void multiply(int begin, bool bf16) {
    std::array<std::array<float, 16>, 16> a{};
    std::array<std::array<float, 8>, 16> b{};
    const auto value = [bf16](uint32_t word, int half) {
      const uint32_t bits = (word >> (16 * half)) & 0xffffu;
      return bf16 ? bf16_bits_to_f32(bits) : f16_bits_to_f32(bits);
    };
    for (int lane = 0; lane < kWarp; ++lane) {
      const auto& call = *static_cast<MmaCall*>(at(begin + lane).call);
      for (int e = 0; e < 8; ++e) {
        const FragmentPlace place = mma_a_place(lane, e);
        a[static_cast<size_t>(place.row)][static_cast<size_t>(place.col)] =
            value(call.a[e / 2], e % 2);
      }
      for (int e = 0; e < 4; ++e) {
        const FragmentPlace place = mma_b_place(lane, e);
        b[static_cast<size_t>(place.row)][static_cast<size_t>(place.col)] =
            value(call.b[e / 2], e % 2);
      }
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      const auto& call = *static_cast<MmaCall*>(at(begin + lane).call);
      for (int e = 0; e < 4; ++e) {
        const FragmentPlace place = mma_c_place(lane, e);
        double sum = call.c[e];
        for (size_t k = 0; k < 16; ++k) {
          sum += static_cast<double>(a[static_cast<size_t>(place.row)][k]) *
                 b[k][static_cast<size_t>(place.col)];
        }
        call.c[e] = static_cast<float>(sum);
      }
    }
  }

  LaunchShape shape_;
  const std::function<void(EmulatedMachine&)>& body_;
  std::mt19937_64 engine_;
  StackPool stacks_;
  std::vector<Fiber> fibers_;
  std::vector<std::byte> shared_;
  EmulatedBarriers barriers_;
  int64_t block_ = 0;
  [[maybe_unused]] ucontext_t main_{};
  jmp_buf scheduler_{};
  std::exception_ptr error_;
  [[maybe_unused]] const void* main_bottom_ = nullptr;
  [[maybe_unused]] size_t main_size_ = 0;
};

int EmulatedMachine::num_threads() const noexcept { return block_->shape().threads; }
int64_t EmulatedMachine::block() const noexcept { return block_->block(); }
int64_t EmulatedMachine::num_blocks() const noexcept { return block_->shape().blocks; }
std::byte* EmulatedMachine::shared() const noexcept { return block_->shared(); }

void EmulatedMachine::sync() { block_->wait(thread_, Collective::kBlockBarrier, nullptr); }
void EmulatedMachine::sync_warp() { block_->wait(thread_, Collective::kWarpBarrier, nullptr); }

float EmulatedMachine::shuffle_xor(float value, int mask) {
  ShuffleCall call{f32_to_bits(value), mask, 0};
  block_->wait(thread_, Collective::kShuffle, &call);
  return bits_to_f32(call.result);
}

int32_t EmulatedMachine::shuffle_xor(int32_t value, int mask) {
  ShuffleCall call{static_cast<uint32_t>(value), mask, 0};
  block_->wait(thread_, Collective::kShuffle, &call);
  return static_cast<int32_t>(call.result);
}

void EmulatedMachine::mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MmaCall call{c, a, {b0, b1}};
  block_->wait(thread_, Collective::kMmaBf16, &call);
}

void EmulatedMachine::mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MmaCall call{c, a, {b0, b1}};
  block_->wait(thread_, Collective::kMmaF16, &call);
}

uint32_t EmulatedMachine::mul_bf16x2(uint32_t a, uint32_t b) noexcept {
  const uint32_t low =
      f32_to_bf16_bits(bf16_bits_to_f32(a & 0xffffu) * bf16_bits_to_f32(b & 0xffffu));
  const uint32_t high = f32_to_bf16_bits(bf16_bits_to_f32(a >> 16) * bf16_bits_to_f32(b >> 16));
  return low | (high << 16);
}

uint32_t EmulatedMachine::sub_bf16x2(uint32_t a, uint32_t b) noexcept {
  const uint32_t low =
      f32_to_bf16_bits(bf16_bits_to_f32(a & 0xffffu) - bf16_bits_to_f32(b & 0xffffu));
  const uint32_t high = f32_to_bf16_bits(bf16_bits_to_f32(a >> 16) - bf16_bits_to_f32(b >> 16));
  return low | (high << 16);
}

void EmulatedMachine::copy16_async(void* shared, const void* source) {
  GANTRY_CHECK(reinterpret_cast<uintptr_t>(shared) % 16 == 0 &&
                   reinterpret_cast<uintptr_t>(source) % 16 == 0,
               ErrorCode::kInternal, "emulated copy16_async: an address is not aligned to 16");
  block_->at(thread_).open.push_back({shared, source});
}

void EmulatedMachine::commit_copies() {
  Fiber& fiber = block_->at(thread_);
  fiber.groups.push_back(std::exchange(fiber.open, {}));
}

void EmulatedMachine::wait_copies(int newest) {
  Fiber& fiber = block_->at(thread_);
  while (fiber.groups.size() > static_cast<size_t>(newest)) {
    for (const Copy& copy : fiber.groups.front())
      std::memcpy(copy.target, copy.source, 16);
    fiber.groups.pop_front();
  }
}

uint32_t EmulatedMachine::shared_address(const void* shared) const noexcept {
  return kEmulatedSharedBase +
         static_cast<uint32_t>(static_cast<const std::byte*>(shared) - block_->shared());
}

void EmulatedMachine::init_barrier(uint64_t* barrier, uint32_t count) {
  block_->barriers().init(barrier, count);
}
void EmulatedMachine::publish_barriers() { block_->barriers().publish(); }
void EmulatedMachine::arrive(uint64_t* barrier) { block_->barriers().arrive(barrier, 0); }
void EmulatedMachine::arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  block_->barriers().arrive(barrier, bytes);
}
void EmulatedMachine::wait_barrier(uint64_t* barrier, uint32_t parity) {
  if (block_->barriers().passed(barrier, parity)) return;
  BarrierCall call{barrier, parity};
  block_->wait(thread_, Collective::kMbarrier, &call);
}
void EmulatedMachine::copy_bulk(void* shared, const void* source, uint32_t bytes,
                                uint64_t* barrier) {
  block_->barriers().copy(shared, source, bytes, barrier);
}

void EmulatedMachine::wgmma_fence() { block_->at(thread_).wgmma.fence(); }
void EmulatedMachine::issue_wgmma(WgmmaType type, std::span<float> d, const uint32_t (&a)[4],
                                  uint64_t b, bool accumulate) {
  block_->at(thread_).wgmma.issue(type, d, a, b, accumulate, block_->shared_bytes(),
                                  thread_ % kWarpgroup == 0);
}
void EmulatedMachine::wgmma_commit() { block_->at(thread_).wgmma.commit(); }
void EmulatedMachine::wait_wgmma(int newest) {
  WgmmaWaitCall call{newest};
  block_->wait(thread_, Collective::kWgmmaWait, &call);
}

void run_emulated(const LaunchShape& shape, uint64_t seed,
                  const std::function<void(EmulatedMachine&)>& body) {
  GANTRY_CHECK(shape.threads > 0 && shape.threads % kWarp == 0 && shape.threads <= 1024 &&
                   shape.blocks >= 0 && shape.shared_bytes >= 0,
               ErrorCode::kInternal, "emulated launch: {} blocks of {} threads, {} bytes",
               shape.blocks, shape.threads, shape.shared_bytes);
  if (shape.blocks == 0) return;
  EmulatedBlock block(shape, seed, body);
  std::vector<int64_t> order(static_cast<size_t>(shape.blocks));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::mt19937_64 engine(seed);
  std::shuffle(order.begin(), order.end(), engine);
  for (const int64_t b : order)
    block.run(b);
}

}  // namespace gantry
