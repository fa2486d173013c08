// A GGUF file: "GGUF", version, number of tensors, number of keys; the keys with their values; the
// tensors' names, shapes, types and offsets; padding; the tensors' bytes. All little endian.

#include "loader/gguf_header.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>
#include <set>

#include "kernels/base/check.h"
#include "loader/checked_math.h"
#include "loader/encodings/ggml_types.h"
#include "loader/untrusted_name.h"

namespace gantry {
namespace {

constexpr uint32_t kStringType = 8;
constexpr uint32_t kArrayType = 9;
constexpr int64_t kDefaultAlignment = 32;
constexpr int64_t kMaxAlignment = int64_t{1} << 24;

// Types of metadata values, by number.
enum class Scalar : uint8_t { kUnsigned, kSigned, kFloat, kBool };
struct ScalarType {
  Scalar kind;
  int bytes;
};
std::optional<ScalarType> scalar_type(uint32_t type) {
  switch (type) {
    case 0:
      return ScalarType{Scalar::kUnsigned, 1};
    case 1:
      return ScalarType{Scalar::kSigned, 1};
    case 2:
      return ScalarType{Scalar::kUnsigned, 2};
    case 3:
      return ScalarType{Scalar::kSigned, 2};
    case 4:
      return ScalarType{Scalar::kUnsigned, 4};
    case 5:
      return ScalarType{Scalar::kSigned, 4};
    case 6:
      return ScalarType{Scalar::kFloat, 4};
    case 7:
      return ScalarType{Scalar::kBool, 1};
    case 10:
      return ScalarType{Scalar::kUnsigned, 8};
    case 11:
      return ScalarType{Scalar::kSigned, 8};
    case 12:
      return ScalarType{Scalar::kFloat, 8};
    default:
      return std::nullopt;
  }
}

// Reads forward through the file by way of a window, so that vocabularies are not held in memory.
class ForwardReader {
 public:
  ForwardReader(const GgufSource& source, int64_t file_bytes, const std::string& file)
      : source_(source), end_(std::min(file_bytes, kMaxGgufHeaderBytes)), file_(file) {}

  [[nodiscard]] int64_t position() const noexcept { return position_; }
  [[nodiscard]] int64_t remaining() const noexcept { return end_ - position_; }

  /// @param what names the piece in messages
  void read(void* destination, uint64_t size, std::string_view what) {
    require(size, what);
    auto* to = static_cast<std::byte*>(destination);
    auto left = static_cast<int64_t>(size);
    while (left > 0) {
      fill();
      const int64_t offset = position_ - window_begin_;
      const int64_t count = std::min(left, static_cast<int64_t>(window_.size()) - offset);
      std::memcpy(to, window_.data() + offset, static_cast<size_t>(count));
      position_ += count;
      to += count;
      left -= count;
    }
  }

  void skip(uint64_t size, std::string_view what) {
    require(size, what);
    position_ += static_cast<int64_t>(size);
  }

  template <typename T>
  T number(std::string_view what) {
    T value{};
    read(&value, sizeof(T), what);
    return value;
  }

  std::string text(uint64_t max_bytes, std::string_view what) {
    const auto size = number<uint64_t>(what);
    GANTRY_CHECK(size <= max_bytes, ErrorCode::kFormat,
                 "{}: {}: expected at most {} bytes, found {}", file_, what, max_bytes, size);
    require(size, what);
    std::string text(size, '\0');
    read(text.data(), size, what);
    return text;
  }

 private:
  static constexpr int64_t kWindowBytes = int64_t{1} << 16;

  void require(uint64_t size, std::string_view what) const {
    GANTRY_CHECK(size <= static_cast<uint64_t>(remaining()), ErrorCode::kFormat,
                 "{}: {}: expected {} bytes at offset {}, the file (or the {} bytes that a header "
                 "may have) ends at {}: it is truncated",
                 file_, what, size, position_, kMaxGgufHeaderBytes, end_);
  }

  void fill() {
    const int64_t window_end = window_begin_ + static_cast<int64_t>(window_.size());
    if (position_ >= window_begin_ && position_ < window_end) return;
    window_.resize(static_cast<size_t>(std::min(kWindowBytes, end_ - position_)));
    window_begin_ = position_;
    source_(position_, window_.data(), static_cast<int64_t>(window_.size()));
  }

