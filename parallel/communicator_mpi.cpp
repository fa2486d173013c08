#include "parallel/communicator_mpi.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <string_view>
#include <thread>
#include <utility>

#include "parallel/back_off.h"
#include "parallel/mpi_control.h"
#include "parallel/mpi_link.h"

// An exchange posts everything at once and polls until it is there: for each peer one frame (what
// this rank is doing, how much it sends, and small payloads themselves) and the parts as they lie
// in memory. A rank that fails tells the others over the control channel, which every rank polls
// while it waits.

namespace gantry {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kFrameTag = 1;
constexpr int kPartTag = 2;
constexpr size_t kPieceBytes = size_t{64} << 20;  // of a part; each that completes is progress
constexpr size_t kPieceFloats = kPieceBytes / sizeof(float);
constexpr std::chrono::milliseconds kTellPatience{500};
constexpr std::chrono::milliseconds kGoodbyePatience{5000};

struct PeerTotals {
  int64_t bytes = 0;
  int64_t parts = 0;
};

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(MPI_Comm comm, const CommunicatorOptions& options, bool any_thread)
      : options_(options), any_thread_(any_thread), link_(std::make_unique<MpiLink>()) {
    link_->comm = comm;
    check_mpi(MPI_Comm_rank(comm, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(comm, &size_), "MPI_Comm_size");
    link_->control = std::make_unique<MpiControl>(comm, rank_, size_);
    link_->sent.resize(static_cast<size_t>(size_));
    link_->received.resize(static_cast<size_t>(size_));
    to_.resize(static_cast<size_t>(size_));
    from_.resize(static_cast<size_t>(size_));
  }

  ~MpiCommunicator() override {
    const std::scoped_lock lock(mutex_);
    int ended = 0;
    MPI_Finalized(&ended);
    if (ended == 0 && !failed_ && say_goodbye()) {
      link_->control->close();
      MPI_Comm_free(&link_->comm);
    } else {
      leave_behind(std::move(link_));
    }
  }

  [[nodiscard]] int rank() const noexcept override { return rank_; }
  [[nodiscard]] int size() const noexcept override { return size_; }
  [[nodiscard]] bool has_native_reduction() const noexcept override { return true; }

 private:
  void exchange(const Operation& operation, std::span<const SendPart> sends,
                std::span<const ReceivePart> receives) override {
    {
      const std::scoped_lock lock(mutex_);
      begin(operation, sends, receives);
    }
    wait(operation);
    deliver(receives);
  }

  bool reduce_natively(const Operation& operation, std::span<float> data) override {
    {
      const std::scoped_lock lock(mutex_);
      begin(operation, {}, {});
      for (size_t done = 0; done < data.size(); done += kPieceFloats) {
        const auto count = static_cast<int>(std::min(kPieceFloats, data.size() - done));
        call(MPI_Iallreduce(MPI_IN_PLACE, data.data() + done, count, MPI_FLOAT, MPI_SUM,
                            link_->comm, link_->add({.kind = Pending::kReduction})),
             "MPI_Iallreduce");
      }
    }
    wait(operation);
    return true;
  }

  // A reduction to each rank, all under way at once, in pieces that fit MPI's counts. (Open MPI's
  // non-blocking MPI_Ireduce_scatter would take everything to rank 0 first.)
  void reduce_scatter_natively(const Operation& operation, std::span<const float> send,
                               std::span<float> receive, std::span<const int64_t> counts) override {
    {
      const std::scoped_lock lock(mutex_);
      begin(operation, {}, {});
      size_t first = 0;
      for (int root = 0; root < size_; ++root) {
        const auto count = static_cast<size_t>(counts[static_cast<size_t>(root)]);
        for (size_t done = 0; done < count; done += kPieceFloats) {
          const auto piece = static_cast<int>(std::min(kPieceFloats, count - done));
          float* const to = root == rank_ ? receive.data() + done : nullptr;
          call(MPI_Ireduce(send.data() + first + done, to, piece, MPI_FLOAT, MPI_SUM, root,
                           link_->comm, link_->add({.kind = Pending::kReduction})),
               "MPI_Ireduce");
        }
        first += count;
      }
    }
    wait(operation);
  }

  void look_for_news() override {
    const std::scoped_lock lock(mutex_);
    if (failed_) throw_aborted();  // by another thread of this rank
    check_control();
  }

  void wake_all(const char* reason, ErrorCode code) noexcept override {
    const std::scoped_lock lock(mutex_);
    if (failed_) return;
    note_failure(rank_, reason, code);
    if (any_thread_ || std::this_thread::get_id() == owner_) tell_failure();
  }

  // ---- all below with the mutex held
  // -------------------------------------------------------------

  void note_failure(int cause, std::string_view reason, ErrorCode code) noexcept {
    failed_ = true;
    told_ = cause != rank_;
    code_ = code;
    try {
      reason_ = fmt::format("rank {} failed: {}", cause, reason);
    } catch (...) {
      // Without memory for the reason the ranks still wake up.
    }
  }

  void tell_failure() noexcept {
    if (told_) return;
    told_ = true;
    ControlMessage message{.kind = ControlMessage::kAbort, .code = code_, .operations = 0};
    std::strncpy(message.reason.data(), reason_.c_str(), message.reason.size() - 1);
    link_->control->send_to_all(message, kTellPatience);
  }

  [[noreturn]] void throw_aborted() {
    tell_failure();
    link_->cancel();
    throw GroupAborted(code_, fmt::format("the rank group was aborted: {}", reason_));
  }

  // This rank is the cause.
  [[noreturn]] void fail_group(ErrorCode code, const std::string& message) {
    if (!failed_) note_failure(rank_, message, code);
    tell_failure();
    link_->cancel();
    throw Error(code, message);
  }

  void call(int code, const char* name) {
    try {
      check_mpi(code, name);
    } catch (const Error& error) {
      fail_group(error.code(), error.what());
    }
  }

  void begin(const Operation& operation, std::span<const SendPart> sends,
             std::span<const ReceivePart> receives) {
    if (failed_) throw_aborted();
    link_->requests.clear();
    link_->pending.clear();
    check_control();
    ++sequence_;
    total(sends, to_);
    total(receives, from_);
    for (int peer = 0; peer < size_; ++peer) {
      if (peer == rank_) continue;
      call(MPI_Irecv(&link_->received[static_cast<size_t>(peer)], Frame::kBytes, MPI_BYTE, peer,
                     kFrameTag, link_->comm, link_->add({Pending::kFrame, peer})),
           "MPI_Irecv");
    }
    for (const ReceivePart& part : receives) {
      if (travels_inline(from_, part.peer)) continue;
      for_each_piece(part.data, [&](std::span<std::byte> piece) {
        const auto bytes = static_cast<int>(piece.size());
        call(MPI_Irecv(piece.data(), bytes, MPI_BYTE, part.peer, kPartTag, link_->comm,
                       link_->add({Pending::kPart, part.peer, bytes})),
             "MPI_Irecv");
      });
    }
    // Rank 1 starts with rank 2 and so on, or all would start with rank 0.
    for (int step = 1; step < size_; ++step)
      send_frame(operation, (rank_ + step) % size_, sends);
    for (const SendPart& part : sends) {
      if (travels_inline(to_, part.peer)) continue;
      for_each_piece(part.data, [&](std::span<const std::byte> piece) {
        call(MPI_Isend(piece.data(), static_cast<int>(piece.size()), MPI_BYTE, part.peer, kPartTag,
                       link_->comm, link_->add({Pending::kSend, part.peer})),
             "MPI_Isend");
      });
    }
  }

  template <typename Part>
  static void total(std::span<const Part> parts, std::vector<PeerTotals>& totals) {
    std::fill(totals.begin(), totals.end(), PeerTotals{});
    for (const Part& part : parts) {
      PeerTotals& peer = totals[static_cast<size_t>(part.peer)];
      peer.bytes += static_cast<int64_t>(part.data.size());
      ++peer.parts;
    }
  }

  static bool travels_inline(const std::vector<PeerTotals>& totals, int peer) {
    return totals[static_cast<size_t>(peer)].bytes <= static_cast<int64_t>(Frame::kInlineBytes);
  }

  template <typename Byte, typename Visit>
  static void for_each_piece(std::span<Byte> data, Visit visit) {
    for (size_t done = 0; done < data.size(); done += kPieceBytes)
      visit(data.subspan(done, std::min(kPieceBytes, data.size() - done)));
  }

  void send_frame(const Operation& operation, int peer, std::span<const SendPart> sends) {
    Frame& frame = link_->sent[static_cast<size_t>(peer)];
    const PeerTotals& totals = to_[static_cast<size_t>(peer)];
    frame.header = {.root = operation.root,
                    .sequence = sequence_,
                    .bytes = totals.bytes,
                    .parts = totals.parts};
    std::strncpy(frame.header.operation.data(), operation.name, frame.header.operation.size() - 1);
    size_t used = 0;
    if (travels_inline(to_, peer)) {
      for (const SendPart& part : sends) {
        if (part.peer != peer || part.data.empty()) continue;
        std::memcpy(frame.payload.data() + used, part.data.data(), part.data.size());
        used += part.data.size();
      }
    }
    call(MPI_Isend(&frame, static_cast<int>(sizeof(FrameHeader) + used), MPI_BYTE, peer, kFrameTag,
                   link_->comm, link_->add({Pending::kSend, peer})),
         "MPI_Isend");
  }

  void wait(const Operation& operation) {
    auto last_progress = Clock::now();
    int idle_polls = 0;
    for (;;) {
      beat();
      bool progress = false;
      {
        const std::scoped_lock lock(mutex_);
        if (poll(operation, progress)) return;
        if (!progress && Clock::now() - last_progress > options_.timeout) time_out(operation);
      }
      if (progress) {
        last_progress = Clock::now();
        idle_polls = 0;
      } else {
        back_off(idle_polls++);
      }
    }
  }

  // @return true when everything is done
  bool poll(const Operation& operation, bool& progress) {
    if (failed_) throw_aborted();  // by another thread of this rank
    finish_some(operation, progress);
    if (link_->all_done()) return true;
    check_control();
    check_nobody_left(operation);
    return false;
  }

  void check_control() {
    std::optional<ControlMessage> message;
    try {
      message = link_->control->poll();
    } catch (const Error& error) {
      fail_group(error.code(), error.what());
    }
    if (!message) return;
    failed_ = told_ = true;
    code_ = message->code;
    reason_ = message->reason.data();
    throw_aborted();
  }

  void finish_some(const Operation& operation, bool& progress) {
    const auto count = link_->requests.size();
    done_.resize(count);
    statuses_.resize(count);
    int num_done = 0;
    const int code = MPI_Testsome(static_cast<int>(count), link_->requests.data(), &num_done,
                                  done_.data(), statuses_.data());
    if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) call(code, "MPI_Testsome");
    if (num_done == MPI_UNDEFINED) return;
    progress = num_done > 0;
    // Frames first: they say what is wrong where a part does not fit.
    for (const bool frames : {true, false}) {
      for (int i = 0; i < num_done; ++i) {
        const Pending& pending = link_->pending[static_cast<size_t>(done_[static_cast<size_t>(i)])];
        if ((pending.kind == Pending::kFrame) != frames) continue;
        const MPI_Status& status = statuses_[static_cast<size_t>(i)];
        const int error = code == MPI_ERR_IN_STATUS ? status.MPI_ERROR : MPI_SUCCESS;
        check_done(operation, pending, status, error);
      }
    }
  }

