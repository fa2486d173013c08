#include "loader/encoded_job.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "kernels/base/check.h"
#include "kernels/grouped_gemm/pack_codes.h"
#include "loader/encodings/encoded_matrix.h"
#include "loader/encodings/matrix_structure.h"
#include "loader/encodings/scale_grid.h"
#include "loader/encodings/scale_sanity.h"
#include "loader/expected_tensors.h"
#include "loader/read_job.h"
#include "loader/tensor_geometry.h"

namespace gantry {
namespace {

std::string_view suffix_of(const TensorSource& source) {
  return source.ref.kind == TensorKind::kWeight ? std::string_view("weight") : source.ref.suffix;
}

int64_t bytes_of(const TensorSource& source) {
  const TensorInfo& info = source.tensor->info;
  const bool per_expert = source.ref.expert >= 0 || !is_expert_part(source.ref.part) ||
                          info.shape.empty() || info.shape[0] == 0;
  return info.num_bytes() / (per_expert ? 1 : info.shape[0]);
}

// One tensor of the matrix as if it stood alone: the expert's slab of a stacked tensor, and of that
// the rows of gate or up where both share it.
class TensorReader {
 public:
  TensorReader(const Checkpoint& checkpoint, const FamilySpec& family, const MoeLayerSpec& layer,
               const EncodedJob& job)
      : checkpoint_(checkpoint), family_(family), layer_(layer), job_(job) {}

  EncodedTensor read(const TensorSource& source) {
    const TensorInfo& info = source.tensor->info;
    EncodedTensor tensor{source.name, info.dtype, info.shape, nullptr, info.block_type};
    std::vector<std::byte> bytes(static_cast<size_t>(bytes_of(source)));
    int64_t begin = info.begin;
    if (source.ref.expert < 0 && is_expert_part(source.ref.part)) {
      const TensorPattern& pattern = family_.tensors[static_cast<size_t>(source.ref.pattern)];
      GANTRY_CHECK(pattern.stacking == Stacking::kStacked3d && info.shape.size() >= 2 &&
                       info.shape[0] == layer_.num_experts,
                   ErrorCode::kFormat, "{}: expected [{}, ...], found {}", source.name,
                   layer_.num_experts, shape_text(info.shape));
      GANTRY_CHECK(pattern.orientation == Orientation::kOutIn || is_row_first(source),
                   ErrorCode::kUnsupported, "{}: quantized experts stored [in, out]", source.name);
      begin += job_.expert * static_cast<int64_t>(bytes.size());
      tensor.shape.erase(tensor.shape.begin());
    }
    checkpoint_.files()[static_cast<size_t>(source.tensor->file)].read(
        begin, bytes.data(), static_cast<int64_t>(bytes.size()));
    bytes_read += static_cast<int64_t>(bytes.size());
    take_half(source, tensor, bytes);
    memory_.push_back(std::move(bytes));
    tensor.data = memory_.back().data();
    return tensor;
  }

  int64_t bytes_read = 0;

 private:
  // gpt-oss: blocks and scales are [out, in] although the unquantized parameter is [in, out].
  static bool is_row_first(const TensorSource& source) {
    return source.ref.suffix == "blocks" || source.ref.suffix == "scales";
  }

  void take_half(const TensorSource& source, EncodedTensor& tensor, std::vector<std::byte>& bytes) {
    const TensorPattern& pattern = family_.tensors[static_cast<size_t>(source.ref.pattern)];
    const bool holds_both = pattern.part == Part::kW13 || pattern.part == Part::kSharedW13;
    if (!holds_both || tensor.num_elements() == 1) return;  // one scale is that of both
    const int64_t rows = tensor.shape[0];
    GANTRY_CHECK(rows > 0 && rows % 2 == 0, ErrorCode::kFormat, "{}: {} rows for gate and up",
                 source.name, rows);
    const size_t row_bytes = bytes.size() / static_cast<size_t>(rows);
    const bool is_gate = job_.part == Part::kW1 || job_.part == Part::kSharedW1;
    const bool interleaved = pattern.gate_up == GateUp::kInterleaved;
    const auto first = static_cast<size_t>(is_gate ? 0 : interleaved ? 1 : rows / 2);
    std::vector<std::byte> half(bytes.size() / 2);
    for (size_t r = 0; r < static_cast<size_t>(rows / 2); ++r) {
      const size_t from = first + r * (interleaved ? 2 : 1);
      std::memcpy(half.data() + r * row_bytes, bytes.data() + from * row_bytes, row_bytes);
    }
    bytes = std::move(half);
    tensor.shape[0] = rows / 2;
  }