  const GgufSource& source_;
  int64_t end_;
  const std::string& file_;
  int64_t position_ = 0;
  int64_t window_begin_ = 0;
  std::vector<std::byte> window_;
};

class HeaderParser {
 public:
  HeaderParser(const GgufSource& source, int64_t file_bytes, const std::string& file)
      : reader_(source, file_bytes, file), file_bytes_(file_bytes), file_(file) {}

  GgufHeader parse() {
    read_preamble();
    for (uint64_t i = 0; i < num_keys_; ++i)
      read_key();
    read_alignment();
    std::set<std::string, std::less<>> names;
    for (uint64_t i = 0; i < num_tensors_; ++i) {
      read_tensor();
      const std::string& name = header_.tensors.back().name;
      GANTRY_CHECK(names.insert(name).second, ErrorCode::kFormat, "{}: {} stands twice", file_,
                   quote_name(name));
    }
    place_tensors();
    return std::move(header_);
  }

 private:
  void read_preamble() {
    const auto magic = reader_.number<uint32_t>("magic");
    GANTRY_CHECK(magic == 0x46554747, ErrorCode::kFormat,
                 "{}: expected the magic number 'GGUF', found {:#010x}: not a GGUF file?", file_,
                 magic);
    header_.version = reader_.number<uint32_t>("version");
    GANTRY_CHECK((header_.version & 0xffff) != 0, ErrorCode::kUnsupported,
                 "{}: version {:#x}: a big-endian GGUF file cannot be read", file_,
                 header_.version);
    GANTRY_CHECK(header_.version == 2 || header_.version == 3, ErrorCode::kUnsupported,
                 "{}: expected GGUF version 2 or 3, found {}", file_, header_.version);
    num_tensors_ = reader_.number<uint64_t>("number of tensors");
    num_keys_ = reader_.number<uint64_t>("number of keys");
    GANTRY_CHECK(num_tensors_ <= kMaxGgufTensors, ErrorCode::kFormat,
                 "{}: expected at most {} tensors, found {}", file_, kMaxGgufTensors, num_tensors_);
    GANTRY_CHECK(num_keys_ <= kMaxGgufKeys, ErrorCode::kFormat,
                 "{}: expected at most {} keys, found {}", file_, kMaxGgufKeys, num_keys_);
  }

  void read_key() {
    const std::string key = reader_.text(kMaxGgufNameBytes, "key");
    const std::string_view problem = tensor_name_problem(key);
    GANTRY_CHECK(problem.empty(), ErrorCode::kFormat, "{}: key {}: {}", file_, quote_name(key),
                 problem);
    const auto type = reader_.number<uint32_t>(key);
    GgufValue value = type == kArrayType ? read_array(key) : read_value(key, type);
    const bool is_new = header_.metadata.emplace(key, std::move(value)).second;
    GANTRY_CHECK(is_new, ErrorCode::kFormat, "{}: key {} stands twice", file_, quote_name(key));
  }

  GgufValue read_value(const std::string& key, uint32_t type) {
    if (type == kStringType) {
      const auto size = reader_.number<uint64_t>(key);
      if (size > kMaxGgufKeptStringBytes) {
        reader_.skip(size, key);
        return std::monostate();
      }
      std::string text(size, '\0');
      reader_.read(text.data(), size, key);
      return text;
    }
    return read_scalar(key, require_scalar(key, type));
  }

  ScalarType require_scalar(const std::string& key, uint32_t type) const {
    const std::optional<ScalarType> scalar = scalar_type(type);
    GANTRY_CHECK(scalar.has_value(), ErrorCode::kFormat, "{}: key {}: unknown type {}", file_,
                 quote_name(key), type);
    return *scalar;
  }