  void check_done(const Operation& operation, const Pending& pending, const MPI_Status& status,
                  int error) {
    if (pending.kind == Pending::kPart) {
      int bytes = 0;
      MPI_Get_count(&status, MPI_BYTE, &bytes);
      if (error == MPI_ERR_TRUNCATE || (error == MPI_SUCCESS && bytes != pending.bytes)) {
        fail_group(ErrorCode::kInvalidArgument,
                   fmt::format("{}: rank {} sends parts of other sizes than rank {} expects",
                               operation.name, pending.peer, rank_));
      }
    }
    call(error, operation.name);
    if (pending.kind == Pending::kFrame) check_frame(operation, pending.peer);
  }

  void check_frame(const Operation& operation, int peer) {
    const FrameHeader& header = link_->received[static_cast<size_t>(peer)].header;
    const std::string_view theirs(header.operation.data(),
                                  strnlen(header.operation.data(), header.operation.size()));
    if (header.magic != FrameHeader::kMagic || theirs != operation.name ||
        header.root != operation.root || header.sequence != sequence_) {
      fail_group(ErrorCode::kInvalidArgument,
                 fmt::format("ranks disagree: rank {} is in {} (root {}, operation {}), rank {} in "
                             "{} (root {}, operation {})",
                             rank_, operation.name, operation.root, sequence_, peer, theirs,
                             header.root, header.sequence));
    }
    const PeerTotals& expected = from_[static_cast<size_t>(peer)];
    if (header.bytes != expected.bytes || header.parts != expected.parts) {
      fail_group(ErrorCode::kInvalidArgument,
                 fmt::format("{}: rank {} sends {} bytes in {} part(s) to rank {}, which expects "
                             "{} in {}",
                             operation.name, peer, header.bytes, header.parts, rank_,
                             expected.bytes, expected.parts));
    }
  }

