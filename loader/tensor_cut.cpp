#include "loader/tensor_cut.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "kernels/base/check.h"

namespace gantry {
namespace {

template <size_t kCount>
bool is_one_of(std::string_view suffix, const std::array<std::string_view, kCount>& names) {
  return std::find(names.begin(), names.end(), suffix) != names.end();
}

// Vectors along the inputs and along the outputs, and matrices of codes, scales and zero points.
constexpr std::array<std::string_view, 1> kInputVectors = {"pre_quant_scale"};
constexpr std::array<std::string_view, 3> kOutputVectors = {"bias", "SCB", "weight_scale"};
constexpr std::array<std::string_view, 2> kGroupIndices = {"g_idx", "weight_g_idx"};
constexpr std::array<std::string_view, 4> kCodes = {"weight", "weight_packed", "qweight", "blocks"};
constexpr std::array<std::string_view, 5> kScales = {"weight_scale", "weight_scale_inv", "scales",
                                                     "weight_zero_point", "qzeros"};

/// One axis of the matrix as a tensor counts it.
struct Axis {
  std::string_view what;  ///< "outputs" or "inputs"
  int64_t size = 0;       ///< of the matrix
  int64_t count = 0;      ///< of the tensor
  int64_t block = 0;      ///< of the matrix that share one scale, as the config says; 0: unknown
  bool shared = false;    ///< an entry may go to several ranks
};

struct Range {
  int64_t begin = 0;
  int64_t count = 0;
};

class Cutter {
 public:
  Cutter(const EncodedPart& part, const MatrixCut& cut, const QuantScheme& scheme)
      : part_(part), cut_(cut), scheme_(scheme) {}

  EncodedCut cut_matrix() const {
    const std::vector<int64_t>& dims = part_.shape.dims;
    const Range out = range(axis_of(/*outputs=*/true), cut_.out);
    const Range in = range(axis_of(/*outputs=*/false), cut_.in);
    const Range& rows = part_.in_first ? in : out;
    const Range& cols = part_.in_first ? out : in;
    EncodedCut result{.dims = dims, .first_row = rows.begin, .first_col = 0, .literal = {}};
    result.dims[0] = rows.count;
    result.dims[1] = cols.count;
    result.first_col = cols.begin * (part_.shape.cols / dims[1]);  // "blocks" has bytes within
    return result;
  }

  EncodedCut cut_vector(bool outputs) const {
    const Slice& slice = outputs ? cut_.out : cut_.in;
    const int64_t size = outputs ? cut_.size.out : cut_.size.in;
    GANTRY_CHECK(part_.shape.dims[0] == size, ErrorCode::kUnsupported,
                 "{}: expected {} values to cut, found {}", part_.name, size,
                 shape_text(part_.shape.dims));
    return {.dims = {slice.size()}, .first_row = slice.begin, .first_col = 0, .literal = {}};
  }

  EncodedCut cut_groups(const std::vector<std::byte>& bytes) const {
    GANTRY_CHECK(part_.dtype == DType::kI32 && part_.shape.dims.size() == 1 &&
                     part_.shape.dims[0] == cut_.size.in,
                 ErrorCode::kUnsupported, "{}: expected [{}] i32, found {} {}", part_.name,
                 cut_.size.in, shape_text(part_.shape.dims), to_string(part_.dtype));
    EncodedCut result{.dims = {cut_.in.size()}, .first_row = 0, .first_col = 0, .literal = bytes};
    if (cut_.in.size() == cut_.size.in) return result;
    const int64_t group = scheme_.group_size > 0 ? scheme_.group_size : cut_.size.in;
    std::vector<int32_t> groups(static_cast<size_t>(cut_.size.in));
    std::memcpy(groups.data(), bytes.data(), bytes.size());
    for (size_t i = 0; i < groups.size(); ++i) {
      GANTRY_CHECK(groups[i] == static_cast<int64_t>(i) / group, ErrorCode::kUnsupported,
                   "{}: inputs are in groups by activation order (element {} in group {}), so {} "
                   "of {} inputs need the scales of groups that other ranks count: --tp 1 is "
                   "possible",
                   part_.name, i, groups[i], cut_.in.size(), cut_.size.in);
    }
    groups.resize(static_cast<size_t>(cut_.in.size()));
    for (size_t i = 0; i < groups.size(); ++i)
      groups[i] = static_cast<int32_t>(static_cast<int64_t>(i) / group);
    result.literal.resize(groups.size() * sizeof(int32_t));
    std::memcpy(result.literal.data(), groups.data(), result.literal.size());
    return result;
  }

  EncodedCut declared_shape() const {
    EncodedCut result{.dims = {2}, .first_row = 0, .first_col = 0, .literal = {}};
    const std::array<int64_t, 2> wide = {cut_.out.size(), cut_.in.size()};
    const std::array<int32_t, 2> narrow = {static_cast<int32_t>(wide[0]),
                                           static_cast<int32_t>(wide[1])};
    const bool is_wide = part_.dtype == DType::kI64;
    GANTRY_CHECK(
        (is_wide || part_.dtype == DType::kI32) && part_.shape.dims == std::vector<int64_t>{2},
        ErrorCode::kUnsupported, "{}: expected two sizes, found {} {}", part_.name,
        shape_text(part_.shape.dims), to_string(part_.dtype));
    const std::span<const std::byte> bytes =
        is_wide ? std::span<const std::byte>(std::as_bytes(std::span(wide)))
                : std::span<const std::byte>(std::as_bytes(std::span(narrow)));
    result.literal.assign(bytes.begin(), bytes.end());
    return result;
  }

