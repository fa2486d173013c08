#include "parallel/communicator_nccl.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "parallel/back_off.h"
#include "parallel/nccl_agreement.h"
#include "parallel/nccl_library.h"

// Every call of NCCL is made by the thread that uses this object, also ncclCommAbort: `abort` of
// another thread leaves a note that this one finds between two polls.

namespace gantry {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kEndPatience{5000};
constexpr int kPollsOfGroup = 16;  // of NCCL, between two looks at the other ranks

ErrorCode code_of(nccl::Result result) noexcept {
  switch (result) {
    case nccl::kUnhandledCudaError:
      return ErrorCode::kCuda;
    case nccl::kInvalidArgument:
    case nccl::kInvalidUsage:
      return ErrorCode::kInvalidArgument;
    default:
      return ErrorCode::kNccl;
  }
}

class NcclCommunicator final : public DeviceCommunicator {
 public:
  NcclCommunicator(std::shared_ptr<Device> device, std::shared_ptr<const NcclLibrary> library,
                   const NcclBootstrap& bootstrap, const NcclOptions& options)
      : DeviceCommunicator(std::move(device), options.waits),
        library_(std::move(library)),
        api_(library_->api()),
        bootstrap_(bootstrap) {}

  // Not in the constructor: what fails here ends in the destructor.
  void initialize(const nccl::UniqueId& id) {
    this->device()->make_current();
    nccl::Config config;
    config.blocking = 0;
    check(api_.CommInitRankConfig(&comm_, size(), id, rank(), &config), "ncclCommInitRankConfig");
    settle("ncclCommInitRankConfig");
  }

  void borrow(nccl::Comm* comm) {
    comm_ = comm;
    owned_ = false;
    int found_rank = -1;
    int found_size = -1;
    check(api_.CommUserRank(comm_, &found_rank), "ncclCommUserRank");
    check(api_.CommCount(comm_, &found_size), "ncclCommCount");
    GANTRY_CHECK(found_rank == rank() && found_size == size(), ErrorCode::kInvalidArgument,
                 "the ncclComm_t is that of rank {} of {}, expected rank {} of {}", found_rank,
                 found_size, rank(), size());
  }

  ~NcclCommunicator() override {
    if (comm_ == nullptr || !owned_) return;
    try {
      device()->make_current();
      end();
    } catch (const std::exception& error) {
      log(LogLevel::kError, "NCCL: rank {}: {}", rank(), error.what());
    }
  }

  [[nodiscard]] int rank() const noexcept override { return bootstrap_.rank; }
  [[nodiscard]] int size() const noexcept override { return bootstrap_.size; }
  [[nodiscard]] std::string description() const override { return library_->description(); }
  [[nodiscard]] bool waits() const noexcept override { return false; }

 private:
  void exchange(std::span<const SendPart> sends, std::span<const ReceivePart> receives,
                StreamHandle stream) override {
    if (sends.empty() && receives.empty()) return check_alive();
    enqueue(stream, [&] {
      for (const SendPart& part : sends) {
        if (part.data.empty()) continue;  // as on the side that receives it
        check(api_.Send(part.data.data(), part.data.size(), nccl::kInt8, part.peer, comm_, stream),
              "ncclSend");
      }
      for (const ReceivePart& part : receives) {
        if (part.data.empty()) continue;
        check(api_.Recv(part.data.data(), part.data.size(), nccl::kInt8, part.peer, comm_, stream),
              "ncclRecv");
      }
    });
  }

  bool gather_evenly(std::span<const std::byte> send, std::span<std::byte> receive,
                     StreamHandle stream) override {
    enqueue(stream, [&] {
      check(api_.AllGather(send.data(), receive.data(), send.size(), nccl::kInt8, comm_, stream),
            "ncclAllGather");
    });
    return true;
  }

  bool all_reduce_natively(std::span<float> data, StreamHandle stream) override {
    enqueue(stream, [&] {
      check(api_.AllReduce(data.data(), data.data(), data.size(), nccl::kFloat32, nccl::kSum, comm_,
                           stream),
            "ncclAllReduce");
    });
    return true;
  }