  const Checkpoint& checkpoint_;
  const FamilySpec& family_;
  const MoeLayerSpec& layer_;
  const EncodedJob& job_;
  std::vector<std::vector<std::byte>> memory_;
};

EncodedMatrix describe(const LayerTensors& tensors, const MoeLayerSpec& layer, int expert,
                       Part part) {
  EncodedMatrix matrix;
  matrix.size = part_size(part, layer);
  for (const TensorSource* source : encoded_sources(tensors, expert, part)) {
    const TensorInfo& info = source->tensor->info;
    matrix.tensors.emplace(suffix_of(*source), EncodedTensor{source->name, info.dtype, info.shape,
                                                             nullptr, info.block_type});
  }
  return matrix;
}

// Whether inputs are in groups by g_idx other than in order. Ascending groups are in order, except
// for uneven ones, which the reader then finds.
bool has_activation_order(const Checkpoint& checkpoint, const LayerTensors& tensors, int expert,
                          Part part) {
  for (const TensorSource* source : encoded_sources(tensors, expert, part)) {
    if (suffix_of(*source) != "g_idx" && suffix_of(*source) != "weight_g_idx") continue;
    const TensorInfo& info = source->tensor->info;
    if (info.dtype != DType::kI32) return true;  // the reader will refuse it
    std::vector<int32_t> groups(static_cast<size_t>(info.num_elements()));
    checkpoint.files()[static_cast<size_t>(source->tensor->file)].read(info.begin, groups.data(),
                                                                       info.num_bytes());
    if (!std::is_sorted(groups.begin(), groups.end())) return true;
  }
  return false;
}

// Where gate and up share a tensor, a block of scales must not reach from one into the other.
void check_no_shared_blocks(const QuantScheme& scheme, const TensorSource& source,
                            const FamilySpec& family, const MatrixSize& size) {
  const TensorPattern& pattern = family.tensors[static_cast<size_t>(source.ref.pattern)];
  if (scheme.grid != ScaleGrid::kBlock || pattern.gate_up == GateUp::kSeparate) return;
  GANTRY_CHECK(pattern.gate_up == GateUp::kConcatenated && size.out % scheme.block_rows == 0,
               ErrorCode::kUnsupported, "{}: blocks of {} rows reach across gate and up of {} rows",
               source.name, scheme.block_rows, size.out);
}

// A multiplier of the projection's input is one of the matrix' columns.
void fold_input_scale(const EncodedMatrix& matrix, std::vector<float>& decoded) {
  const EncodedTensor* scale = matrix.find("pre_quant_scale");
  if (scale == nullptr) return;
  require_tensor(*scale, scale->dtype, {matrix.size.in});
  const std::vector<float> values = scale_values(*scale);
  for (size_t i = 0; i < decoded.size(); ++i)
    decoded[i] *= values[i % values.size()];
}

// The rows and inputs that a rank owns, as its slots' layout has them.
class CodedShard {
 public:
  CodedShard(const CodedMatrix& coded, const Slice& out, const Slice& in,
             const WeightFormat& format)
      : coded_(coded), out_(out), in_(in) {
    const auto row = static_cast<size_t>(out.begin);
    block_ = {
        .rows = out.size(),
        .cols = in.size(),
        .output_scales = coded.output_scales.empty() ? nullptr : coded.output_scales.data() + row,
        .nibbles = coded.nibbles(),
        .flip = coded.flip};
    if (coded.nibbles() && in.begin % 2 != 0) {
      cut_codes();
    } else {
      block_.stride = coded.row_bytes();
      block_.codes = coded.code_row(out.begin) + in.begin / (coded.nibbles() ? 2 : 1);
    }
    if (!format.grouped()) return;
    const int64_t groups = (in.size() + format.group - 1) / format.group;
    const int64_t stored = size_of(format.scale);
    if (coded.file_scales != nullptr && coded.format.group == format.group) {
      block_.scale_stride = coded.num_groups() * stored;
      block_.stored_scales =
          coded.file_scales + out.begin * block_.scale_stride + in.begin / format.group * stored;
    } else {
      cut(groups, format.group, scales_, [&](int64_t at) { return coded.scale(at); });
      block_.scales = scales_.data();
    }
    if (coded.zeros.empty()) return;
    cut(groups, format.group, zeros_,
        [&](int64_t at) { return coded.zeros[static_cast<size_t>(at)]; });
    block_.zeros = zeros_.data();
  }
  [[nodiscard]] const CodedBlock& block() const noexcept { return block_; }

 private:
  // Codes that begin within a byte, one a byte.
  void cut_codes() {
    codes_.reserve(static_cast<size_t>(out_.size() * in_.size()));
    for (int64_t o = out_.begin; o < out_.end; ++o) {
      for (int64_t i = in_.begin; i < in_.end; ++i)
        codes_.push_back(coded_.code(o, i));
    }
    block_.codes = codes_.data();
    block_.stride = in_.size();
    block_.nibbles = false;
    block_.flip = 0;
  }

