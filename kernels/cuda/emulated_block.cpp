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

enum class Collective { kNone, kBlockBarrier, kWarpBarrier, kShuffle, kMmaBf16, kMmaF16 };

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
      const bool released = release();
      if (!ran && !released) break;
    }
    for (const Fiber& fiber : fibers_) {
      GANTRY_CHECK(fiber.finished, ErrorCode::kInternal,
                   "emulated block {}: threads wait for each other for ever", block);
    }
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

  // Does what whole warps, or the whole block, have come for.
  bool release() {
    bool released = false;
    for (int begin = 0; begin < shape_.threads; begin += kWarp) {
      const Collective first = at(begin).waits_in;
      if (first == Collective::kNone || first == Collective::kBlockBarrier) continue;
      bool all = true;
      for (int t = begin; t < begin + kWarp; ++t) {
        GANTRY_CHECK(!at(t).finished && at(t).waits_in == first, ErrorCode::kInternal,
                     "emulated block {}: lanes of the warp of thread {} meet in different "
                     "collectives",
                     block_, begin);
        all = all && at(t).waits_in == first;
      }
      if (all) perform(first, begin);
      released = true;
    }
    const auto waits = [](const Fiber& f) { return f.waits_in == Collective::kBlockBarrier; };
    if (std::any_of(fibers_.begin(), fibers_.end(), waits) && !released) {
      GANTRY_CHECK(std::all_of(fibers_.begin(), fibers_.end(), waits), ErrorCode::kInternal,
                   "emulated block {}: some threads wait at a barrier that others never reach",
                   block_);
      for (Fiber& fiber : fibers_)
        fiber.waits_in = Collective::kNone;
      released = true;
    }
    return released;
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
