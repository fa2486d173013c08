// NCCL that hangs, fails, differs between ranks: every rank gets an error and its communicator is
// aborted; none waits for ever (the test would time out).

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <mutex>
#include <thread>

#include "parallel/nccl_library.h"
#include "tests/parallel/device_groups.h"
#include "tests/parallel/rank_groups.h"
#include "tests/support/device_array.h"
#include "tests/support/expect_error.h"
#include "tests/support/nccl_double_control.h"

namespace gantry::test {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kShort{300};
// Longer than the test may take: who waits for it shows.
constexpr milliseconds kLong{600'000};

struct Outcome {
  bool failed = false;
  bool told = false;  // by another rank
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
};

NcclOptions options_with(milliseconds timeout) {
  return {.waits = {.timeout = timeout}, .library = nccl_double_path()};
}

using Body = std::function<void(DeviceCommunicator& world)>;

// Runs body on ranks whose double follows `plan`; what became of each.
std::vector<Outcome> run_planned(int num_ranks, const char* plan, milliseconds timeout,
                                 const Body& body) {
  std::vector<Outcome> outcomes(static_cast<size_t>(num_ranks));
  const auto device = open_emulated_device();
  const auto run_rank = [&](Communicator& host) {
    set_nccl_double_plan(plan);
    Outcome& outcome = outcomes[static_cast<size_t>(host.rank())];
    try {
      const auto world =
          make_nccl_communicator(device, bootstrap_over(host), options_with(timeout));
      body(*world);
    } catch (const Error& error) {
      outcome = {.failed = true,
                 .told = dynamic_cast<const GroupAborted*>(&error) != nullptr,
                 .code = error.code(),
                 .message = error.what()};
    }
  };
  run_local_ranks(num_ranks, run_rank);
  return outcomes;
}

void add_ones(DeviceCommunicator& world, int times, SumOrder order = SumOrder::kNative) {
  for (int i = 0; i < times; ++i) {
    const DeviceArray<float> one(world.device(), std::vector<float>{1.0F});
    world.all_reduce_sum({one.data(), 1}, order, nullptr);
    world.wait(nullptr);
    EXPECT_EQ(one.read()[0], static_cast<float>(world.size()));
  }
}

// What the double did from now on.
class Counts {
 public:
  [[nodiscard]] NcclDoubleCounts since() const {
    const NcclDoubleCounts now = nccl_double_counts();
    return {.made = now.made - before_.made,
            .finalized = now.finalized - before_.finalized,
            .destroyed = now.destroyed - before_.destroyed,
            .aborted = now.aborted - before_.aborted,
            .native_sums = now.native_sums - before_.native_sums};
  }

 private:
  NcclDoubleCounts before_ = nccl_double_counts();
};

TEST(NcclFailureTest, EndsCleanly) {
  const Counts counts;
  for (const Outcome& outcome :
       run_planned(3, "", kLong, [](DeviceCommunicator& world) { add_ones(world, 2); })) {
    EXPECT_FALSE(outcome.failed) << outcome.message;
  }
  EXPECT_EQ(counts.since().finalized, 3);
  EXPECT_EQ(counts.since().destroyed, 3);
  EXPECT_EQ(counts.since().aborted, 0);
}

TEST(NcclFailureTest, WaitsForWhatIsInProgress) {
  for (const char* plan : {"init=progress:500", "rank=1,op=1:progress:500", "op=0:progress:3",
                           "finalize=progress:100"}) {
    const Counts counts;
    for (const Outcome& outcome :
         run_planned(2, plan, kLong, [](DeviceCommunicator& world) { add_ones(world, 3); })) {
      EXPECT_FALSE(outcome.failed) << plan << ": " << outcome.message;
    }
    EXPECT_EQ(counts.since().destroyed, 2) << plan;
    EXPECT_EQ(counts.since().aborted, 0) << plan;
  }
}

TEST(NcclFailureTest, ARankThatDoesNotComeAtInitIsATimeoutEverywhere) {
  for (const char* plan : {"rank=1,init=hang", "init=hang"}) {
    const Counts counts;
    const auto outcomes =
        run_planned(3, plan, kShort, [](DeviceCommunicator& world) { add_ones(world, 1); });
    for (const Outcome& outcome : outcomes) {
      EXPECT_TRUE(outcome.failed);
      EXPECT_EQ(to_string(outcome.code), to_string(ErrorCode::kTimeout)) << outcome.message;
      EXPECT_NE(outcome.message.find("ncclCommInitRankConfig"), std::string::npos)
          << outcome.message;
    }
    EXPECT_EQ(counts.since().aborted, 3) << plan;
  }
}

TEST(NcclFailureTest, AnOperationThatHangsOnOneRankIsATimeoutEverywhere) {
  for (const char* plan : {"rank=0,op=2:hang", "rank=2,op=0:hang"}) {
    const Counts counts;
    const auto outcomes =
        run_planned(3, plan, kShort, [](DeviceCommunicator& world) { add_ones(world, 5); });
    for (const Outcome& outcome : outcomes) {
      EXPECT_TRUE(outcome.failed);
      EXPECT_EQ(to_string(outcome.code), to_string(ErrorCode::kTimeout)) << outcome.message;
      EXPECT_NE(outcome.message.find("all_reduce_sum"), std::string::npos) << outcome.message;
    }
    EXPECT_EQ(counts.since().aborted, 3) << plan;
    EXPECT_EQ(counts.since().destroyed, 0) << plan;
  }
}

struct Failure {
  const char* plan;
  int cause;  // the rank
  ErrorCode code;
  const char* text;
};

// The others have time for ever: what ends them is the word of the rank that failed.
TEST(NcclFailureTest, AnErrorOnOneRankEndsAllOfThem) {
  const std::vector<Failure> failures = {
      {"rank=1,op=2:error:6", 1, ErrorCode::kNccl, "remote process exited"},
      {"rank=0,op=0:error:2", 0, ErrorCode::kNccl, "unhandled system error"},
      {"rank=2,op=1:error:1", 2, ErrorCode::kCuda, "unhandled cuda error"},
      {"rank=2,op=3:call:5", 2, ErrorCode::kInvalidArgument, "invalid usage"},
      {"rank=1,init=error:3", 1, ErrorCode::kNccl, "internal error"},
      {"rank=1,init=call:2", 1, ErrorCode::kNccl, "unhandled system error"},
  };
  for (const Failure& failure : failures) {
    for (const SumOrder order : {SumOrder::kNative, SumOrder::kRank}) {
      const auto outcomes = run_planned(
          3, failure.plan, kLong, [&](DeviceCommunicator& world) { add_ones(world, 5, order); });
      for (int rank = 0; rank < 3; ++rank) {
        const Outcome& outcome = outcomes[static_cast<size_t>(rank)];
        EXPECT_TRUE(outcome.failed) << failure.plan << ", rank " << rank;
        EXPECT_EQ(outcome.told, rank != failure.cause) << outcome.message;
        EXPECT_EQ(to_string(outcome.code), to_string(failure.code)) << outcome.message;
        for (const std::string& text :
             {std::string(failure.text), fmt::format("rank {}", failure.cause)}) {
          EXPECT_NE(outcome.message.find(text), std::string::npos)
              << "expected '" << text << "' in: " << outcome.message;
        }
      }
    }
  }
}

TEST(NcclFailureTest, AGroupThatFailedStaysDead) {
  run_planned(2, "rank=1,op=0:error:6", kLong, [](DeviceCommunicator& world) {
    EXPECT_THROW(add_ones(world, 1), Error);
    EXPECT_THROW(add_ones(world, 1), GroupAborted);
    EXPECT_THROW(world.wait(nullptr), GroupAborted);
  });
}

TEST(NcclFailureTest, ARankThatDoesNotEndIsAborted) {
  const Counts counts;
  for (const Outcome& outcome : run_planned(2, "rank=1,finalize=hang", kShort,
                                            [](DeviceCommunicator& world) { add_ones(world, 1); }))
    EXPECT_FALSE(outcome.failed) << outcome.message;  // destructors do not throw
  EXPECT_EQ(counts.since().destroyed, 1);
  EXPECT_EQ(counts.since().aborted, 1);
}

TEST(NcclFailureTest, RanksWithDifferentVersionsAreRefusedAndNamed) {
  const auto device = open_emulated_device();
  std::atomic<int> refused = 0;
  run_local_ranks(3, [&](Communicator& host) {
    set_nccl_double_plan(host.rank() == 1 ? "version=22005" : "");
    expect_error(
        [&] { (void)make_nccl_communicator(device, bootstrap_over(host), options_with(kLong)); },
        ErrorCode::kUnsupported, {"2.28.9 on rank(s) 0, 2", "2.20.5 on rank(s) 1"});
    ++refused;
  });
  EXPECT_EQ(refused, 3);
}

TEST(NcclFailureTest, ARankWithoutNcclIsNamedOnAllRanks) {
  const auto device = open_emulated_device();
  run_local_ranks(2, [&](Communicator& host) {
    NcclOptions options = options_with(kLong);
    if (host.rank() == 1) options.library = "/no/such/libnccl.so";
    expect_error([&] { (void)make_nccl_communicator(device, bootstrap_over(host), options); },
                 ErrorCode::kUnsupported, {"rank 1", "/no/such/libnccl.so", "cannot be loaded"});
  });
}

TEST(NcclFailureTest, AbortOfAnotherThreadEndsAllRanks) {
  // Rank 0 waits for rank 1, which never comes but is told to stop by a thread of its own.
  const auto outcomes = run_planned(2, "", kLong, [](DeviceCommunicator& world) {
    if (world.rank() == 0) return add_ones(world, 1);
    std::jthread([&] { world.abort("an engine gave up", ErrorCode::kInternal); }).join();
    EXPECT_THROW(add_ones(world, 1), GroupAborted);
  });
  EXPECT_TRUE(outcomes[0].told);
  EXPECT_NE(outcomes[0].message.find("an engine gave up"), std::string::npos)
      << outcomes[0].message;
}

// A GPU whose work never ends.
class StuckDevice final : public Device {
 public:
  explicit StuckDevice(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  [[nodiscard]] const DeviceAttributes& attributes() const noexcept override {
    return device_->attributes();
  }
  [[nodiscard]] const DeviceKernels& kernels() const noexcept override {
    return device_->kernels();
  }
  void* allocate(size_t bytes) override { return device_->allocate(bytes); }
  void release(void* memory) noexcept override { device_->release(memory); }
  void* allocate_pinned(size_t bytes) override { return device_->allocate_pinned(bytes); }
  void release_pinned(void* memory) noexcept override { device_->release_pinned(memory); }
  StreamHandle create_stream() override { return device_->create_stream(); }
  void destroy_stream(StreamHandle stream) noexcept override { device_->destroy_stream(stream); }
  void synchronize(StreamHandle stream) override { device_->synchronize(stream); }
  bool idle(StreamHandle /*stream*/) override { return false; }
  void make_current() override {}
  void hand_over(StreamHandle stream) override { device_->hand_over(stream); }
  EventHandle create_event() override { return device_->create_event(); }
  void destroy_event(EventHandle event) noexcept override { device_->destroy_event(event); }
  void record(EventHandle event, StreamHandle stream) override { device_->record(event, stream); }
  void wait_for(EventHandle event, StreamHandle stream) override {
    device_->wait_for(event, stream);
  }
  double elapsed_ms(EventHandle start, EventHandle end) override {
    return device_->elapsed_ms(start, end);
  }
  GraphHandle capture(StreamHandle stream, const std::function<void()>& enqueue) override {
    return device_->capture(stream, enqueue);
  }
  void launch_graph(GraphHandle graph, StreamHandle stream) override {
    device_->launch_graph(graph, stream);
  }
  void destroy_graph(GraphHandle graph) noexcept override { device_->destroy_graph(graph); }
  void copy_in(void* to, const void* from, size_t bytes, StreamHandle stream) override {
    device_->copy_in(to, from, bytes, stream);
  }
  void copy_out(void* to, const void* from, size_t bytes, StreamHandle stream) override {
    device_->copy_out(to, from, bytes, stream);
  }
  void copy_within(void* to, const void* from, size_t bytes, StreamHandle stream) override {
    device_->copy_within(to, from, bytes, stream);
  }
  void clear(void* memory, size_t bytes, StreamHandle stream) override {
    device_->clear(memory, bytes, stream);
  }

 private:
  std::shared_ptr<Device> device_;
};

TEST(NcclFailureTest, WorkThatNeverEndsOnTheDeviceOfOneRankEndsAllRanks) {
  for (const Transport transport : {Transport::kNccl, Transport::kHostStaged}) {
    std::vector<ErrorCode> codes(2, ErrorCode::kInternal);
    run_local_ranks(2, [&](Communicator& host) {
      std::shared_ptr<Device> device = open_emulated_device();
      const bool stuck = host.rank() == 1;
      if (stuck) device = std::make_shared<StuckDevice>(device);
      const NcclOptions options = options_with(stuck ? kShort : kLong);
      try {
        const auto world = transport == Transport::kNccl
                               ? make_nccl_communicator(device, bootstrap_over(host), options)
                               : make_host_staged_communicator(host, device, options.waits);
        add_ones(*world, 1);
        add_ones(*world, 1);  // rank 0 may have done the first
      } catch (const Error& error) {
        codes[static_cast<size_t>(host.rank())] = error.code();
        EXPECT_EQ(dynamic_cast<const GroupAborted*>(&error) == nullptr, stuck) << error.what();
      }
    });
    for (const ErrorCode code : codes)
      EXPECT_EQ(to_string(code), to_string(ErrorCode::kTimeout));
  }
}

// An engine's own way to bring ranks together: no Communicator of ours.
class Meeting {
 public:
  explicit Meeting(size_t size) : size_(size) {}
  void all_gather(size_t rank, std::span<const std::byte> own, std::span<std::byte> all) {
    std::unique_lock lock(mutex_);
    all_.resize(all.size());
    std::copy(own.begin(), own.end(), all_.begin() + static_cast<ptrdiff_t>(rank * own.size()));
    if (++here_ == size_) everyone_.notify_all();
    everyone_.wait(lock, [&] { return here_ == size_; });
    std::copy(all_.begin(), all_.end(), all.begin());
  }

 private:
  size_t size_;
  std::mutex mutex_;
  std::condition_variable everyone_;
  size_t here_ = 0;
  std::vector<std::byte> all_;
};

// Without words between ranks, those that are left wait as long as they may.
TEST(NcclFailureTest, RanksBroughtTogetherByAnEngineEndAtTheirTimeouts) {
  for (const char* plan : {"", "rank=1,op=1:hang"}) {
    Meeting meeting(2);
    std::array<std::string, 2> errors;
    const auto run = [&](int rank) {
      set_nccl_double_plan(plan);
      NcclBootstrap bootstrap;
      bootstrap.rank = rank;
      bootstrap.size = 2;
      bootstrap.all_gather = [&](auto own, auto all) {
        meeting.all_gather(static_cast<size_t>(rank), own, all);
      };
      try {
        const auto world = make_nccl_communicator(open_emulated_device(), bootstrap,
                                                  options_with(*plan == '\0' ? kLong : kShort));
        add_ones(*world, 2);
      } catch (const Error& error) {
        errors[static_cast<size_t>(rank)] = error.what();
      }
    };
    {
      const std::jthread other(run, 1);
      run(0);
      set_nccl_double_plan("");
    }
    for (const std::string& error : errors)
      EXPECT_EQ(error.empty(), *plan == '\0') << plan << ": " << error;
  }
}

// Files of the double's shared memory that a process made.
int segments_made_by(pid_t process) {
  int count = 0;
  const std::string prefix = fmt::format("gantry_nccl_double_{}_", process);
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm"))
    count += entry.path().filename().string().starts_with(prefix) ? 1 : 0;
  return count;
}

TEST(NcclDoubleTest, LeavesNothingOfRanksThatAreKilled) {
  if (!std::filesystem::exists("/dev/shm")) GTEST_SKIP() << "no /dev/shm";
  const auto library = NcclLibrary::open(nccl_double_path());
  const nccl::Api& api = library->api();
  // Ranks that have met: nothing is there while they run, so nothing can stay.
  run_planned(2, "", kLong, [](DeviceCommunicator& world) {
    add_ones(world, 1);
    EXPECT_EQ(segments_made_by(getpid()), 0);
  });
  // A rank that waits for another when it is killed: the next communicator removes it.
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    nccl::UniqueId id{};
    nccl::Comm* comm = nullptr;
    nccl::Config config;
    config.blocking = 0;
    const bool waits = api.GetUniqueId(&id) == nccl::kSuccess &&
                       api.CommInitRankConfig(&comm, 2, id, 0, &config) == nccl::kInProgress;
    if (waits) kill(getpid(), SIGKILL);
    _exit(1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  EXPECT_EQ(segments_made_by(child), 1);
  nccl::UniqueId id{};
  ASSERT_EQ(api.GetUniqueId(&id), nccl::kSuccess);
  EXPECT_EQ(segments_made_by(child), 0);
}

TEST(NcclFailureTest, ACommunicatorOfTheCallerStaysTheCallers) {
  const auto device = open_emulated_device();
  const auto library = NcclLibrary::open(nccl_double_path());
  const nccl::Api& api = library->api();
  const Counts counts;
  run_local_ranks(2, [&](Communicator& host) {
    nccl::UniqueId id{};
    ASSERT_EQ(api.GetUniqueId(&id), nccl::kSuccess);  // of which rank 0's is used
    host.broadcast(std::as_writable_bytes(std::span(&id, 1)), 0);
    nccl::Comm* comm = nullptr;
    nccl::Config config;
    config.blocking = 1;
    ASSERT_EQ(api.CommInitRankConfig(&comm, 2, id, host.rank(), &config), nccl::kSuccess);
    const NcclBootstrap bootstrap = bootstrap_over(host);
    {
      const auto world = wrap_nccl_communicator(device, comm, bootstrap, options_with(kLong));
      add_ones(*world, 2);
      add_ones(*world, 2, SumOrder::kRank);
    }
    NcclBootstrap other = bootstrap;
    other.rank = 1 - host.rank();
    expect_error([&] { (void)wrap_nccl_communicator(device, comm, other, options_with(kLong)); },
                 ErrorCode::kInvalidArgument, {"ncclComm_t", "expected rank"});
    expect_error([&] { (void)wrap_nccl_communicator(device, nullptr, bootstrap, {}); },
                 ErrorCode::kInvalidArgument, {"ncclComm_t", "null"});
    EXPECT_EQ(api.CommDestroy(comm), nccl::kSuccess);
  });
  EXPECT_EQ(counts.since().destroyed, 2);
  EXPECT_EQ(counts.since().finalized, 0);
  EXPECT_EQ(counts.since().aborted, 0);
}

}  // namespace
}  // namespace gantry::test