 private:
  [[nodiscard]] Axis axis_of(bool outputs) const {
    const bool scale = is_one_of(part_.suffix, kScales);
    Axis axis;
    axis.what = outputs ? "outputs" : "inputs";
    axis.size = outputs ? cut_.size.out : cut_.size.in;
    axis.count = part_.shape.dims[outputs == part_.in_first ? 1 : 0];
    if (scale && scheme_.grid == ScaleGrid::kBlock) {
      axis.block = outputs ? scheme_.block_rows : scheme_.block_cols;
    } else if (scale && scheme_.grid == ScaleGrid::kGroup && !outputs) {
      axis.block = scheme_.group_size;
    }
    // Zero points along the outputs are packed like codes.
    const bool zeros = part_.suffix == "weight_zero_point" || part_.suffix == "qzeros";
    axis.shared = scale && !(zeros && outputs);
    return axis;
  }

  /// The tensor's entries for a part of the axis.
  [[nodiscard]] Range range(const Axis& axis, const Slice& slice) const {
    if (slice.size() == axis.size) return {0, axis.count};
    if (axis.shared && axis.count == 1) return {0, 1};
    if (axis.shared && axis.block > 0 && (axis.size + axis.block - 1) / axis.block == axis.count) {
      return shared_range(axis, slice, axis.block);
    }
    if (axis.count != axis.size && part_.dtype == DType::kI32) return word_range(axis, slice);
    GANTRY_CHECK(axis.count > 0 && axis.size % axis.count == 0, ErrorCode::kUnsupported,
                 "{}: {} entries for {} {} have no equal borders to cut at", part_.name, axis.count,
                 axis.size, axis.what);
    const int64_t unit = axis.size / axis.count;
    if (axis.shared) return shared_range(axis, slice, unit);
    GANTRY_CHECK(slice.begin % unit == 0 && slice.end % unit == 0, ErrorCode::kUnsupported,
                 "{}: {} {} share an entry, and the cut [{}, {}) goes through one", part_.name,
                 unit, axis.what, slice.begin, slice.end);
    return {slice.begin / unit, slice.size() / unit};
  }

  [[nodiscard]] Range shared_range(const Axis& axis, const Slice& slice, int64_t unit) const {
    const int64_t first = slice.begin / unit;
    const int64_t last = (slice.end - 1) / unit;
    GANTRY_CHECK(slice.begin % unit == 0 || first == last, ErrorCode::kUnsupported,
                 "{}: {} {} share a scale, and the cut [{}, {}) begins inside of them and goes on "
                 "behind: its weights would be counted to other scales",
                 part_.name, unit, axis.what, slice.begin, slice.end);
    return {first, last - first + 1};
  }

  [[nodiscard]] Range word_range(const Axis& axis, const Slice& slice) const {
    const int64_t bits = scheme_.bits;
    GANTRY_CHECK(bits > 0 && (axis.size * bits + 31) / 32 == axis.count, ErrorCode::kUnsupported,
                 "{}: expected {} {} of {} bits in words of 32, found {} words", part_.name,
                 axis.size, axis.what, bits, axis.count);
    const bool whole =
        slice.begin * bits % 32 == 0 && (slice.end * bits % 32 == 0 || slice.end == axis.size);
    GANTRY_CHECK(
        whole, ErrorCode::kUnsupported,
        "{}: codes of {} bits share words, and the cut [{}, {}) of the {} goes through one",
        part_.name, bits, slice.begin, slice.end, axis.what);
    return {slice.begin * bits / 32, (slice.size() * bits + 31) / 32};
  }

  const EncodedPart& part_;
  const MatrixCut& cut_;
  const QuantScheme& scheme_;
};

}  // namespace

EncodedCut cut_encoded(const EncodedPart& part, const MatrixCut& cut, const QuantScheme& scheme,
                       const std::function<std::vector<std::byte>()>& read) {
  const Cutter cutter(part, cut, scheme);
  if (part.suffix == "weight_shape") return cutter.declared_shape();
  if (part.shape.scalar) return {.dims = part.shape.dims, .literal = {}};
  if (is_one_of(part.suffix, kGroupIndices)) return cutter.cut_groups(read());
  const size_t rank = part.shape.dims.size();
  if (rank == 1 && is_one_of(part.suffix, kInputVectors)) return cutter.cut_vector(false);
  if (rank == 1 && is_one_of(part.suffix, kOutputVectors)) return cutter.cut_vector(true);
  const bool flat = scheme.method == "bitsandbytes" && part.dtype == DType::kU8;
  const bool known = is_one_of(part.suffix, kCodes) || is_one_of(part.suffix, kScales);
  GANTRY_CHECK(known && !flat && (rank == 2 || (rank == 3 && part.suffix == "blocks")),
               ErrorCode::kUnsupported,
               "{}: where {} {} is cut for tensor parallelism is not defined; --tp 1 is possible",
               part.name, part.suffix, shape_text(part.shape.dims));
  return cutter.cut_matrix();
}

}  // namespace gantry
