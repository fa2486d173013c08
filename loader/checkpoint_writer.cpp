// Writes whole checkpoints. Every shard is a SafetensorsWriter in the hidden directory of an
// OutputDirectory; the record of finished shards (state.jsonl, beside the data) is what `resume`
// reads: a line for the fingerprint, then a line a shard.

#include "loader/checkpoint_writer.h"

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "loader/byte_sum.h"
#include "loader/checked_math.h"
#include "loader/checkpoint.h"
#include "loader/file_io.h"
#include "loader/output_directory.h"
#include "loader/safetensors_writer.h"
#include "loader/strict_json.h"
#include "loader/untrusted_name.h"

namespace gantry {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::string_view kRecord = "state.jsonl";
constexpr std::string_view kIndex = "model.safetensors.index.json";

int64_t bytes_of(const TensorInfo& tensor) {
  std::optional<int64_t> bytes = size_of(tensor.dtype);
  for (const int64_t size : tensor.shape)
    bytes = bytes && size >= 0 ? checked_mul(*bytes, size) : std::nullopt;
  GANTRY_CHECK(bytes.has_value(), ErrorCode::kInvalidArgument,
               "tensor {}: {}: expected sizes whose product fits in 64 bits",
               quote_name(tensor.name), describe(tensor));
  return *bytes;
}

/// Appends a line and makes it durable.
void append_line(const fs::path& path, const std::string& line) {
  std::FILE* file = std::fopen(path.c_str(), "ab");
  const bool written =
      file != nullptr && std::fwrite(line.data(), 1, line.size(), file) == line.size() &&
      std::fputc('\n', file) != EOF && std::fflush(file) == 0 && ::fdatasync(::fileno(file)) == 0;
  const int error = errno;
  if (file != nullptr) std::fclose(file);
  GANTRY_CHECK(written, ErrorCode::kIo, "{}: cannot append: {}", path.string(),
               std::generic_category().message(error));
}

struct Record {
  std::string fingerprint;
  std::map<std::string, std::string> sums;  ///< file -> ByteSum::text()
};

/// Reads what a killed run recorded. A last line that was cut short counts as not written.
Record read_record(const fs::path& path) {
  Record record;
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return record;
  const std::string text = read_text_file(path, int64_t{64} << 20);
  size_t begin = 0;
  for (size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', begin)) {
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) break;
    if (json.contains("fingerprint") && json["fingerprint"].is_string()) {
      record.fingerprint = json["fingerprint"];
    } else if (json.contains("file") && json["file"].is_string() && json.contains("sum") &&
               json["sum"].is_string()) {
      record.sums[json["file"]] = json["sum"];
    }
  }
  return record;
}

ByteSum sum_of_data(const SafetensorsFile& file) {
  constexpr int64_t kPiece = int64_t{1} << 20;
  const auto buffer = std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(kPiece));
  ByteSum sum;
  const int64_t begin = file.header().data_begin;
  for (int64_t at = begin; at < file.file_bytes(); at += kPiece) {
    const int64_t size = std::min(kPiece, file.file_bytes() - at);
    file.read(at, buffer.get(), size);
    sum.add(at - begin, {buffer.get(), static_cast<size_t>(size)});
  }
  return sum;
}

bool same_tensors(std::span<const TensorInfo> found, std::vector<TensorInfo> expected) {
  if (found.size() != expected.size()) return false;
  std::unordered_map<std::string_view, const TensorInfo*> by_name;
  for (const TensorInfo& tensor : found)
    by_name.emplace(tensor.name, &tensor);
  return std::all_of(expected.begin(), expected.end(), [&](const TensorInfo& tensor) {
    const auto at = by_name.find(tensor.name);
    return at != by_name.end() && at->second->dtype == tensor.dtype &&
           at->second->shape == tensor.shape;
  });
}

}  // namespace

