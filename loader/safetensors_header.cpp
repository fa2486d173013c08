// Reads a safetensors header straight into TensorInfo, without a DOM in between, so that a header
// of the largest allowed size costs a small multiple of its own bytes:
//
//   { "__metadata__": { key: text, ... },
//     name: { "dtype": "BF16", "shape": [8, 48], "data_offsets": [begin, end] }, ... }
//
// An entry is checked alone when it closes; names and the layout of all tensors at the end.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/base/check.h"
#include "loader/checked_math.h"
#include "loader/json_handler.h"
#include "loader/safetensors.h"
#include "loader/safetensors_dtype.h"
#include "loader/untrusted_name.h"

namespace gantry {
namespace {

// A metadata entry can be 7 bytes of JSON but costs over 100 in a map; without a limit a header of
// 100 MB could ask for 1.5 GB. Real files have tens of entries, quantized ones one per tensor.
constexpr size_t kMaxMetadataEntries = 1'000'000;

class HeaderHandler final : public JsonHandler {
 public:
  HeaderHandler(std::string_view json, const std::string& file, int64_t data_bytes)
      : JsonHandler(json, file), data_bytes_(data_bytes) {
    // Growing step by step would double the peak. Every entry has a brace, and no entry is shorter
    // than this one, so text full of braces reserves no more than entries could fill.
    constexpr std::string_view kShortest = R"("a":{"dtype":"U8","shape":[],"data_offsets":[0,1]})";
    const auto braces = static_cast<size_t>(std::count(json.begin(), json.end(), '{'));
    header_.tensors.reserve(std::min(braces, json.size() / kShortest.size()));
  }

  /// @return the header with offsets still relative to the data
  SafetensorsHeader read() {
    run();
    return std::move(header_);
  }

  bool null() override { fail_unexpected("null"); }
  bool boolean(bool /*value*/) override { fail_unexpected("a boolean"); }
  bool number_integer(number_integer_t /*value*/) override { fail_unexpected("a negative number"); }
  bool number_float(number_float_t /*value*/, const string_t& /*text*/) override {
    fail_unexpected("a number that is not an integer of 64 bits");
  }
  bool number_unsigned(number_unsigned_t value) override;
  bool string(string_t& value) override;
  bool start_object(size_t size) override;
  bool key(string_t& name) override;
  bool end_object() override;
  bool start_array(size_t size) override;
  bool end_array() override;

 private:
  /// What the parser is inside of; its name in messages is what may come next.
  enum class Place { kDocument, kTensors, kMetadata, kEntry, kShape, kOffsets };
  enum Field : unsigned { kNoField = 0, kDtype = 1, kShapeField = 2, kOffsetsField = 4 };
  static constexpr unsigned kAllFields = kDtype | kShapeField | kOffsetsField;

  [[noreturn]] void fail_unexpected(const char* found) const;
  void begin_field(const std::string& name);
  void check_entry() const;
  /// `"name": ` of the tensor whose entry is read.
  [[nodiscard]] std::string tensor_text() const {
    return "tensor " + quote_name(tensor_.name) + ": ";
  }

