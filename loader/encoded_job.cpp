#include "loader/encoded_job.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "loader/encodings/encoded_matrix.h"
#include "loader/encodings/matrix_structure.h"
#include "loader/encodings/scale_grid.h"
#include "loader/encodings/scale_sanity.h"
#include "loader/expected_tensors.h"
#include "loader/pack_shard.h"
#include "loader/tensor_geometry.h"

namespace gantry {

void check_no_shared_blocks(const QuantScheme& scheme, const TensorSource& source,
                            const FamilySpec& family, const MatrixSize& size) {
  const TensorPattern& pattern = family.tensors[static_cast<size_t>(source.ref.pattern)];
  if (scheme.grid != ScaleGrid::kBlock || pattern.gate_up == GateUp::kSeparate) return;
  GANTRY_CHECK(pattern.gate_up == GateUp::kConcatenated && size.out % scheme.block_rows == 0,
               ErrorCode::kUnsupported, "{}: blocks of {} rows reach across gate and up of {} rows",
               source.name, scheme.block_rows, size.out);
}

void fold_input_scale(const EncodedMatrix& matrix, std::vector<float>& decoded) {
  const EncodedTensor* scale = matrix.find("pre_quant_scale");
  if (scale == nullptr) return;
  require_tensor(*scale, scale->dtype, {matrix.size.in});
  const std::vector<float> values = scale_values(*scale);
  for (size_t i = 0; i < decoded.size(); ++i)
    decoded[i] *= values[i % values.size()];
}

namespace {

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

int64_t run_encoded_job(const Checkpoint& checkpoint, const MoeModelConfig& config,
                        const MoeLayerSpec& layer, const LayerTensors& tensors,
                        const EncodedJob& job, const LoadOptions& options, ReadScratch& scratch,
                        LoadLedger& ledger, LoadReport& report) {
  scratch.rewind();
  EncodedReader reader(checkpoint, *config.family, layer, job.expert, job.part, scratch);
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
      return reader.bytes_read();
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
    return reader.bytes_read();
  }
  for (const EncodedJob::Destination& destination : job.destinations)
    ledger.record(destination.ledger_id, 0, job.out.size());
  if (options.progress) options.progress(reader.bytes_read());
  return reader.bytes_read();
}

}  // namespace gantry