std::vector<ShardPlan> plan_shards(std::vector<TensorInfo> tensors, int64_t shard_bytes) {
  std::vector<ShardPlan> shards(1);
  int64_t filled = 0;
  for (TensorInfo& tensor : tensors) {
    const int64_t bytes = bytes_of(tensor);
    const bool full = shard_bytes > 0 && !shards.back().tensors.empty() &&
                      (filled > shard_bytes || bytes > shard_bytes - filled);
    if (full) {
      shards.emplace_back();
      filled = 0;
    }
    const auto sum = checked_add(filled, bytes);
    GANTRY_CHECK(sum.has_value(), ErrorCode::kInvalidArgument,
                 "tensor {}: the sum of all sizes does not fit in 64 bits",
                 quote_name(tensor.name));
    filled = *sum;
    shards.back().tensors.push_back(std::move(tensor));
  }
  for (size_t s = 0; s < shards.size(); ++s) {
    shards[s].file = shards.size() == 1
                         ? "model.safetensors"
                         : fmt::format("model-{:05}-of-{:05}.safetensors", s + 1, shards.size());
  }
  return shards;
}

struct CheckpointWriter::State {
  struct Shard {
    ShardPlan plan;
    int64_t data_bytes = 0;
    bool kept = false;
    std::mutex mutex;  ///< guards what follows; not held while bytes are written
    std::unique_ptr<SafetensorsWriter> writer;
    std::unordered_map<std::string_view, int64_t> begin_of;  ///< of a tensor, from the data's start
    int64_t written_bytes = 0;
    ByteSum sum;
    bool done = false;
  };

  State(const fs::path& directory, std::span<const fs::path> inputs, Options chosen)
      : output(directory, inputs, chosen.resume), options(std::move(chosen)) {}

  Shard& shard_of(std::string_view tensor) {
    const auto found = shard_by_tensor.find(tensor);
    GANTRY_CHECK(found != shard_by_tensor.end(), ErrorCode::kInvalidArgument, "{}: no tensor {}",
                 output.path().string(), quote_name(tensor));
    return *found->second;
  }

  void open(Shard& shard) {
    shard.writer = std::make_unique<SafetensorsWriter>(output.data() / shard.plan.file,
                                                       shard.plan.tensors, options.metadata);
    const int64_t data_begin =
        shard.writer->tensors().empty() ? 0 : shard.writer->tensors().front().begin;
    for (const TensorInfo& tensor : shard.writer->tensors())
      shard.begin_of.emplace(tensor.name, tensor.begin - data_begin);
  }

  void complete(Shard& shard) {
    shard.writer->finish();
    shard.writer.reset();
    shard.done = true;
    const Json line = {{"file", shard.plan.file}, {"sum", shard.sum.text()}};
    const std::scoped_lock lock(record_mutex);
    append_line(output.note_path(kRecord), line.dump());
    output.keep_partial();
  }

  /// Looks whether what an unfinished run left is this file, whole.
  bool can_keep(const Shard& shard, const Record& record) const {
    const auto found = record.sums.find(shard.plan.file);
    if (found == record.sums.end()) return false;
    try {
      const SafetensorsFile file(output.data() / shard.plan.file);
      return file.header().metadata == options.metadata &&
             same_tensors(file.header().tensors, shard.plan.tensors) &&
             sum_of_data(file).text() == found->second;
    } catch (const Error& error) {
      log(LogLevel::kWarn, "{}: written again: {}", shard.plan.file, error.what());
      return false;
    }
  }

  void resume() {
    Record record = read_record(output.note_path(kRecord));
    if (record.fingerprint != options.fingerprint) {
      log(LogLevel::kWarn,
          "{}: the unfinished run was of another input or with other options: "
          "it is started over",
          output.path().string());
      record = {};
    }
    for (const auto& shard : shards) {
      if (!can_keep(*shard, record)) continue;
      shard->kept = true;
      shard->done = true;
      kept_bytes += shard->data_bytes;
    }
    for (const fs::directory_entry& entry : fs::directory_iterator(output.data())) {
      const bool kept = std::any_of(shards.begin(), shards.end(), [&](const auto& shard) {
        return shard->kept && entry.path().filename() == shard->plan.file;
      });
      if (!kept) fs::remove_all(entry.path());
    }
  }