  template <typename T, typename At>
  void cut(int64_t groups, int64_t group, std::vector<T>& part, const At& at) {
    part.resize(static_cast<size_t>(out_.size() * groups));
    size_t next = 0;
    for (int64_t o = out_.begin; o < out_.end; ++o) {
      for (int64_t g = 0; g < groups; ++g) {
        part[next++] = at(o * coded_.num_groups() + (in_.begin + g * group) / coded_.format.group);
      }
    }
  }

  const CodedMatrix& coded_;
  Slice out_;
  Slice in_;
  CodedBlock block_;
  std::vector<uint8_t> codes_;
  std::vector<float> scales_;
  std::vector<int8_t> zeros_;
};

void pack_shard(const CodedMatrix& coded, const EncodedJob& job) {
  const PackedLayout& layout = *job.target.panels;
  GANTRY_CHECK(
      shard_format(coded.format, job.in.begin) == layout.format && coded.input_groups.empty(),
      ErrorCode::kFormat, "expected {}, found {}{}", to_string(layout.format),
      to_string(coded.format),
      coded.input_groups.empty() ? "" : " with groups that are not in order");
  const CodedShard shard(coded, job.out, job.in, layout.format);
  for (const EncodedJob::Destination& destination : job.destinations) {
    if (destination.slot == nullptr) continue;
    GANTRY_CHECK(pack_coded_rows(layout, shard.block(), job.target.first_row,
                                 destination.slot + job.target.offset),
                 ErrorCode::kInternal, "a scale is not a value of {}", to_string(layout.format));
  }
}

void pack_decoded(const std::vector<float>& decoded, const EncodedJob& job,
                  const MatrixSize& size) {
  const StridedBlock block{.data = reinterpret_cast<const std::byte*>(
                               decoded.data() + job.out.begin * size.in + job.in.begin),
                           .rows = job.out.size(),
                           .cols = job.in.size(),
                           .row_stride = size.in,
                           .col_stride = 1};
  for (const EncodedJob::Destination& destination : job.destinations) {
    if (destination.slot == nullptr) continue;
    pack_block(*job.target.panels, block, job.target.first_row, 0,
               destination.slot + job.target.offset);
  }
}

void add_finding(FindingKind kind, const std::string& message, const TensorSource& source,
                 const EncodedJob& job, const Checkpoint& checkpoint, LoadReport& report,
                 int64_t element = -1) {
  const std::string file = checkpoint.file_name(*source.tensor);
  report.add({kind,
              fmt::format("{} (layer {}, expert {}, {}; {})", message, source.ref.layer, job.expert,
                          to_string(job.part), file),
              source.name, file, source.ref.layer, job.expert, std::string(to_string(job.part)),
              element});
}

// @return whether some scale is not finite: then the weights are not either, and nothing is gained
// by saying so
bool add_scale_findings(const QuantScheme& scheme, const EncodedMatrix& matrix,
                        const std::vector<const TensorSource*>& sources, const EncodedJob& job,
                        const Checkpoint& checkpoint, LoadReport& report) {
  bool finite = true;
  for (const ScaleProblem& problem : find_scale_problems(scheme, matrix)) {
    const auto source = std::find_if(
        sources.begin(), sources.end(),
        [&](const TensorSource* candidate) { return candidate->ref.suffix == problem.suffix; });
    add_finding(problem.kind, problem.message, **source, job, checkpoint, report, problem.element);
    finite = finite && problem.kind != FindingKind::kNonFinite;
  }
  return finite;
}

// What is missing beside the codes, by name; what is left to say is the decoder's.
void add_missing(const std::string& suffix, const TensorSource& source, const EncodedJob& job,
                 const Checkpoint& checkpoint, LoadReport& report) {
  add_finding(FindingKind::kMissing,
              fmt::format("{}: expected a {} beside it, found none", source.name, suffix), source,
              job, checkpoint, report);
}

}  // namespace

std::vector<const TensorSource*> encoded_sources(const LayerTensors& tensors, int expert,
                                                 Part part) {
  std::vector<const TensorSource*> sources;
  if (const TensorSource* weight = tensors.expert_source(expert, part, TensorKind::kWeight)) {
    sources.push_back(weight);
  }
  const auto& encoded = tensors.matrices(expert).encoded[expert_part_index(part)];
  for (const auto& [suffix, source] : encoded)
    sources.push_back(source);
  return sources;
}

ExpertFormats expert_formats(const Checkpoint& checkpoint, const MoeLayerSpec& layer,
                             const LayerTensors& tensors, const Slice& intermediate) {
  ExpertFormats formats;
  for (int expert = 0; expert < layer.num_experts; ++expert) {
    for (const Part part : kExpertParts) {
      if (part == Part::kW3 && !layer.gated()) continue;
      const auto decodes = [&](std::string_view why) {
        return ExpertFormats{{}, {}, fmt::format("expert {} {}: {}", expert, to_string(part), why)};
      };
      const QuantScheme* scheme = tensors.matrices(expert).schemes[expert_part_index(part)];
      if (scheme == nullptr) return decodes("is not quantized");
      std::optional<WeightFormat> found;
      try {
        found = coded_format(*scheme, describe(tensors, layer, expert, part));
      } catch (const Error& error) {  // the load reports it with all that belongs to it
        return decodes(error.what());
      }
      if (!found) return decodes("no kernel format holds it");
      if (has_activation_order(checkpoint, tensors, expert, part)) {
        return decodes("activation order");
      }
      const bool is_w2 = part == Part::kW2;
      if (is_w2) *found = shard_format(*found, intermediate.begin);
      if (!found->coded()) return decodes("the shard cuts groups too small");
      WeightFormat& format = is_w2 ? formats.w2 : formats.w13;
      if (!format.coded()) format = *found;
      if (format != *found) {
        return decodes(fmt::format("{}, others {}", to_string(*found), to_string(format)));
      }
    }
  }
  return formats;
}

int64_t encoded_bytes(const LayerTensors& tensors, int expert, Part part) {
  int64_t bytes = 0;
  for (const TensorSource* source : encoded_sources(tensors, expert, part))
    bytes += bytes_of(*source);
  return bytes;
}

int64_t run_encoded_job(const Checkpoint& checkpoint, const MoeModelConfig& config,
                        const MoeLayerSpec& layer, const LayerTensors& tensors,
                        const EncodedJob& job, const LoadOptions& options, LoadLedger& ledger,
                        LoadReport& report) {
  TensorReader reader(checkpoint, *config.family, layer, job);
  const std::vector<const TensorSource*> sources = encoded_sources(tensors, job.expert, job.part);
  EncodedMatrix matrix;
  matrix.size = part_size(job.part, layer);
  bool finite = true;
  const auto check_finite = [&](int64_t bad, std::string_view what) {
    if (!options.check_finite || bad < 0 || !finite) return;  // one finding a matrix says enough
    add_finding(FindingKind::kNonFinite,
                fmt::format("{}: element [{}, {}] is {} once dequantized", sources[0]->name,
                            bad / matrix.size.in, bad % matrix.size.in, what),
                *sources[0], job, checkpoint, report);
  };
  try {
    for (const TensorSource* source : sources)
      matrix.tensors.emplace(suffix_of(*source), reader.read(*source));
    const QuantScheme& scheme = *tensors.matrices(job.expert).schemes[expert_part_index(job.part)];
    for (const TensorSource* source : sources)
      check_no_shared_blocks(scheme, *source, *config.family, matrix.size);
    if (const auto missing = missing_companion(scheme, matrix)) {
      add_missing(*missing, *sources[0], job, checkpoint, report);
      return reader.bytes_read;
    }
    check_declared_shape(matrix);
    const auto check_scales = [&] {
      if (!options.check_finite) return;
      finite = add_scale_findings(scheme, matrix, sources, job, checkpoint, report);
    };
    if (job.target.panels->format.coded()) {
      const CodedMatrix coded = find_encoding(scheme, matrix).code(scheme, matrix);
      check_scales();
      const int64_t bad = find_non_finite(coded);
      check_finite(bad, "NaN or infinite");
      GANTRY_CHECK(bad < 0 || !report.allows(FindingKind::kNonFinite), ErrorCode::kUnsupported,
                   "{}: NaN and infinity cannot be kept as codes", sources[0]->name);
      if (bad < 0) pack_shard(coded, job);
    } else {
      std::vector<float> decoded = decode_matrix(scheme, matrix);
      fold_input_scale(matrix, decoded);
      check_scales();
      const int64_t bad =
          find_non_finite(decoded.data(), DType::kF32, static_cast<int64_t>(decoded.size()));
      check_finite(bad,
                   bad >= 0 && std::isnan(decoded[static_cast<size_t>(bad)]) ? "NaN" : "infinite");
      pack_decoded(decoded, job, matrix.size);
    }
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kIo) throw;
    add_finding(FindingKind::kEncoding, error.what(), *sources[0], job, checkpoint, report);
    return reader.bytes_read;
  }
  for (const EncodedJob::Destination& destination : job.destinations)
    ledger.record(destination.ledger_id, 0, job.out.size());
  if (options.progress) options.progress(reader.bytes_read);
  return reader.bytes_read;
}

}  // namespace gantry
