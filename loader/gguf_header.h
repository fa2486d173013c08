#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/base/export.h"
#include "loader/safetensors.h"

namespace gantry GANTRY_API {

/// A metadata value. Only what may describe a model is kept: numbers, flags, short strings and
/// short lists of numbers; vocabularies and templates are walked over (monostate).
using GgufValue = std::variant<std::monostate, bool, int64_t, double, std::string,
                               std::vector<int64_t>, std::vector<double>>;

/// The checked header of a GGUF file.
struct GgufHeader {
  uint32_t version = 0;
  std::map<std::string, GgufValue, std::less<>> metadata;
  /// In the order of the file. Shapes are row-major, that is ggml's `ne` reversed: ne = [in, out,
  /// E] is [E, out, in].
  std::vector<TensorInfo> tensors;
  int64_t data_begin = 0;
};

/// Limits of what is read from a file that nobody vouches for. Real files: some 50 keys, 2,000
/// tensors, 20 MB of vocabulary.
inline constexpr int64_t kMaxGgufHeaderBytes = int64_t{1} << 30;
inline constexpr uint64_t kMaxGgufKeys = uint64_t{1} << 16;
inline constexpr uint64_t kMaxGgufTensors = uint64_t{1} << 20;
inline constexpr uint64_t kMaxGgufNameBytes = 65535;       // the specification's limit for keys
inline constexpr uint64_t kMaxGgufKeptStringBytes = 1024;  // longer ones are no names of anything
inline constexpr uint64_t kMaxGgufKeptValues = 4096;       // one a layer

/// Reads bytes [offset, offset + size) of a file; called in ascending order, inside the file only.
using GgufSource = std::function<void(int64_t offset, void* destination, int64_t size)>;

/// Parses and checks a header: versions 2 and 3, little endian.
///
/// Stricter than ggml's reader: it refuses duplicate keys and tensors, flags other than 0 and 1,
/// and names with control characters. As there, tensors stand one after the other with nothing but
/// padding in between. Tensors of types that are not known are kept (`block_type` "type N"): their
/// size is what lies before the next tensor.
///
/// @param file name used in messages
/// @throws Error kFormat naming the file, the key or tensor, what was expected and what was found
/// @throws Error kUnsupported for other versions
/// @source ggml's GGUF specification
GgufHeader parse_gguf_header(const GgufSource& source, int64_t file_bytes, const std::string& file);

}  // namespace gantry