  // Small parts arrive one behind the other in the frames.
  void deliver(std::span<const ReceivePart> receives) {
    used_.assign(static_cast<size_t>(size_), 0);
    for (const ReceivePart& part : receives) {
      if (!travels_inline(from_, part.peer) || part.data.empty()) continue;
      const auto peer = static_cast<size_t>(part.peer);
      std::memcpy(part.data.data(), link_->received[peer].payload.data() + used_[peer],
                  part.data.size());
      used_[peer] += part.data.size();
    }
  }

  void check_nobody_left(const Operation& operation) {
    for (const int peer : link_->silent_peers()) {
      const int64_t before = link_->control->operations_before_leaving(peer);
      if (before < 0 || before >= sequence_) continue;
      fail_group(
          ErrorCode::kInternal,
          fmt::format("rank {} returned while others wait for it in {}", peer, operation.name));
    }
  }

  [[noreturn]] void time_out(const Operation& operation) {
    std::string names;
    for (const int peer : link_->silent_peers())
      names += fmt::format("{}{}", names.empty() ? "" : ", ", peer);
    fail_group(ErrorCode::kTimeout,
               fmt::format("{} (operation {}): nothing came from rank(s) {} for {:.1f} s: stopped, "
                           "or not in this operation",
                           operation.name, sequence_, names,
                           std::chrono::duration<double>(options_.timeout).count()));
  }

