#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/base/check.h"
#include "parallel/communicator.h"

// Ranks as threads of one process. Every collective is: post pointers, meet, copy what the others
// posted, wait until all have copied. That last wait holds even when the group fails meanwhile: a
// rank that left early would take its memory along while others still read it.

namespace gantry {
namespace {

// What a rank shows to the others during one collective.
struct Posting {
  std::string_view operation;
  const std::byte* data = nullptr;
  size_t total = 0;
  std::span<const int64_t> sizes = {};  // bytes for each rank, where they differ
  int root = 0;
};

// What a rank is woken with when another one failed. A type of its own, so that `run_local_ranks`
// can tell a cause from its consequences.
class GroupAborted : public Error {
 public:
  explicit GroupAborted(const std::string& reason)
      : Error(ErrorCode::kInternal, "the rank group was aborted: " + reason) {}
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
    if (left_ >= 0) abort_as(left_, kReturned);
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

  void abort(int rank, const char* reason) noexcept {
    const std::scoped_lock lock(mutex_);
    abort_as(rank, reason);
  }

  // `rank` takes part in nothing any more: who waits for it would do so for ever.
  void leave(int rank) noexcept {
    const std::scoped_lock lock(mutex_);
    if (left_ < 0) left_ = rank;
    if (waiting_ > 0) abort_as(rank, kReturned);
  }

 private:
  static constexpr const char* kReturned = "it returned while others wait for it";

  void abort_as(int rank, const char* reason) noexcept {
    if (aborted_) return;
    aborted_ = true;
    try {
      reason_ = fmt::format("rank {} failed: {}", rank, reason);
    } catch (...) {
      // Without memory for the reason the ranks still wake up.
    }
    everyone_.notify_all();
  }

  void check_alive() const {
    if (aborted_) throw GroupAborted(reason_);
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
};

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<LocalGroup> group, int rank)
      : group_(std::move(group)), rank_(rank) {}

  [[nodiscard]] int rank() const noexcept override { return rank_; }
  [[nodiscard]] int size() const noexcept override { return group_->size(); }
  void abort(const char* reason) noexcept override { group_->abort(rank_, reason); }

  void barrier() override {
    exchange({.operation = "barrier"}, [] {});
  }

  void all_gather(std::span<const std::byte> send, std::span<std::byte> receive,
                  std::span<const int64_t> receive_bytes) override {
    check_sizes("all_gather", receive_bytes, receive.size());
    require(send.size() == static_cast<size_t>(receive_bytes[static_cast<size_t>(rank_)]),
            "all_gather: rank {} sends {} bytes, expected {}", rank_, send.size(),
            receive_bytes[static_cast<size_t>(rank_)]);
    exchange({.operation = "all_gather", .data = send.data(), .total = send.size()}, [&] {
      size_t offset = 0;
      for (int from = 0; from < size(); ++from) {
        const Posting& other = group_->posting(from);
        const auto bytes = static_cast<size_t>(receive_bytes[static_cast<size_t>(from)]);
        require(other.total == bytes, "all_gather: rank {} sends {} bytes, rank {} expects {}",
                from, other.total, rank_, bytes);
        if (bytes > 0) std::memcpy(receive.data() + offset, other.data, bytes);
        offset += bytes;
      }
    });
  }

  void broadcast(std::span<std::byte> data, int root) override {
    require(root >= 0 && root < size(), "broadcast: root {} of {}", root, size());
    const Posting mine{
        .operation = "broadcast", .data = data.data(), .total = data.size(), .root = root};
    exchange(mine, [&] {
      const Posting& source = group_->posting(root);
      require(source.total == data.size(), "broadcast: rank {} has {} bytes, root {} has {}", rank_,
              data.size(), root, source.total);
      if (rank_ != root && !data.empty()) std::memcpy(data.data(), source.data, data.size());
    });
  }