  /// The record of this run: the fingerprint and the shards that are kept.
  void begin_record() {
    std::string text = Json({{"fingerprint", options.fingerprint}}).dump() + "\n";
    const Record old = output.resumed() ? read_record(output.note_path(kRecord)) : Record();
    for (const auto& shard : shards) {
      if (!shard->kept) continue;
      text += Json({{"file", shard->plan.file}, {"sum", old.sums.at(shard->plan.file)}}).dump();
      text += "\n";
      output.keep_partial();
    }
    write_text_file(output.note_path(kRecord), text);
  }

  void require_room(int64_t bytes) const {
    struct statvfs status = {};
    if (::statvfs(output.data().c_str(), &status) != 0 || status.f_blocks == 0) return;
    const auto free_bytes = static_cast<int64_t>(status.f_bavail * status.f_frsize);
    GANTRY_CHECK(bytes <= free_bytes, ErrorCode::kIo,
                 "{}: {} bytes are to be written, the file system has {} left",
                 output.path().string(), bytes, free_bytes);
  }

  /// The place of a further file in the hidden directory; its folders are created.
  fs::path place(std::string_view name) const {
    const fs::path relative(name);
    const bool plain = !name.empty() && relative.is_relative() &&
                       std::none_of(relative.begin(), relative.end(),
                                    [](const fs::path& part) { return part == ".."; });
    GANTRY_CHECK(plain, ErrorCode::kInvalidArgument, "{}: not a name inside the output",
                 quote_name(name));
    std::error_code error;
    fs::create_directories((output.data() / relative).parent_path(), error);
    GANTRY_CHECK(!error, ErrorCode::kIo, "{}: cannot create its directory: {}", quote_name(name),
                 error.message());
    return output.data() / relative;
  }

  void write_index() {
    Json weight_map = Json::object();
    std::map<std::string_view, std::string_view> sorted;
    for (const auto& shard : shards) {
      for (const TensorInfo& tensor : shard->plan.tensors)
        sorted.emplace(tensor.name, shard->plan.file);
    }
    for (const auto& [name, file] : sorted)
      weight_map[std::string(name)] = file;
    const Json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", weight_map}};
    write_text_file(output.data() / kIndex, index.dump(2) + "\n");
  }

  OutputDirectory output;
  Options options;
  std::vector<std::unique_ptr<Shard>> shards;
  std::unordered_map<std::string_view, Shard*> shard_by_tensor;
  std::mutex record_mutex;
  int64_t total_bytes = 0;
  int64_t kept_bytes = 0;
};

CheckpointWriter::CheckpointWriter(const fs::path& directory, std::span<const fs::path> inputs,
                                   std::vector<ShardPlan> shards, Options options) {
  state_ = std::make_unique<State>(directory, inputs, std::move(options));
  for (ShardPlan& plan : shards) {
    const std::string_view problem = shard_name_problem(plan.file);
    GANTRY_CHECK(problem.empty(), ErrorCode::kInvalidArgument, "{}: {}", quote_name(plan.file),
                 problem);
    auto shard = std::make_unique<State::Shard>();
    shard->plan = std::move(plan);
    for (const TensorInfo& tensor : shard->plan.tensors) {
      shard->data_bytes += bytes_of(tensor);
      const bool is_new = state_->shard_by_tensor.emplace(tensor.name, shard.get()).second;
      GANTRY_CHECK(is_new, ErrorCode::kInvalidArgument, "{}: tensor {} would be written twice",
                   directory.string(), quote_name(tensor.name));
    }
    state_->total_bytes += shard->data_bytes;
    state_->shards.push_back(std::move(shard));
  }
  if (state_->output.resumed()) state_->resume();
  state_->begin_record();
  state_->require_room(state_->total_bytes - state_->kept_bytes);
  for (const auto& shard : state_->shards) {
    // Nothing will come for a file of empty tensors, so it is written here.
    if (shard->done || shard->data_bytes > 0) continue;
    state_->open(*shard);
    state_->complete(*shard);
  }
}

