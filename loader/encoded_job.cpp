#include "loader/encoded_job.h"

#include <cmath>
#include <cstring>

#include "kernels/base/check.h"
#include "loader/encodings/encoded_matrix.h"
#include "loader/encodings/scale_grid.h"
#include "loader/read_job.h"
#include "loader/tensor_geometry.h"

namespace gantry {
namespace {

int64_t bytes_of(const TensorSource& source) {
  const TensorInfo& info = source.tensor->info;
  const bool per_expert = source.ref.expert >= 0 || info.shape.empty() || info.shape[0] == 0;
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
    if (source.ref.expert < 0) {
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
    if (source.ref.expert < 0) take_half(source, tensor, bytes);
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
    if (pattern.part != Part::kW13) return;
    const int64_t rows = tensor.shape[0];
    GANTRY_CHECK(rows > 0 && rows % 2 == 0, ErrorCode::kFormat, "{}: {} rows for gate and up",
                 source.name, rows);
    const size_t row_bytes = bytes.size() / static_cast<size_t>(rows);
    const bool interleaved = pattern.gate_up == GateUp::kInterleaved;
    const auto first = static_cast<size_t>(job_.part == Part::kW1 ? 0 : interleaved ? 1 : rows / 2);
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

// A multiplier of the projection's input is one of the matrix' columns.
void fold_input_scale(const EncodedMatrix& matrix, std::vector<float>& decoded) {
  const EncodedTensor* scale = matrix.find("pre_quant_scale");
  if (scale == nullptr) return;
  require_tensor(*scale, scale->dtype, {matrix.size.in});
  const std::vector<float> values = scale_values(*scale);
  for (size_t i = 0; i < decoded.size(); ++i)
    decoded[i] *= values[i % values.size()];
}

void add_finding(FindingKind kind, const std::string& message, const TensorSource& source,
                 const EncodedJob& job, const Checkpoint& checkpoint, LoadReport& report) {
  const std::string file = checkpoint.file_name(*source.tensor);
  report.add({kind,
              fmt::format("{} (layer {}, expert {}, {}; {})", message, source.ref.layer, job.expert,
                          to_string(job.part), file),
              source.name, file, source.ref.layer, job.expert, std::string(to_string(job.part))});
}

}  // namespace

std::vector<const TensorSource*> encoded_sources(const LayerTensors& tensors, int expert,
                                                 Part part) {
  std::vector<const TensorSource*> sources;
  if (const TensorSource* weight = tensors.expert_source(expert, part, TensorKind::kWeight)) {
    sources.push_back(weight);
  }
  const auto& encoded =
      tensors.experts[static_cast<size_t>(expert)].encoded[expert_part_index(part)];
  for (const auto& [suffix, source] : encoded)
    sources.push_back(source);
  return sources;
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
  std::vector<float> decoded;
  EncodedMatrix matrix;
  matrix.size = part_size(job.part, layer);
  try {
    for (const TensorSource* source : sources) {
      const bool is_weight = source->ref.kind == TensorKind::kWeight;
      matrix.tensors.emplace(is_weight ? "weight" : source->ref.suffix, reader.read(*source));
    }
    decoded = decode_matrix(*config.quant, matrix);
    fold_input_scale(matrix, decoded);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kIo) throw;
    add_finding(FindingKind::kEncoding, error.what(), *sources[0], job, checkpoint, report);
    return reader.bytes_read;
  }
  const int64_t bad = options.check_finite ? find_non_finite(decoded.data(), DType::kF32,
                                                             static_cast<int64_t>(decoded.size()))
                                           : -1;
  if (bad >= 0) {  // one finding a matrix says enough
    add_finding(FindingKind::kNonFinite,
                fmt::format("{}: element [{}, {}] is {} once dequantized", sources[0]->name,
                            bad / matrix.size.in, bad % matrix.size.in,
                            std::isnan(decoded[static_cast<size_t>(bad)]) ? "NaN" : "infinite"),
                *sources[0], job, checkpoint, report);
  }
  const StridedBlock block{.data = reinterpret_cast<const std::byte*>(
                               decoded.data() + job.out.begin * matrix.size.in + job.in.begin),
                           .rows = job.out.size(),
                           .cols = job.in.size(),
                           .row_stride = matrix.size.in,
                           .col_stride = 1};
  for (const EncodedJob::Destination& destination : job.destinations) {
    if (destination.slot != nullptr) {
      pack_block(*job.target.panels, block, job.target.first_row, 0,
                 destination.slot + job.target.offset);
    }
    ledger.record(destination.ledger_id, 0, job.out.size());
  }
  if (options.progress) options.progress(reader.bytes_read);
  return reader.bytes_read;
}

}  // namespace gantry