  void all_reduce_sum(std::span<float> data) override {
    // Every rank sums everything in rank order, so all get the same bits.
    sum_.assign(data.size(), 0.0F);
    const Posting mine{.operation = "all_reduce_sum",
                       .data = std::as_bytes(data).data(),
                       .total = data.size_bytes()};
    exchange(mine, [&] {
      for (int from = 0; from < size(); ++from) {
        const Posting& other = group_->posting(from);
        require(other.total == data.size_bytes(),
                "all_reduce_sum: rank {} has {} bytes, rank {} has {}", rank_, data.size_bytes(),
                from, other.total);
        const auto* values = reinterpret_cast<const float*>(other.data);
        if (from == 0) {
          std::copy_n(values, data.size(), sum_.begin());
        } else {
          for (size_t i = 0; i < data.size(); ++i)
            sum_[i] += values[i];
        }
      }
    });
    std::copy(sum_.begin(), sum_.end(), data.begin());
  }

  void all_to_all(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                  std::span<std::byte> receive, std::span<const int64_t> receive_bytes) override {
    check_sizes("all_to_all (send)", send_bytes, send.size());
    check_sizes("all_to_all (receive)", receive_bytes, receive.size());
    const Posting mine{
        .operation = "all_to_all", .data = send.data(), .total = send.size(), .sizes = send_bytes};
    exchange(mine, [&] {
      size_t offset = 0;
      for (int from = 0; from < size(); ++from) {
        const Posting& other = group_->posting(from);
        const auto bytes = static_cast<size_t>(receive_bytes[static_cast<size_t>(from)]);
        const auto sent = static_cast<size_t>(other.sizes[static_cast<size_t>(rank_)]);
        require(sent == bytes, "all_to_all: rank {} sends {} bytes to rank {}, which expects {}",
                from, sent, rank_, bytes);
        const auto before = other.sizes.first(static_cast<size_t>(rank_));
        const auto begin = std::accumulate(before.begin(), before.end(), int64_t{0});
        if (bytes > 0) std::memcpy(receive.data() + offset, other.data + begin, bytes);
        offset += bytes;
      }
    });
  }

 private:
  // A rank that finds a mistake takes the whole group down with it: peers never wait for ever.
  template <typename... Args>
  void require(bool condition, fmt::format_string<Args...> format, Args&&... args) {
    if (condition) return;
    const std::string message = fmt::format(format, std::forward<Args>(args)...);
    group_->abort(rank_, message.c_str());
    fail_with(ErrorCode::kInvalidArgument, message);
  }

  void check_sizes(std::string_view what, std::span<const int64_t> sizes, size_t total) {
    require(sizes.size() == static_cast<size_t>(size()), "{}: expected {} sizes, found {}", what,
            size(), sizes.size());
    // Subtracted, not added: a sum of any sizes could overflow.
    size_t rest = total;
    for (const int64_t bytes : sizes) {
      const bool fits = bytes >= 0 && static_cast<size_t>(bytes) <= rest;
      require(fits, "{}: a size of {} does not fit, the buffer has {} bytes", what, bytes, total);
      rest -= static_cast<size_t>(bytes);
    }
    require(rest == 0, "{}: sizes sum to {}, the buffer has {} bytes", what, total - rest, total);
  }

  void check_same_operation(const Posting& mine) {
    for (int from = 0; from < size(); ++from) {
      const Posting& other = group_->posting(from);
      require(other.operation == mine.operation && other.root == mine.root,
              "ranks disagree: rank {} is in {} (root {}), rank {} in {} (root {})", rank_,
              mine.operation, mine.root, from, other.operation, other.root);
    }
  }

  // Shows `mine` to all ranks and calls `read` while everybody's posting stands.
  template <typename Read>
  void exchange(const Posting& mine, Read read) {
    group_->posting(rank_) = mine;
    group_->meet();
    try {
      check_same_operation(mine);
      read();
    } catch (...) {
      group_->finish_reading();
      throw;
    }
    group_->finish_reading();
    group_->check_not_aborted();
  }

  std::shared_ptr<LocalGroup> group_;
  int rank_;
  std::vector<float> sum_;
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
    const auto note_failure = [&](const char* what) {
      errors[static_cast<size_t>(rank)] = std::current_exception();
      is_cause[static_cast<size_t>(rank)] = 1;
      group->abort(rank, what);
    };
    try {
      body(communicator);
      group->leave(rank);
    } catch (const GroupAborted&) {
      errors[static_cast<size_t>(rank)] = std::current_exception();
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
      group->abort(static_cast<int>(threads.size()), error.what());
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
