// Fuzzes the GGUF header parser, and what is made of its metadata. Input: a GGUF file. A header
// that is accepted must keep every promise that readers rely on.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"
#include "loader/encodings/ggml_types.h"
#include "loader/gguf_config.h"
#include "loader/gguf_header.h"
#include "loader/moe_config.h"
#include "tests/fuzz/fuzz_check.h"

namespace gantry::test {
namespace {

void check_tensor(const TensorInfo& tensor, int64_t file_bytes) {
  fuzz_check(!tensor.name.empty(), "a tensor has a name");
  fuzz_check(tensor.name.find('\0') == std::string::npos, "a name has no NUL");
  fuzz_check(tensor.shape.size() <= 4, "rank is bounded");
  fuzz_check(tensor.begin <= tensor.end && tensor.end <= file_bytes, "a tensor is in the file");
  for (const int64_t size : tensor.shape)
    fuzz_check(size >= 0, "sizes are not negative");
  // Signed overflow in num_elements would be a finding of its own, under UBSan.
  const int64_t elements = tensor.num_elements();
  if (tensor.block_type.empty()) {
    fuzz_check(elements * size_of(tensor.dtype) == tensor.num_bytes(), "size fits");
  } else if (const GgmlType* type = find_ggml_type(tensor.block_type)) {
    fuzz_check(type->has_blocks() && tensor.dtype == DType::kU8, "blocks are bytes");
    fuzz_check(elements / type->block_elements * type->block_bytes == tensor.num_bytes(),
               "blocks fit");
  }
}

void check_header(const GgufHeader& header, int64_t file_bytes) {
  std::set<std::string> names;
  std::vector<std::pair<int64_t, int64_t>> places;
  for (const TensorInfo& tensor : header.tensors) {
    check_tensor(tensor, file_bytes);
    fuzz_check(tensor.begin >= header.data_begin, "tensors stand behind the header");
    fuzz_check(names.insert(tensor.name).second, "names differ");
    places.emplace_back(tensor.begin, tensor.end);
  }
  std::sort(places.begin(), places.end());
  for (size_t i = 1; i < places.size(); ++i)
    fuzz_check(places[i - 1].second <= places[i].first, "tensors do not overlap");
}

void check_model(const GgufHeader& header) {
  std::vector<const TensorInfo*> tensors;
  for (const TensorInfo& tensor : header.tensors)
    tensors.push_back(&tensor);
  const MoeModelConfig model =
      read_moe_config(gguf_config_text(header.metadata, tensors, "fuzz"), "fuzz");
  fuzz_check(!model.layers.empty() && model.family->name == "gguf", "a model has MoE layers");
  for (const MoeLayerSpec& layer : model.layers) {
    fuzz_check(layer.routing.top_k >= 1 && layer.routing.top_k <= layer.num_experts,
               "top_k is at most the number of experts");
    fuzz_check(layer.hidden_size >= 1 && layer.intermediate_size >= 1, "sizes are positive");
  }
}

void parse(std::string_view input) {
  const auto file_bytes = static_cast<int64_t>(input.size());
  int64_t previous = 0;
  const auto source = [&](int64_t offset, void* destination, int64_t size) {
    fuzz_check(size > 0 && offset >= previous && size <= file_bytes - offset,
               "reads go forward and stay inside the file");
    previous = offset;
    std::memcpy(destination, input.data() + offset, static_cast<size_t>(size));
  };
  try {
    const GgufHeader header = parse_gguf_header(source, file_bytes, "fuzz");
    check_header(header, file_bytes);
    check_model(header);
  } catch (const Error& error) {
    fuzz_check(error.code() == ErrorCode::kFormat || error.code() == ErrorCode::kUnsupported,
               "a bad file is a format error");
  }
}

}  // namespace
}  // namespace gantry::test

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  gantry::test::parse({reinterpret_cast<const char*>(data), size});
  return 0;
}