CheckpointWriter::~CheckpointWriter() = default;

int64_t CheckpointWriter::total_bytes() const noexcept { return state_->total_bytes; }
int64_t CheckpointWriter::kept_bytes() const noexcept { return state_->kept_bytes; }

bool CheckpointWriter::is_kept(std::string_view tensor) const {
  return state_->shard_of(tensor).kept;
}

void CheckpointWriter::write(std::string_view tensor, int64_t offset,
                             std::span<const std::byte> data) {
  State::Shard& shard = state_->shard_of(tensor);
  SafetensorsWriter* writer = nullptr;
  int64_t begin = 0;
  {
    const std::scoped_lock lock(shard.mutex);
    GANTRY_CHECK(!shard.done, ErrorCode::kInvalidArgument, "{}: tensor {} is whole already",
                 shard.plan.file, quote_name(tensor));
    if (shard.writer == nullptr) state_->open(shard);
    writer = shard.writer.get();
    begin = shard.begin_of.at(tensor);
  }
  writer->write(std::string(tensor), offset, data);
  ByteSum sum;
  sum.add(begin + offset, data);
  const std::scoped_lock lock(shard.mutex);
  shard.sum.add(sum);
  shard.written_bytes += static_cast<int64_t>(data.size());
  // Every byte comes once (the file's writer sees to it), so this is the last call for the file.
  if (shard.written_bytes == shard.data_bytes) state_->complete(shard);
}

void CheckpointWriter::write_text(std::string_view name, std::string_view text) {
  write_text_file(state_->place(name), text);
}

std::unique_ptr<AtomicFile> CheckpointWriter::create_file(std::string_view name,
                                                          int64_t size_bytes) {
  const fs::path path = state_->place(name);
  state_->require_room(size_bytes);
  return std::make_unique<AtomicFile>(path, size_bytes);
}

void CheckpointWriter::copy_file(const fs::path& source, std::string_view name) {
  const OpenedFile file = open_regular_file(source);
  const fs::path target = state_->place(name);
  AtomicFile copy(target, file.size_bytes);
  constexpr int64_t kPiece = int64_t{1} << 20;
  const auto buffer = std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(kPiece));
  for (int64_t at = 0; at < file.size_bytes; at += kPiece) {
    const int64_t size = std::min(kPiece, file.size_bytes - at);
    read_exactly(file.fd.get(), source, at, buffer.get(), size);
    copy.write(at, {buffer.get(), static_cast<size_t>(size)});
  }
  copy.commit();
  struct stat status = {};
  if (::fstat(file.fd.get(), &status) == 0 && (status.st_mode & S_IXUSR) != 0) {
    std::error_code ignored;
    fs::permissions(target, fs::perms::owner_exec | fs::perms::group_exec | fs::perms::others_exec,
                    fs::perm_options::add, ignored);
  }
}

void CheckpointWriter::finish() {
  for (const auto& shard : state_->shards) {
    const std::scoped_lock lock(shard->mutex);
    GANTRY_CHECK(shard->done, ErrorCode::kInternal, "{}: {} of {} bytes have come",
                 shard->plan.file, shard->written_bytes, shard->data_bytes);
  }
  if (state_->options.index && state_->shards.size() > 1) state_->write_index();
  state_->output.commit();
}

std::string fingerprint_files(std::span<const fs::path> files) {
  std::string text;
  for (const fs::path& file : files) {
    struct stat status = {};
    GANTRY_CHECK(::stat(file.c_str(), &status) == 0, ErrorCode::kIo, "{}: cannot stat: {}",
                 file.string(), std::generic_category().message(errno));
    text += fmt::format("{} {} {}.{:09}\n", file.string(), status.st_size, status.st_mtim.tv_sec,
                        status.st_mtim.tv_nsec);
  }
  return text;
}

}  // namespace gantry