  GgufValue read_scalar(const std::string& key, ScalarType type) {
    uint64_t bits = 0;
    reader_.read(&bits, static_cast<uint64_t>(type.bytes), key);
    switch (type.kind) {
      case Scalar::kBool:
        GANTRY_CHECK(bits <= 1, ErrorCode::kFormat, "{}: key {}: expected 0 or 1, found {}", file_,
                     quote_name(key), bits);
        return bits == 1;
      case Scalar::kFloat: {
        if (type.bytes == 8) return std::bit_cast<double>(bits);
        return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(bits)));
      }
      case Scalar::kSigned: {
        const int shift = 64 - 8 * type.bytes;
        return static_cast<int64_t>(bits << shift) >> shift;
      }
      case Scalar::kUnsigned:
        break;
    }
    // Nothing that describes a model is as large.
    if (bits > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::monostate();
    return static_cast<int64_t>(bits);
  }

  GgufValue read_array(const std::string& key) {
    const auto type = reader_.number<uint32_t>(key);
    const auto count = reader_.number<uint64_t>(key);
    GANTRY_CHECK(type != kArrayType, ErrorCode::kFormat, "{}: key {}: a list of lists", file_,
                 quote_name(key));
    if (type == kStringType) {
      require_count(key, count, sizeof(uint64_t));
      for (uint64_t i = 0; i < count; ++i)
        reader_.skip(reader_.number<uint64_t>(key), key);
      return std::monostate();
    }
    const ScalarType scalar = require_scalar(key, type);
    require_count(key, count, static_cast<uint64_t>(scalar.bytes));
    if (count > kMaxGgufKeptValues) {
      reader_.skip(count * static_cast<uint64_t>(scalar.bytes), key);
      return std::monostate();
    }
    std::vector<int64_t> integers;
    std::vector<double> floats;
    for (uint64_t i = 0; i < count; ++i) {
      const GgufValue value = read_scalar(key, scalar);
      if (const auto* flag = std::get_if<bool>(&value)) integers.push_back(*flag ? 1 : 0);
      if (const auto* integer = std::get_if<int64_t>(&value)) integers.push_back(*integer);
      if (const auto* number = std::get_if<double>(&value)) floats.push_back(*number);
    }
    if (scalar.kind == Scalar::kFloat) return floats;
    if (integers.size() != count) return std::monostate();  // one was too large to be kept
    return integers;
  }

  void require_count(const std::string& key, uint64_t count, uint64_t min_bytes) const {
    GANTRY_CHECK(count <= static_cast<uint64_t>(reader_.remaining()) / min_bytes,
                 ErrorCode::kFormat, "{}: key {}: a list of {} values does not fit into the file",
                 file_, quote_name(key), count);
  }

  void read_alignment() {
    const auto found = header_.metadata.find("general.alignment");
    if (found == header_.metadata.end()) return;
    const auto* value = std::get_if<int64_t>(&found->second);
    GANTRY_CHECK(
        value != nullptr && *value >= 8 && *value <= kMaxAlignment && (*value & (*value - 1)) == 0,
        ErrorCode::kFormat, "{}: general.alignment: expected a power of two from 8 to {}{}", file_,
        kMaxAlignment, value == nullptr ? std::string() : fmt::format(", found {}", *value));
    alignment_ = *value;
  }

  void read_tensor() {
    TensorInfo info;
    info.name = reader_.text(kMaxGgufNameBytes, "tensor name");
    const std::string_view problem = tensor_name_problem(info.name);
    GANTRY_CHECK(problem.empty(), ErrorCode::kFormat, "{}: tensor {}: {}", file_,
                 quote_name(info.name), problem);
    const auto rank = reader_.number<uint32_t>(info.name);
    GANTRY_CHECK(rank <= 4, ErrorCode::kFormat, "{}: {}: expected at most 4 dimensions, found {}",
                 file_, info.name, rank);
    std::optional<int64_t> elements = 1;
    for (uint32_t d = 0; d < rank; ++d) {
      const auto size = static_cast<int64_t>(reader_.number<uint64_t>(info.name));
      if (size < 0 || !elements) {
        elements = std::nullopt;
      } else {
        elements = checked_mul(*elements, size);
      }
      info.shape.insert(info.shape.begin(), size);
    }
    GANTRY_CHECK(elements.has_value(), ErrorCode::kFormat, "{}: {}: too many elements", file_,
                 info.name);
    sizes_.push_back(read_type(info, *elements));
    const auto offset = reader_.number<uint64_t>(info.name);
    GANTRY_CHECK(offset <= static_cast<uint64_t>(file_bytes_) &&
                     offset % static_cast<uint64_t>(alignment_) == 0,
                 ErrorCode::kFormat,
                 "{}: {}: expected an offset within the file that is a multiple of {}, found {}",
                 file_, info.name, alignment_, offset);
    info.begin = static_cast<int64_t>(offset);
    header_.tensors.push_back(std::move(info));
  }

