// Fuzzes the parser of *.safetensors.index.json, and with it strict JSON. Input: the file's text.
// No shard name that is accepted may lead out of the checkpoint's directory.

#include <cstdint>
#include <filesystem>
#include <string_view>

#include "kernels/base/error.h"
#include "loader/safetensors_index.h"
#include "tests/fuzz/fuzz_check.h"

namespace gantry::test {
namespace {

void parse(std::string_view input) {
  try {
    const SafetensorsIndex index = parse_safetensors_index(input, "fuzz");
    fuzz_check(!index.weight_map.empty(), "an index names tensors");
    for (const auto& [name, shard] : index.weight_map) {
      fuzz_check(!name.empty(), "a tensor has a name");
      fuzz_check(shard.find('\0') == std::string::npos, "a shard's name has no NUL");
      const auto path = (std::filesystem::path("/model") / shard).lexically_normal();
      fuzz_check(path.parent_path() == "/model", "a shard is in the directory");
    }
  } catch (const Error& error) {
    fuzz_check(error.code() == ErrorCode::kFormat, "a bad index is a format error");
  }
}

}  // namespace
}  // namespace gantry::test

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  gantry::test::parse({reinterpret_cast<const char*>(data), size});
  return 0;
}