  // @return true if every other rank said goodbye, too: then nothing is under way any more
  bool say_goodbye() noexcept {
    ControlMessage message{
        .kind = ControlMessage::kLeave, .code = ErrorCode::kInternal, .operations = sequence_};
    link_->control->send_to_all(message, kTellPatience);
    const auto patience =
        std::min<Clock::duration>(std::chrono::milliseconds(options_.timeout), kGoodbyePatience);
    const auto end = Clock::now() + patience;
    try {
      for (int idle_polls = 0; !link_->control->all_others_left(); ++idle_polls) {
        if (link_->control->poll() || Clock::now() > end) return false;
        back_off(idle_polls);
      }
    } catch (...) {
      return false;
    }
    return true;
  }

  const CommunicatorOptions options_;
  const bool any_thread_;  // MPI may be called from any thread, one at a time
  const std::thread::id owner_ = std::this_thread::get_id();
  int rank_ = 0;
  int size_ = 1;
  std::mutex mutex_;  // of everything below, and of calls to MPI
  std::unique_ptr<MpiLink> link_;
  int64_t sequence_ = 0;  // operations that this rank has begun
  std::vector<PeerTotals> to_;
  std::vector<PeerTotals> from_;
  std::vector<size_t> used_;
  std::vector<int> done_;
  std::vector<MPI_Status> statuses_;
  bool failed_ = false;
  bool told_ = false;  // the other ranks know
  ErrorCode code_ = ErrorCode::kInternal;
  std::string reason_;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm comm,
                                                    const CommunicatorOptions& options) {
  int running = 0;
  int ended = 0;
  MPI_Initialized(&running);
  MPI_Finalized(&ended);
  if (running == 0 || ended != 0) {
    throw Error(ErrorCode::kInvalidArgument, "MPI communicator: MPI is not running");
  }
  int inter = 0;
  check_mpi(MPI_Comm_test_inter(comm, &inter), "MPI_Comm_test_inter");
  if (inter != 0) {
    throw Error(ErrorCode::kInvalidArgument,
                "MPI communicator: expected an intracommunicator, found an intercommunicator");
  }
  int level = MPI_THREAD_SINGLE;
  check_mpi(MPI_Query_thread(&level), "MPI_Query_thread");
  return std::make_unique<MpiCommunicator>(duplicate(comm, options), options,
                                           level >= MPI_THREAD_SERIALIZED);
}

}  // namespace gantry