  // Sets what the type says; returns the tensor's bytes, or nothing where the type is not known.
  std::optional<int64_t> read_type(TensorInfo& info, int64_t elements) {
    const auto id = reader_.number<uint32_t>(info.name);
    const GgmlType* type = find_ggml_type(id);
    if (type == nullptr || type->has_blocks()) {
      info.dtype = DType::kU8;
      info.block_type = ggml_type_name(id);
    } else {
      info.dtype = *type->dtype;
    }
    if (type == nullptr) return std::nullopt;
    const int64_t row = info.shape.empty() ? 1 : info.shape.back();
    GANTRY_CHECK(row % type->block_elements == 0, ErrorCode::kFormat,
                 "{}: {}: expected rows of whole {} blocks of {} elements, found rows of {}", file_,
                 info.name, type->name, type->block_elements, row);
    const auto bytes = checked_mul(elements / type->block_elements, type->block_bytes);
    GANTRY_CHECK(bytes.has_value(), ErrorCode::kFormat, "{}: {}: too many bytes", file_, info.name);
    return *bytes;
  }

  // Positions are relative to the end of the header until here. Every sum stays below twice the
  // file's size plus an alignment, except where a tensor's own size is added: that one is checked.
  void place_tensors() {
    header_.data_begin = aligned(reader_.position());
    std::vector<size_t> order(header_.tensors.size());
    for (size_t i = 0; i < order.size(); ++i)
      order[i] = i;
    std::stable_sort(order.begin(), order.end(), [this](size_t a, size_t b) {
      return header_.tensors[a].begin < header_.tensors[b].begin;
    });
    constexpr int64_t kAnywhere = -1;  // behind a tensor whose size is not known
    int64_t expected = header_.data_begin;
    for (size_t i = 0; i < order.size(); ++i) {
      TensorInfo& info = header_.tensors[order[i]];
      info.begin += header_.data_begin;
      GANTRY_CHECK(
          expected == kAnywhere || info.begin == expected, ErrorCode::kFormat,
          "{}: {}: expected it to begin at byte {}, where the tensor before it ends, found "
          "{}: tensors overlap or leave holes",
          file_, info.name, expected, info.begin);
      const bool is_last = i + 1 == order.size();
      const std::optional<int64_t> size = sizes_[order[i]];
      if (size) {
        const std::optional<int64_t> end = checked_add(info.begin, *size);
        GANTRY_CHECK(end && *end <= file_bytes_, ErrorCode::kFormat,
                     "{}: {}: expected {} bytes at offset {}, the file has {}: it is truncated",
                     file_, info.name, *size, info.begin, file_bytes_);
        info.end = *end;
        expected = aligned(info.end);
      } else {
        const int64_t next =
            is_last ? file_bytes_ : header_.tensors[order[i + 1]].begin + header_.data_begin;
        GANTRY_CHECK(info.begin <= file_bytes_ && next <= file_bytes_, ErrorCode::kFormat,
                     "{}: {}: expected it inside the file's {} bytes, found offset {}: it is "
                     "truncated",
                     file_, info.name, file_bytes_, info.begin);
        info.end = next;
        expected = kAnywhere;
      }
    }
  }

  [[nodiscard]] int64_t aligned(int64_t offset) const {
    return (offset + alignment_ - 1) / alignment_ * alignment_;
  }

  ForwardReader reader_;
  int64_t file_bytes_;
  const std::string& file_;
  uint64_t num_tensors_ = 0;
  uint64_t num_keys_ = 0;
  int64_t alignment_ = kDefaultAlignment;
  std::vector<std::optional<int64_t>> sizes_;  // by tensor
  GgufHeader header_;
};

}  // namespace

GgufHeader parse_gguf_header(const GgufSource& source, int64_t file_bytes,
                             const std::string& file) {
  return HeaderParser(source, file_bytes, file).parse();
}

}  // namespace gantry
