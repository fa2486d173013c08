#include "loader/plain_read.h"

#include <algorithm>
#include <chrono>
#include <vector>

namespace gantry {
namespace {

struct FileRange {
  const WeightFile* file;
  int64_t begin;
  int64_t end;
};

}  // namespace

double plain_read_gb_s(const Checkpoint& checkpoint, const Threads& threads, int64_t max_bytes) {
  constexpr int64_t kChunkBytes = int64_t{16} << 20;  // a task
  constexpr int64_t kReadBytes = int64_t{256} << 10;  // a call: stays in the L2 cache
  std::vector<FileRange> chunks;
  int64_t total = 0;
  for (const WeightFile& file : checkpoint.files()) {
    const int64_t end = file.file_bytes();
    for (int64_t begin = 0; begin < end && total < max_bytes; begin += kChunkBytes) {
      chunks.push_back({&file, begin, std::min(end, begin + kChunkBytes)});
      total += chunks.back().end - begin;
    }
  }
  if (total == 0) return 0.0;
  const auto start = std::chrono::steady_clock::now();
  parallel_for(threads, static_cast<int64_t>(chunks.size()), [&](int64_t task) {
    const FileRange& chunk = chunks[static_cast<size_t>(task)];
    std::vector<std::byte> buffer(static_cast<size_t>(kReadBytes));
    for (int64_t at = chunk.begin; at < chunk.end; at += kReadBytes)
      chunk.file->read(at, buffer.data(), std::min(kReadBytes, chunk.end - at));
  });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return static_cast<double>(total) / 1e9 / std::max(1e-9, seconds.count());
}

}  // namespace gantry