  // ncclReduceScatter knows equal parts only.
  bool reduce_scatter_natively(std::span<const float> send, std::span<float> receive,
                               std::span<const int64_t> counts, StreamHandle stream) override {
    enqueue(stream, [&] {
      const float* part = send.data();
      for (int root = 0; root < size(); ++root) {
        const auto count = static_cast<size_t>(counts[static_cast<size_t>(root)]);
        if (count > 0) {
          check(api_.Reduce(part, receive.data(), count, nccl::kFloat32, nccl::kSum, root, comm_,
                            stream),
                "ncclReduce");
        }
        part += count;
      }
    });
    return true;
  }

  template <typename Calls>
  void enqueue(StreamHandle stream, const Calls& calls) {
    check_alive();
    device()->make_current();
    device()->hand_over(stream);
    check(api_.GroupStart(), "ncclGroupStart");
    try {
      calls();
    } catch (...) {
      api_.GroupEnd();  // this thread would stay in the group
      throw;
    }
    check(api_.GroupEnd(), "ncclGroupEnd");
    settle(operation_name());
  }

  // Until NCCL has done what it was told, which for an operation is: put it on the stream.
  void settle(const char* what) {
    const auto end = Clock::now() + options().timeout;
    for (int polls = 0;; ++polls) {
      nccl::Result state = nccl::kSuccess;
      check(api_.CommGetAsyncError(comm_, &state), "ncclCommGetAsyncError");
      if (state != nccl::kInProgress) return check(state, what);
      if (polls % kPollsOfGroup == kPollsOfGroup - 1) look_around();
      if (Clock::now() > end) {
        fail_group(ErrorCode::kTimeout,
                   fmt::format("{} {}: rank {} of {}: not every rank came within {:.1f} s",
                               library_->description(), what, rank(), size(),
                               std::chrono::duration<double>(options().timeout).count()));
      }
      back_off(polls);
    }
  }

  void check(nccl::Result result, const char* what) {
    if (result == nccl::kSuccess || result == nccl::kInProgress) return;
    const char* more = comm_ == nullptr ? nullptr : api_.GetLastError(comm_);
    fail_group(
        code_of(result),
        fmt::format("{} {} on rank {} of {}: {}{}{}", library_->description(), what, rank(), size(),
                    api_.GetErrorString(result), more != nullptr && *more != '\0' ? ": " : "",
                    more != nullptr ? more : ""));
  }

  void check_alive() override {
    if (comm_ != nullptr) {
      nccl::Result state = nccl::kSuccess;
      check(api_.CommGetAsyncError(comm_, &state), "ncclCommGetAsyncError");
      check(state, operation_name());
    }
    look_around();
  }

  // Has this rank been told to stop, or another one failed?
  void look_around() {
    {
      const std::scoped_lock lock(mutex_);
      if (failed_) throw_aborted();
    }
    if (!bootstrap_.check_alive) return;
    try {
      bootstrap_.check_alive();
    } catch (const Error& error) {
      note_failure(error.what(), error.code());
    } catch (const std::exception& error) {
      note_failure(error.what(), ErrorCode::kInternal);
    }
    const std::scoped_lock lock(mutex_);
    if (failed_) throw_aborted();
  }

  void wake_all(const char* reason, ErrorCode code) noexcept override {
    if (!note_failure(reason, code)) return;
    try {
      if (bootstrap_.abort) bootstrap_.abort(reason, code);
    } catch (const std::exception& error) {
      log(LogLevel::kError, "NCCL: rank {}: the others were not told: {}", rank(), error.what());
    }
  }

  // This rank is the cause.
  [[noreturn]] void fail_group(ErrorCode code, const std::string& message) override {
    wake_all(message.c_str(), code);
    drop();
    fail_with(code, message);
  }

