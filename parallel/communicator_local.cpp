#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>
#include <string>
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
  const std::byte* data = nullptr;
  std::span<const int64_t> sizes;  // bytes for each rank, or of each rank
  size_t total = 0;
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

  // Returns when all ranks are here; throws on all of them once the group was aborted. A rank that
  // meets as a reader calls `finish_reading` afterwards.
  void meet(bool reads) {
    std::unique_lock lock(mutex_);
    check_alive();
    const uint64_t generation = generation_;
    arriving_readers_ += reads ? 1 : 0;
    if (++waiting_ == size_) {
      waiting_ = 0;
      readers_ = std::exchange(arriving_readers_, 0);
      ++generation_;
      everyone_.notify_all();
      return;
    }
    everyone_.wait(lock, [&] { return generation_ != generation || aborted_; });
    if (generation_ == generation) check_alive();
  }

  // Returns when all ranks that met as readers are done. Readers never wait for one another while
  // they read, so this ends even in an aborted group.
  void finish_reading() noexcept {
    std::unique_lock lock(mutex_);
    if (--readers_ == 0) everyone_.notify_all();
    everyone_.wait(lock, [&] { return readers_ == 0; });
  }

  void check_not_aborted() {
    const std::scoped_lock lock(mutex_);
    check_alive();
  }

  void abort(const char* reason) noexcept {
    const std::scoped_lock lock(mutex_);
    if (aborted_) return;
    aborted_ = true;
    try {
      reason_ = reason;
    } catch (...) {
      // Without memory for the reason the ranks still wake up.
    }
    everyone_.notify_all();
  }

 private:
  void check_alive() const {
    if (aborted_) throw GroupAborted(reason_);
  }

  const int size_;
  std::vector<Posting> postings_;
  std::mutex mutex_;
  std::condition_variable everyone_;
  int waiting_ = 0;
  int arriving_readers_ = 0;  // of the ranks that wait
  int readers_ = 0;           // of the last meeting, that still read
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
  void barrier() override { group_->meet(/*reads=*/false); }
  void abort(const char* reason) noexcept override { group_->abort(reason); }

  void all_gather(std::span<const std::byte> send, std::span<std::byte> receive,
                  std::span<const int64_t> receive_bytes) override {
    check_sizes("all_gather", receive_bytes, receive.size());
    require(send.size() == static_cast<size_t>(receive_bytes[static_cast<size_t>(rank_)]),
            fmt::format("all_gather: rank {} sends {} bytes, expected {}", rank_, send.size(),
                        receive_bytes[static_cast<size_t>(rank_)]));
    exchange({send.data(), receive_bytes, send.size()}, [&] {
      size_t offset = 0;
      for (int from = 0; from < size(); ++from) {
        const Posting& other = group_->posting(from);
        const auto bytes = static_cast<size_t>(receive_bytes[static_cast<size_t>(from)]);
        require(other.total == bytes,
                fmt::format("all_gather: rank {} sends {} bytes, rank {} expects {}", from,
                            other.total, rank_, bytes));
        if (bytes > 0) std::memcpy(receive.data() + offset, other.data, bytes);
        offset += bytes;
      }
    });
  }

  void broadcast(std::span<std::byte> data, int root) override {
    require(root >= 0 && root < size(), fmt::format("broadcast: root {} of {}", root, size()));
    exchange({data.data(), {}, data.size()}, [&] {
      const Posting& source = group_->posting(root);
      require(source.total == data.size(),
              fmt::format("broadcast: rank {} has {} bytes, root {} has {}", rank_, data.size(),
                          root, source.total));
      if (rank_ != root && !data.empty()) std::memcpy(data.data(), source.data, data.size());
    });
  }

  void all_reduce_sum(std::span<float> data) override {
    // Every rank sums everything in rank order, so all get the same bits.
    sum_.assign(data.size(), 0.0F);
    exchange({reinterpret_cast<const std::byte*>(data.data()), {}, data.size_bytes()}, [&] {
      for (int from = 0; from < size(); ++from) {
        const Posting& other = group_->posting(from);
        require(other.total == data.size_bytes(),
                fmt::format("all_reduce_sum: rank {} has {} bytes, rank {} has {}", rank_,
                            data.size_bytes(), from, other.total));
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
    exchange({send.data(), send_bytes, send.size()}, [&] {
      size_t offset = 0;
      for (int from = 0; from < size(); ++from) {
        const Posting& other = group_->posting(from);
        const auto bytes = static_cast<size_t>(receive_bytes[static_cast<size_t>(from)]);
        const auto sent = static_cast<size_t>(other.sizes[static_cast<size_t>(rank_)]);
        require(sent == bytes,
                fmt::format("all_to_all: rank {} sends {} bytes to rank {}, which expects {}", from,
                            sent, rank_, bytes));
        const auto before = other.sizes.first(static_cast<size_t>(rank_));
        const auto begin = std::accumulate(before.begin(), before.end(), int64_t{0});
        if (bytes > 0) std::memcpy(receive.data() + offset, other.data + begin, bytes);
        offset += bytes;
      }
    });
  }

 private:
  // A rank that finds a mistake takes the whole group down with it: peers never wait for ever.
  void require(bool condition, const std::string& message) {
    if (condition) return;
    group_->abort(message.c_str());
    fail_with(ErrorCode::kInvalidArgument, message);
  }

  void check_sizes(std::string_view what, std::span<const int64_t> sizes, size_t total) {
    require(sizes.size() == static_cast<size_t>(size()),
            fmt::format("{}: expected {} sizes, found {}", what, size(), sizes.size()));
    const bool negative = std::any_of(sizes.begin(), sizes.end(), [](int64_t s) { return s < 0; });
    const auto sum = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
    require(!negative && static_cast<size_t>(sum) == total,
            fmt::format("{}: sizes sum to {}, the buffer has {} bytes", what, sum, total));
  }

  // Shows `mine` to all ranks and calls `read` while everybody's posting stands.
  template <typename Read>
  void exchange(const Posting& mine, Read read) {
    group_->posting(rank_) = mine;
    group_->meet(/*reads=*/true);
    try {
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
      group->abort(fmt::format("rank {} failed: {}", rank, what).c_str());
    };
    try {
      body(communicator);
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
    std::vector<std::thread> threads;
    threads.reserve(static_cast<size_t>(num_ranks));
    for (int rank = 0; rank < num_ranks; ++rank)
      threads.emplace_back(run, rank);
    for (std::thread& thread : threads)
      thread.join();
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
