#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "kernels/base/check.h"
#include "parallel/communicator.h"

// Ranks as threads of one process. Every collective is: post pointers, meet, copy what the others
// posted, meet again (so that nobody's memory goes away while it is read).

namespace gantry {
namespace {

// What a rank shows to the others during one collective.
struct Posting {
  const std::byte* data = nullptr;
  std::span<const int64_t> sizes;  // bytes for each rank, or of each rank
  size_t total = 0;
};

class LocalGroup {
 public:
  explicit LocalGroup(int size) : size_(size), postings_(static_cast<size_t>(size)) {}

  [[nodiscard]] int size() const noexcept { return size_; }
  Posting& posting(int rank) { return postings_[static_cast<size_t>(rank)]; }

  // Returns when all ranks are here; throws on all of them once the group was aborted.
  void meet() {
    std::unique_lock lock(mutex_);
    check_alive();
    const uint64_t generation = generation_;
    if (++waiting_ == size_) {
      waiting_ = 0;
      ++generation_;
      everyone_.notify_all();
      return;
    }
    everyone_.wait(lock, [&] { return generation_ != generation || aborted_; });
    if (generation_ == generation) check_alive();
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

  [[nodiscard]] bool aborted() {
    const std::scoped_lock lock(mutex_);
    return aborted_;
  }

 private:
  void check_alive() const {
    GANTRY_CHECK(!aborted_, ErrorCode::kInternal, "the rank group was aborted: {}", reason_);
  }

  const int size_;
  std::vector<Posting> postings_;
  std::mutex mutex_;
  std::condition_variable everyone_;
  int waiting_ = 0;
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
  void barrier() override { group_->meet(); }
  void abort(const char* reason) noexcept override { group_->abort(reason); }

  void all_gather(std::span<const std::byte> send, std::span<std::byte> receive,
                  std::span<const int64_t> receive_bytes) override {
    check_sizes("all_gather", receive_bytes, receive.size());
    require(send.size() == static_cast<size_t>(receive_bytes[static_cast<size_t>(rank_)]),
            fmt::format("all_gather: rank {} sends {} bytes, expected {}", rank_, send.size(),
                        receive_bytes[static_cast<size_t>(rank_)]));
    post(send.data(), receive_bytes, send.size());
    group_->meet();
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
    group_->meet();
  }

  void broadcast(std::span<std::byte> data, int root) override {
    require(root >= 0 && root < size(), fmt::format("broadcast: root {} of {}", root, size()));
    post(data.data(), {}, data.size());
    group_->meet();
    const Posting& source = group_->posting(root);
    require(source.total == data.size(),
            fmt::format("broadcast: rank {} has {} bytes, root {} has {}", rank_, data.size(), root,
                        source.total));
    if (rank_ != root && !data.empty()) std::memcpy(data.data(), source.data, data.size());
    group_->meet();
  }

  void all_reduce_sum(std::span<float> data) override {
    post(reinterpret_cast<const std::byte*>(data.data()), {}, data.size_bytes());
    group_->meet();
    // Every rank sums everything in rank order, so all get the same bits.
    sum_.assign(data.size(), 0.0F);
    for (int from = 0; from < size(); ++from) {
      const Posting& other = group_->posting(from);
      require(other.total == data.size_bytes(),
              fmt::format("all_reduce_sum: rank {} has {} bytes, rank {} has {}", rank_,
                          data.size_bytes(), from, other.total));
      const auto* values = reinterpret_cast<const float*>(other.data);
      if (from == 0) {
        std::copy_n(values, data.size(), sum_.begin());
      } else {
        for (size_t i = 0; i < data.size(); ++i) sum_[i] += values[i];
      }
    }
    group_->meet();
    std::copy(sum_.begin(), sum_.end(), data.begin());
  }

  void all_to_all(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                  std::span<std::byte> receive, std::span<const int64_t> receive_bytes) override {
    check_sizes("all_to_all (send)", send_bytes, send.size());
    check_sizes("all_to_all (receive)", receive_bytes, receive.size());
    post(send.data(), send_bytes, send.size());
    group_->meet();
    size_t offset = 0;
    for (int from = 0; from < size(); ++from) {
      const Posting& other = group_->posting(from);
      const auto bytes = static_cast<size_t>(receive_bytes[static_cast<size_t>(from)]);
      require(other.sizes[static_cast<size_t>(rank_)] == static_cast<int64_t>(bytes),
              fmt::format("all_to_all: rank {} sends {} bytes to rank {}, which expects {}", from,
                          other.sizes[static_cast<size_t>(rank_)], rank_, bytes));
      const auto begin = std::accumulate(other.sizes.begin(), other.sizes.begin() + rank_, int64_t{0});
      if (bytes > 0) std::memcpy(receive.data() + offset, other.data + begin, bytes);
      offset += bytes;
    }
    group_->meet();
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

  void post(const std::byte* data, std::span<const int64_t> sizes, size_t total) {
    group_->posting(rank_) = {data, sizes, total};
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
  std::vector<char> failed_first(static_cast<size_t>(num_ranks), 0);
  const auto run = [&](int rank) {
    LocalCommunicator communicator(group, rank);
    const auto note_failure = [&](const char* what) {
      failed_first[static_cast<size_t>(rank)] = !group->aborted();
      errors[static_cast<size_t>(rank)] = std::current_exception();
      group->abort(fmt::format("rank {} failed: {}", rank, what).c_str());
    };
    try {
      body(communicator);
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
    for (int rank = 0; rank < num_ranks; ++rank) threads.emplace_back(run, rank);
    for (std::thread& thread : threads) thread.join();
  }
  // The cause before its consequences.
  for (const bool first : {true, false}) {
    for (size_t rank = 0; rank < errors.size(); ++rank) {
      if (errors[rank] && (!first || failed_first[rank] != 0)) std::rethrow_exception(errors[rank]);
    }
  }
}

}  // namespace gantry