  // @return true for the first failure
  bool note_failure(const char* reason, ErrorCode code) noexcept {
    const std::scoped_lock lock(mutex_);
    if (failed_) return false;
    failed_ = true;
    code_ = code;
    try {
      reason_ = reason;
    } catch (...) {
      // Without memory for the reason the ranks still wake up.
    }
    return true;
  }

  [[noreturn]] void throw_aborted() {
    drop();
    throw GroupAborted(code_, fmt::format("NCCL: rank {} of {} was stopped during {}: {}", rank(),
                                          size(), operation_name(), reason_));
  }

  // Ends what is under way: kernels that wait for a rank that does not come would do so for ever.
  void drop() noexcept {
    nccl::Comm* comm = std::exchange(comm_, nullptr);
    if (comm == nullptr || !owned_) return;
    const nccl::Result result = api_.CommAbort(comm);
    if (result != nccl::kSuccess && result != nccl::kInProgress) {
      log(LogLevel::kError, "NCCL: rank {}: ncclCommAbort: {}", rank(),
          api_.GetErrorString(result));
    }
  }

  void end() {
    {
      const std::scoped_lock lock(mutex_);
      if (failed_) return drop();
    }
    const auto deadline = Clock::now() + std::min(kEndPatience, options().timeout);
    nccl::Result state = api_.CommFinalize(comm_);
    for (int polls = 0; state == nccl::kSuccess || state == nccl::kInProgress; ++polls) {
      nccl::Result now = nccl::kSuccess;
      state = api_.CommGetAsyncError(comm_, &now);
      if (state == nccl::kSuccess && now == nccl::kSuccess) {
        api_.CommDestroy(std::exchange(comm_, nullptr));
        return;
      }
      if (state == nccl::kSuccess) state = now;
      if (Clock::now() > deadline) break;
      back_off(polls);
    }
    log(LogLevel::kWarn, "NCCL: rank {} of {}: the communicator did not end: {}; aborted", rank(),
        size(), state == nccl::kInProgress ? "time-out" : api_.GetErrorString(state));
    drop();
  }

  std::shared_ptr<const NcclLibrary> library_;
  const nccl::Api& api_;
  NcclBootstrap bootstrap_;
  nccl::Comm* comm_ = nullptr;  // null once it is gone
  bool owned_ = true;
  std::mutex mutex_;
  bool failed_ = false;
  std::string reason_;
  ErrorCode code_ = ErrorCode::kInternal;
};

}  // namespace

NcclBootstrap bootstrap_over(Communicator& host) {
  return {.rank = host.rank(),
          .size = host.size(),
          .all_gather =
              [&host](std::span<const std::byte> own, std::span<std::byte> all) {
                host.all_gather(own, all,
                                std::vector<int64_t>(static_cast<size_t>(host.size()),
                                                     static_cast<int64_t>(own.size())));
              },
          .check_alive = [&host] { host.check_alive(); },
          .abort = [&host](const char* reason, ErrorCode code) { host.abort(reason, code); }};
}

std::unique_ptr<DeviceCommunicator> make_nccl_communicator(std::shared_ptr<Device> device,
                                                           const NcclBootstrap& bootstrap,
                                                           const NcclOptions& options) {
  device->make_current();
  NcclAgreement agreed = agree_on_nccl(bootstrap, options.library);
  auto communicator = std::make_unique<NcclCommunicator>(
      std::move(device), std::move(agreed.library), bootstrap, options);
  communicator->initialize(agreed.id);
  return communicator;
}

std::unique_ptr<DeviceCommunicator> wrap_nccl_communicator(std::shared_ptr<Device> device,
                                                           NcclHandle comm,
                                                           const NcclBootstrap& bootstrap,
                                                           const NcclOptions& options) {
  GANTRY_CHECK(comm != nullptr, ErrorCode::kInvalidArgument,
               "ncclComm_t: expected one, found null");
  auto communicator = std::make_unique<NcclCommunicator>(
      std::move(device), NcclLibrary::open(options.library), bootstrap, options);
  communicator->borrow(static_cast<nccl::Comm*>(comm));
  return communicator;
}

}  // namespace gantry
