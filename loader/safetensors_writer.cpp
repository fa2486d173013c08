// Writes safetensors files. The layout is fixed before the first byte: every tensor has its range
// of the file from the start, so tensors can come in any order and from several threads. Which
// bytes have come is kept as a set of disjoint ranges; a file with a gap is never published.

#include "loader/safetensors_writer.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <nlohmann/json.hpp>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "kernels/base/check.h"
#include "loader/checked_math.h"
#include "loader/file_io.h"
#include "loader/safetensors_dtype.h"
#include "loader/untrusted_name.h"

namespace gantry {
namespace {

/// Disjoint ranges of bytes; ranges that touch are joined, so a file written in order is one range.
class ByteRanges {
 public:
  /// Adds [begin, end), which is not empty. Returns false, adding nothing, if it overlaps.
  bool add(int64_t begin, int64_t end) {
    auto next = end_of_.upper_bound(begin);
    if (next != end_of_.end() && next->first < end) return false;
    const auto previous = next == end_of_.begin() ? end_of_.end() : std::prev(next);
    if (previous != end_of_.end() && previous->second > begin) return false;

    if (next != end_of_.end() && next->first == end) {
      end = next->second;
      end_of_.erase(next);
    }
    if (previous != end_of_.end() && previous->second == begin) {
      previous->second = end;
    } else {
      end_of_.emplace(begin, end);
    }
    return true;
  }

  /// The first byte of [begin, end) that is in no range, or `end`.
  [[nodiscard]] int64_t first_gap(int64_t begin, int64_t end) const {
    const auto next = end_of_.upper_bound(begin);
    if (next == end_of_.begin()) return begin;
    return std::min(std::max(begin, std::prev(next)->second), end);
  }

 private:
  std::map<int64_t, int64_t> end_of_;  ///< begin -> end
};

/// Sets begin and end, relative to the data, in the order of the file.
void lay_out(std::vector<TensorInfo>& tensors, const std::string& file) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    // Descending element size keeps every tensor aligned without padding.
    return std::tuple(-size_of(a.dtype), std::string_view(a.name)) <
           std::tuple(-size_of(b.dtype), std::string_view(b.name));
  });
  std::optional<int64_t> end = 0;
  for (TensorInfo& tensor : tensors) {
    std::optional<int64_t> bytes = size_of(tensor.dtype);
    for (const int64_t size : tensor.shape) {
      GANTRY_CHECK(size >= 0, ErrorCode::kInvalidArgument, "{}: tensor {}: {} has a negative size",
                   file, quote_name(tensor.name), describe(tensor));
      bytes = bytes ? checked_mul(*bytes, size) : bytes;
    }
    tensor.begin = *end;
    end = bytes ? checked_add(*end, *bytes) : bytes;
    GANTRY_CHECK(end.has_value(), ErrorCode::kInvalidArgument,
                 "{}: tensor {}: the size of {} overflows 64 bits", file, quote_name(tensor.name),
                 describe(tensor));
    tensor.end = *end;
  }
}

/// JSON text of a string. @throws nlohmann::json::type_error for bad UTF-8
std::string json_text(const std::string& text) { return nlohmann::json(text).dump(); }

/// The header's JSON, padded so that the data begins at a multiple of 8.
std::string header_json(const std::vector<TensorInfo>& tensors,
                        const std::map<std::string, std::string>& metadata) {
  std::string json = "{";
  if (!metadata.empty()) {
    json += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      json += json_text(key) + ":" + json_text(value) + ",";
    }
    json.back() = '}';
    json += ",";
  }
  for (const TensorInfo& tensor : tensors) {
    json += fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}},)",
                        json_text(tensor.name), safetensors_name(tensor.dtype),
                        fmt::join(tensor.shape, ","), tensor.begin, tensor.end);
  }
  if (json.size() > 1) json.pop_back();
  json += "}";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  return json;
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace

struct SafetensorsWriter::State {
  State(const std::filesystem::path& path, int64_t file_bytes) : file(path, file_bytes) {}

  AtomicFile file;
  std::unordered_map<std::string_view, const TensorInfo*> by_name;  ///< into tensors_
  std::mutex mutex;                                                 ///< guards what follows
  ByteRanges claimed;       ///< taken by a write, which may still be under way
  int64_t open_writes = 0;  ///< writes that are under way or failed
  bool finished = false;
};

