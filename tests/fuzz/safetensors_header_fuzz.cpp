// Fuzzes the safetensors header parser.
//
// Input: a decimal number (the bytes of data that follow the header in the file), a newline, the
// header's JSON. A header that is accepted must keep every promise that readers rely on.

#include <charconv>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "kernels/base/error.h"
#include "loader/safetensors.h"
#include "tests/fuzz/fuzz_check.h"

namespace gantry::test {
namespace {

void check_promises(const SafetensorsHeader& header, int64_t file_bytes) {
  int64_t covered = header.data_begin;
  for (const TensorInfo& tensor : header.tensors) {
    fuzz_check(!tensor.name.empty(), "a tensor has a name");
    fuzz_check(tensor.name.find('\0') == std::string::npos, "a name has no NUL");
    fuzz_check(tensor.begin == covered, "tensors touch");
    fuzz_check(tensor.end >= tensor.begin, "begin <= end");
    fuzz_check(tensor.shape.size() <= kMaxTensorRank, "rank is bounded");
    fuzz_check((tensor.begin - header.data_begin) % size_of(tensor.dtype) == 0, "aligned");
    // Signed overflow in num_elements would be a finding of its own, under UBSan.
    fuzz_check(tensor.num_elements() * size_of(tensor.dtype) == tensor.num_bytes(), "size fits");
    covered = tensor.end;
  }
  fuzz_check(covered == file_bytes, "tensors cover the file");
}

void parse(std::string_view input) {
  int64_t data_bytes = 0;
  const auto number = std::from_chars(input.data(), input.data() + input.size(), data_bytes);
  if (number.ec != std::errc() || data_bytes < 0) return;
  input.remove_prefix(static_cast<size_t>(number.ptr - input.data()));
  if (!input.starts_with('\n')) return;
  input.remove_prefix(1);

  const int64_t header_bytes = 8 + static_cast<int64_t>(input.size());
  if (data_bytes > std::numeric_limits<int64_t>::max() - header_bytes) return;  // no such file
  const int64_t file_bytes = header_bytes + data_bytes;
  try {
    check_promises(parse_safetensors_header(input, file_bytes, "fuzz"), file_bytes);
  } catch (const Error& error) {
    fuzz_check(error.code() == ErrorCode::kFormat, "a bad header is a format error");
  }
}

}  // namespace
}  // namespace gantry::test

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  gantry::test::parse({reinterpret_cast<const char*>(data), size});
  return 0;
}
