#include "tests/nccl_double/double_segment.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <random>
#include <string_view>

namespace gantry::nccl_double {
namespace {

constexpr std::string_view kPrefix = "gantry_nccl_double_";

// Segments whose maker, whose process id is part of the name, is gone.
void remove_orphans() {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm", error)) {
    std::string name = entry.path().filename();
    if (!name.starts_with(kPrefix)) continue;
    pid_t maker = 0;
    const char* first = name.data() + kPrefix.size();
    const auto parsed = std::from_chars(first, name.data() + name.size(), maker);
    if (parsed.ec != std::errc() || maker <= 0 || *parsed.ptr != '_') continue;
    if (kill(maker, 0) != 0 && errno == ESRCH) shm_unlink(name.insert(0, 1, '/').c_str());
  }
}

}  // namespace

static_assert(std::atomic<uint64_t>::is_always_lock_free);

size_t Channel::write(const std::byte* bytes, size_t count) noexcept {
  const uint64_t begin = written.load(std::memory_order_relaxed);
  const uint64_t used = begin - read.load(std::memory_order_acquire);
  const size_t total = std::min(count, kBytes - static_cast<size_t>(used));
  size_t done = 0;
  while (done < total) {
    const size_t at = static_cast<size_t>(begin + done) % kBytes;
    const size_t piece = std::min(total - done, kBytes - at);
    std::memcpy(data + at, bytes + done, piece);
    done += piece;
  }
  written.store(begin + total, std::memory_order_release);
  return total;
}

size_t Channel::take(std::byte* bytes, size_t count) noexcept {
  const uint64_t begin = read.load(std::memory_order_relaxed);
  const uint64_t there = written.load(std::memory_order_acquire) - begin;
  const size_t total = std::min(count, static_cast<size_t>(there));
  size_t done = 0;
  while (done < total) {
    const size_t at = static_cast<size_t>(begin + done) % kBytes;
    const size_t piece = std::min(total - done, kBytes - at);
    std::memcpy(bytes + done, data + at, piece);
    done += piece;
  }
  read.store(begin + total, std::memory_order_release);
  return total;
}

bool Segment::open(const char* name, int num_ranks) {
  name_ = name;
  num_ranks_ = num_ranks;
  bytes_ = kHeadBytes +
           static_cast<size_t>(num_ranks) * static_cast<size_t>(num_ranks) * sizeof(Channel);
  const int file = shm_open(name, O_CREAT | O_RDWR, 0600);
  if (file < 0) return false;
  void* memory = MAP_FAILED;
  if (ftruncate(file, static_cast<off_t>(bytes_)) == 0) {
    memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  }
  close(file);
  if (memory == MAP_FAILED) return false;
  memory_ = static_cast<std::byte*>(memory);
  auto& arrived = reinterpret_cast<Head*>(memory_)->arrived;
  if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == num_ranks) shm_unlink(name);
  return true;
}

std::string Segment::make_name() {
  remove_orphans();
  std::random_device random;
  char name[64];
  std::snprintf(name, sizeof(name), "/%s%ld_%08x%08x", kPrefix.data(), static_cast<long>(getpid()),
                random(), random());
  return name;
}

Segment::~Segment() {
  if (!name_.empty()) shm_unlink(name_.c_str());  // who has not come yet will be alone
  if (memory_ != nullptr) munmap(memory_, bytes_);
}

Channel& Segment::channel(int from, int to) const noexcept {
  auto* channels = reinterpret_cast<Channel*>(memory_ + kHeadBytes);
  return channels[from * num_ranks_ + to];
}

bool Segment::everyone_is_here() const noexcept {
  return reinterpret_cast<const Head*>(memory_)->arrived.load(std::memory_order_acquire) >=
         num_ranks_;
}

}  // namespace gantry::nccl_double
