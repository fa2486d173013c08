#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/base/check.h"
#include "parallel/communicator.h"

// Ranks as threads of one process. Every exchange is: post what is sent, meet, copy what the others
// posted, wait until all have copied. That last wait holds even when the group fails meanwhile: a
// rank that left early would take its memory along while others still read it.

namespace gantry {
namespace {

// What a rank shows to the others during one exchange.
struct Posting {
  std::string_view operation;
  int root = 0;
  std::span<const SendPart> sends = {};
};

class LocalGroup {
 public:
  explicit LocalGroup(int size) : size_(size), postings_(static_cast<size_t>(size)) {}

  [[nodiscard]] int size() const noexcept { return size_; }
  Posting& posting(int rank) { return postings_[static_cast<size_t>(rank)]; }

  // Returns when all ranks are here, each of which then calls `finish_reading`. Throws on all of
  // them once the group was aborted.
  void meet() {
    std::unique_lock lock(mutex_);
    if (left_ >= 0) abort_as(left_, kReturned, ErrorCode::kInternal);
    check_alive();
    const uint64_t generation = generation_;
    if (++waiting_ == size_) {
      waiting_ = 0;
      readers_ = size_;
      ++generation_;
      everyone_.notify_all();
      return;
    }
    everyone_.wait(lock, [&] { return generation_ != generation || aborted_; });
    if (generation_ == generation) check_alive();
  }

  // Returns when all ranks have read. They never wait for one another while they read, so this ends
  // even in an aborted group.
  void finish_reading() noexcept {
    std::unique_lock lock(mutex_);
    if (--readers_ == 0) everyone_.notify_all();
    everyone_.wait(lock, [&] { return readers_ == 0; });
  }

  void check_not_aborted() {
    const std::scoped_lock lock(mutex_);
    check_alive();
  }

  void abort(int rank, const char* reason, ErrorCode code) noexcept {
    const std::scoped_lock lock(mutex_);
    abort_as(rank, reason, code);
  }

  // `rank` takes part in nothing any more: who waits for it would do so for ever.
  void leave(int rank) noexcept {
    const std::scoped_lock lock(mutex_);
    if (left_ < 0) left_ = rank;
    if (waiting_ > 0) abort_as(rank, kReturned, ErrorCode::kInternal);
  }

 private:
  static constexpr const char* kReturned = "it returned while others wait for it";

  void abort_as(int rank, const char* reason, ErrorCode code) noexcept {
    if (aborted_) return;
    aborted_ = true;
    code_ = code;
    try {
      reason_ = fmt::format("the rank group was aborted: rank {} failed: {}", rank, reason);
    } catch (...) {
      // Without memory for the reason the ranks still wake up.
    }
    everyone_.notify_all();
  }

  void check_alive() const {
    if (aborted_) throw GroupAborted(code_, reason_);
  }

  const int size_;
  std::vector<Posting> postings_;
  std::mutex mutex_;
  std::condition_variable everyone_;
  int waiting_ = 0;
  int readers_ = 0;  // of the last meeting, that still read
  int left_ = -1;    // the first rank that returned
  uint64_t generation_ = 0;
  bool aborted_ = false;
  std::string reason_;
  ErrorCode code_ = ErrorCode::kInternal;
};

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<LocalGroup> group, int rank)
      : group_(std::move(group)), rank_(rank) {}

  [[nodiscard]] int rank() const noexcept override { return rank_; }
  [[nodiscard]] int size() const noexcept override { return group_->size(); }

 private:
  void wake_all(const char* reason, ErrorCode code) noexcept override {
    group_->abort(rank_, reason, code);
  }

  void look_for_news() override { group_->check_not_aborted(); }

  void exchange(const Operation& operation, std::span<const SendPart> sends,
                std::span<const ReceivePart> receives) override {
    const Posting mine{.operation = operation.name, .root = operation.root, .sends = sends};
    group_->posting(rank_) = mine;
    group_->meet();
    try {
      for (int from = 0; from < size(); ++from) {
        if (from != rank_) copy_from(from, mine, receives);
      }
    } catch (...) {
      group_->finish_reading();
      throw;
    }
    group_->finish_reading();
    group_->check_not_aborted();
  }