  SafetensorsHeader header_;
  int64_t data_bytes_;
  Place place_ = Place::kDocument;
  bool seen_metadata_ = false;
  std::string metadata_key_;
  TensorInfo tensor_;
  std::vector<int64_t> offsets_;
  unsigned seen_fields_ = 0;
  Field field_ = kNoField;  ///< field of the entry whose value comes next
};

void HeaderHandler::fail_unexpected(const char* found) const {
  switch (place_) {
    case Place::kDocument:
      fail_here(fmt::format("expected an object of tensors, found {}", found));
    case Place::kTensors:
      fail_here(fmt::format("{}expected an object, found {}", tensor_text(), found));
    case Place::kMetadata:
      fail_here(fmt::format("__metadata__: expected text for {}, found {}",
                            quote_name(metadata_key_), found));
    case Place::kShape:
      fail_here(
          fmt::format("{}shape: expected sizes from 0 to 2^63-1, found {}", tensor_text(), found));
    case Place::kOffsets:
      fail_here(fmt::format("{}data_offsets: expected two offsets from 0 to 2^63-1, found {}",
                            tensor_text(), found));
    case Place::kEntry:
      break;
  }
  fail_here(fmt::format("{}{}, found {}", tensor_text(),
                        field_ == kDtype        ? "dtype: expected text"
                        : field_ == kShapeField ? "shape: expected an array"
                                                : "data_offsets: expected an array",
                        found));
}

bool HeaderHandler::start_object(size_t /*size*/) {
  switch (place_) {
    case Place::kDocument:
      place_ = Place::kTensors;
      return true;
    case Place::kTensors:
      place_ = tensor_.name == "__metadata__" ? Place::kMetadata : Place::kEntry;
      return true;
    default:
      fail_unexpected("an object");
  }
}

bool HeaderHandler::key(string_t& name) {
  switch (place_) {
    case Place::kTensors: {
      if (name == "__metadata__") {
        if (std::exchange(seen_metadata_, true)) fail_here("duplicate key \"__metadata__\"");
      } else if (const auto problem = tensor_name_problem(name); !problem.empty()) {
        fail_here(fmt::format("tensor {}: {}", quote_name(name), problem));
      }
      // Copied, here and below: the parser's buffer is larger than the text in it.
      tensor_ = TensorInfo{.name = name, .shape = {}};
      offsets_.clear();
      seen_fields_ = 0;
      return true;
    }
    case Place::kMetadata:
      if (header_.metadata.contains(name)) {
        fail_here("__metadata__: duplicate key " + quote_name(name));
      }
      metadata_key_ = name;
      return true;
    default:
      begin_field(name);
      return true;
  }
}

void HeaderHandler::begin_field(const std::string& name) {
  field_ = name == "dtype"          ? kDtype
           : name == "shape"        ? kShapeField
           : name == "data_offsets" ? kOffsetsField
                                    : kNoField;
  if (field_ == kNoField) fail_here(tensor_text() + "unknown field " + quote_name(name));
  if ((seen_fields_ & field_) != 0) fail_here(tensor_text() + "duplicate key " + quote_name(name));
  seen_fields_ |= field_;
}

bool HeaderHandler::string(string_t& value) {
  if (place_ == Place::kMetadata) {
    header_.metadata.emplace(metadata_key_, value);
    if (header_.metadata.size() > kMaxMetadataEntries) {
      fail_here(fmt::format("__metadata__: more than {} entries", kMaxMetadataEntries));
    }
    return true;
  }
  if (place_ != Place::kEntry || field_ != kDtype) fail_unexpected("text");
  const auto dtype = parse_safetensors_dtype(value);
  if (!dtype)
    fail_here(tensor_text() + "dtype " + quote_name(value) + " is not one that is read here");
  tensor_.dtype = *dtype;
  return true;
}

bool HeaderHandler::start_array(size_t /*size*/) {
  if (place_ != Place::kEntry || field_ == kDtype) fail_unexpected("an array");
  place_ = field_ == kShapeField ? Place::kShape : Place::kOffsets;
  return true;
}

bool HeaderHandler::number_unsigned(number_unsigned_t value) {
  if (place_ != Place::kShape && place_ != Place::kOffsets) fail_unexpected("a number");
  if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    fail_unexpected(std::to_string(value).c_str());
  }
  if (place_ == Place::kShape) {
    if (tensor_.shape.size() == kMaxTensorRank) {
      fail_here(fmt::format("{}shape: more than {} dimensions", tensor_text(), kMaxTensorRank));
    }
    tensor_.shape.push_back(static_cast<int64_t>(value));
  } else {
    if (offsets_.size() == 2) fail_unexpected("a third");
    offsets_.push_back(static_cast<int64_t>(value));
  }
  return true;
}

bool HeaderHandler::end_array() {
  if (place_ == Place::kOffsets) {
    if (offsets_.size() != 2) fail_unexpected("fewer");
    tensor_.begin = offsets_[0];
    tensor_.end = offsets_[1];
  }
  place_ = Place::kEntry;
  return true;
}

bool HeaderHandler::end_object() {
  if (place_ == Place::kEntry) {
    check_entry();
    header_.tensors.push_back(std::move(tensor_));
  }
  // Closing the document leaves this in kTensors: the parser lets nothing follow.
  place_ = Place::kTensors;
  return true;
}

/// Bytes of a tensor, or nothing on overflow. A zero among the sizes does not excuse the others:
/// [0, 2^63-1] has no bytes, but strides and products of sizes would overflow in whoever uses it.
std::optional<int64_t> bytes_of_shape(const TensorInfo& tensor) {
  std::optional<int64_t> bytes = size_of(tensor.dtype);
  for (const int64_t size : tensor.shape) {
    bytes = checked_mul(*bytes, std::max<int64_t>(size, 1));
    if (!bytes) return bytes;
  }
  const bool is_empty =
      std::find(tensor.shape.begin(), tensor.shape.end(), 0) != tensor.shape.end();
  return is_empty ? 0 : bytes;
}

void HeaderHandler::check_entry() const {
  if (seen_fields_ != kAllFields) {
    const unsigned missing = kAllFields & ~seen_fields_;
    fail_here(tensor_text() + ((missing & kDtype) != 0        ? "dtype is missing"
                               : (missing & kShapeField) != 0 ? "shape is missing"
                                                              : "data_offsets is missing"));
  }
  const auto bytes = bytes_of_shape(tensor_);
  if (!bytes) fail_here(tensor_text() + "the size of " + describe(tensor_) + " overflows 64 bits");
  if (tensor_.begin > tensor_.end) {
    fail_here(fmt::format("{}data_offsets: begin {} is after end {}", tensor_text(), tensor_.begin,
                          tensor_.end));
  }
  if (tensor_.num_bytes() != *bytes) {
    fail_here(fmt::format("{}expected {} bytes for {}, data_offsets [{}, {}] give {}",
                          tensor_text(), *bytes, describe(tensor_), tensor_.begin, tensor_.end,
                          tensor_.num_bytes()));
  }
  if (tensor_.end > data_bytes_) {
    fail_here(
        fmt::format("{}expected data up to byte {}, but the file has {} bytes of data: it is "
                    "truncated or its header is wrong",
                    tensor_text(), tensor_.end, data_bytes_));
  }
  if (tensor_.begin % size_of(tensor_.dtype) != 0) {
    fail_here(fmt::format("{}{} begins at byte {} of the data, which is not a multiple of {}",
                          tensor_text(), describe(tensor_), tensor_.begin, size_of(tensor_.dtype)));
  }
}

void check_unique_names(const std::vector<TensorInfo>& tensors, const std::string& file) {
  std::vector<std::string_view> names;
  names.reserve(tensors.size());
  for (const TensorInfo& tensor : tensors)
    names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) {
    fail(ErrorCode::kFormat, "{}: duplicate key {} in the header", file, quote_name(*twice));
  }
}