SafetensorsWriter::SafetensorsWriter(std::filesystem::path path, std::vector<TensorInfo> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : path_(std::move(path)) {
  lay_out(tensors, path_.string());
  const int64_t data_bytes = tensors.empty() ? 0 : tensors.back().end;
  std::string json;
  int64_t file_bytes = 0;
  try {
    json = header_json(tensors, metadata);
    const auto total = checked_add(data_bytes, 8 + static_cast<int64_t>(json.size()));
    GANTRY_CHECK(total.has_value(), ErrorCode::kFormat, "{}: the file's size overflows 64 bits",
                 path_.string());
    file_bytes = *total;
    // The reader's checks are the writer's: what it would refuse (duplicate or empty names, too
    // many dimensions, a header too long) is never written.
    tensors_ = parse_safetensors_header(json, file_bytes, path_.string()).tensors;
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorCode::kInvalidArgument, "{}: a name or metadata is not valid UTF-8: {}",
         path_.string(), error.what());
  } catch (const Error& error) {
    fail(ErrorCode::kInvalidArgument, "{}", error.what());
  }

  state_ = std::make_unique<State>(path_, file_bytes);
  for (const TensorInfo& tensor : tensors_)
    state_->by_name.emplace(tensor.name, &tensor);
  const auto json_bytes = static_cast<uint64_t>(json.size());
  state_->file.write(0, std::as_bytes(std::span(&json_bytes, 1)));
  state_->file.write(8, bytes_of(json));
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::write(const std::string& name, int64_t offset,
                              std::span<const std::byte> data) {
  const auto found = state_->by_name.find(name);
  GANTRY_CHECK(found != state_->by_name.end(), ErrorCode::kInvalidArgument, "{}: no tensor {}",
               path_.string(), quote_name(name));
  const TensorInfo& tensor = *found->second;
  const auto size = static_cast<int64_t>(data.size());
  GANTRY_CHECK(offset >= 0 && offset <= tensor.num_bytes() && size <= tensor.num_bytes() - offset,
               ErrorCode::kInvalidArgument,
               "{}: tensor {}: expected a range inside its {} bytes, found {} bytes at offset {}",
               path_.string(), quote_name(name), tensor.num_bytes(), size, offset);
  if (data.empty()) return;

  const int64_t begin = tensor.begin + offset;
  {
    const std::scoped_lock lock(state_->mutex);
    GANTRY_CHECK(!state_->finished, ErrorCode::kInvalidArgument, "{}: written after finish",
                 path_.string());
    GANTRY_CHECK(state_->claimed.add(begin, begin + size), ErrorCode::kInvalidArgument,
                 "{}: tensor {}: some of the {} bytes at offset {} were written before",
                 path_.string(), quote_name(name), size, offset);
    ++state_->open_writes;
  }
  state_->file.write(begin, data);
  // Not reached by a write that failed: `finish` then refuses the file.
  const std::scoped_lock lock(state_->mutex);
  --state_->open_writes;
}

void SafetensorsWriter::finish() {
  const std::scoped_lock lock(state_->mutex);
  GANTRY_CHECK(!state_->finished, ErrorCode::kInvalidArgument, "{}: finished twice",
               path_.string());
  GANTRY_CHECK(state_->open_writes == 0, ErrorCode::kInternal,
               "{}: {} writes failed or are still under way", path_.string(), state_->open_writes);
  for (const TensorInfo& tensor : tensors_) {
    const int64_t gap = state_->claimed.first_gap(tensor.begin, tensor.end);
    GANTRY_CHECK(gap == tensor.end, ErrorCode::kInternal,
                 "{}: tensor {}: byte {} of {} was never written", path_.string(),
                 quote_name(tensor.name), gap - tensor.begin, tensor.num_bytes());
  }
  state_->file.commit();
  state_->finished = true;
}

void write_text_file(const std::filesystem::path& path, std::string_view text) {
  AtomicFile file(path, static_cast<int64_t>(text.size()));
  file.write(0, bytes_of(text));
  file.commit();
}

}  // namespace gantry