  void copy_from(int from, const Posting& mine, std::span<const ReceivePart> receives) {
    const Posting& other = group_->posting(from);
    if (other.operation != mine.operation || other.root != mine.root) {
      refuse(fmt::format("ranks disagree: rank {} is in {} (root {}), rank {} in {} (root {})",
                         rank_, mine.operation, mine.root, from, other.operation, other.root));
    }
    auto sent = other.sends.begin();
    const auto next_sent = [&] {
      sent = std::find_if(sent, other.sends.end(),
                          [&](const SendPart& part) { return part.peer == rank_; });
      return sent != other.sends.end();
    };
    for (const ReceivePart& part : receives) {
      if (part.peer != from) continue;
      if (!next_sent()) {
        refuse(fmt::format("{}: rank {} expects {} bytes of rank {}, which sends none",
                           mine.operation, rank_, part.data.size(), from));
      }
      if (sent->data.size() != part.data.size()) {
        refuse(fmt::format("{}: rank {} sends {} bytes to rank {}, which expects {}",
                           mine.operation, from, sent->data.size(), rank_, part.data.size()));
      }
      if (!part.data.empty()) std::memcpy(part.data.data(), sent->data.data(), part.data.size());
      ++sent;
    }
    if (next_sent()) {
      refuse(fmt::format("{}: rank {} sends {} bytes to rank {}, which expects none",
                         mine.operation, from, sent->data.size(), rank_));
    }
  }

  std::shared_ptr<LocalGroup> group_;
  int rank_;
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator() {
  return std::make_unique<LocalCommunicator>(std::make_shared<LocalGroup>(1), 0);
}

void run_local_ranks(int num_ranks, const std::function<void(Communicator& communicator)>& body) {
  GANTRY_CHECK(num_ranks >= 1, ErrorCode::kInvalidArgument,
               "run_local_ranks: expected at least 1 rank, found {}", num_ranks);
  const auto group = std::make_shared<LocalGroup>(num_ranks);
  std::vector<std::exception_ptr> errors(static_cast<size_t>(num_ranks));
  std::vector<char> is_cause(static_cast<size_t>(num_ranks), 0);
  const auto run = [&](int rank) {
    LocalCommunicator communicator(group, rank);
    const auto note_failure = [&](const char* what, ErrorCode code = ErrorCode::kInternal) {
      errors[static_cast<size_t>(rank)] = std::current_exception();
      is_cause[static_cast<size_t>(rank)] = 1;
      group->abort(rank, what, code);
    };
    try {
      body(communicator);
      group->leave(rank);
    } catch (const GroupAborted&) {
      errors[static_cast<size_t>(rank)] = std::current_exception();
    } catch (const Error& error) {
      note_failure(error.what(), error.code());
    } catch (const std::exception& error) {
      note_failure(error.what());
    } catch (...) {
      note_failure("unknown exception");
    }
  };
  if (num_ranks == 1) {
    run(0);
  } else {
    std::vector<std::jthread> threads;  // joins also when not all of them can be started
    threads.reserve(static_cast<size_t>(num_ranks));
    try {
      for (int rank = 0; rank < num_ranks; ++rank)
        threads.emplace_back(run, rank);
    } catch (const std::exception& error) {
      group->abort(static_cast<int>(threads.size()), error.what(), ErrorCode::kInternal);
      throw;
    }
  }
  // The cause before its consequences.
  for (const bool causes_only : {true, false}) {
    for (size_t rank = 0; rank < errors.size(); ++rank) {
      if (errors[rank] && (!causes_only || is_cause[rank] != 0)) {
        std::rethrow_exception(errors[rank]);
      }
    }
  }
}

}  // namespace gantry