/// Checks that the tensors, which are in ascending order, cover the data without hole or overlap.
void check_coverage(const std::vector<TensorInfo>& tensors, int64_t data_bytes,
                    const std::string& file) {
  int64_t covered = 0;
  for (const TensorInfo& tensor : tensors) {
    GANTRY_CHECK(tensor.begin == covered, ErrorCode::kFormat,
                 "{}: tensor {}: expected to begin at byte {} of the data, where the one before it "
                 "ends, found {}",
                 file, quote_name(tensor.name), covered, tensor.begin);
    covered = tensor.end;
  }
  GANTRY_CHECK(covered == data_bytes, ErrorCode::kFormat,
               "{}: expected {} bytes of data, as its tensors need, found {}", file, covered,
               data_bytes);
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view json, int64_t file_bytes,
                                           const std::string& file) {
  const auto json_bytes = static_cast<int64_t>(json.size());
  GANTRY_CHECK(json_bytes <= kMaxHeaderBytes, ErrorCode::kFormat,
               "{}: expected a header of at most {} bytes, found {}", file, kMaxHeaderBytes,
               json_bytes);
  const int64_t data_begin = 8 + json_bytes;
  GANTRY_CHECK(file_bytes >= data_begin, ErrorCode::kFormat,
               "{}: expected {} bytes for the header, the file has {}", file, data_begin,
               file_bytes);
  GANTRY_CHECK(json.starts_with('{'), ErrorCode::kFormat,
               "{}: expected a header that begins with '{{', found {}", file,
               quote_name(json.substr(0, 1)));

  const int64_t data_bytes = file_bytes - data_begin;
  SafetensorsHeader header = HeaderHandler(json, file, data_bytes).read();
  check_unique_names(header.tensors, file);
  // Empty tensors share their offset with the tensor that follows: the end decides, then the name.
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) {
              return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
            });
  check_coverage(header.tensors, data_bytes, file);

  header.data_begin = data_begin;
  for (TensorInfo& tensor : header.tensors) {
    tensor.begin += data_begin;  // cannot overflow: end <= file_bytes was checked
    tensor.end += data_begin;
  }
  return header;
}

}  // namespace gantry
