#include "loader/matrix_reader.h"

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "loader/encoded_job.h"
#include "loader/encoded_reader.h"
#include "loader/encodings/matrix_structure.h"
#include "loader/expected_tensors.h"

namespace gantry {
namespace {

const MoeLayerSpec& spec_of(const MoeModelConfig& config, int layer) {
  const MoeLayerSpec* spec = config.find_layer(layer);
  GANTRY_CHECK(spec != nullptr, ErrorCode::kInvalidArgument, "layer {} is not a MoE layer", layer);
  return *spec;
}

// A weight or bias by its meaning; shared experts' are single tensors of their layer.
const TensorSource* find_source(const LayerTensors& tensors, int expert, Part part,
                                TensorKind kind) {
  return expert < 0 ? tensors.single(part, kind) : tensors.expert_source(expert, part, kind);
}

}  // namespace

std::vector<float> MatrixReader::read_plain(const MoeLayerSpec& spec, const TensorSource& source,
                                            TensorKind kind, int expert, Part part) const {
  const TensorPattern& pattern = config_->family->tensors[static_cast<size_t>(source.ref.pattern)];
  const FileView view = file_view(pattern, kind, spec, part, expert);
  const auto [out, in] = view.size;
  const int64_t span = (out - 1) * view.out_stride + (in - 1) * view.in_stride + 1;
  const TensorInfo& info = source.tensor->info;
  GANTRY_CHECK(is_plain_float(info.dtype), ErrorCode::kFormat,
               "{}: expected f32, f16 or bf16, found {}", source.name, to_string(info.dtype));
  GANTRY_CHECK(view.offset >= 0 && view.offset + span <= info.num_elements(), ErrorCode::kFormat,
               "{}: expected {} elements or more, found {}", source.name, view.offset + span,
               info.num_elements());
  const int64_t element = size_of(info.dtype);
  std::vector<uint32_t> raw(static_cast<size_t>((span * element + 3) / 4));
  checkpoint_->files()[static_cast<size_t>(source.tensor->file)].read(
      info.begin + view.offset * element, raw.data(), span * element);
  std::vector<float> matrix(static_cast<size_t>(out * in));
  if (view.in_stride == 1) {
    for (int64_t o = 0; o < out; ++o) {
      convert_to_f32(reinterpret_cast<const std::byte*>(raw.data()) + o * view.out_stride * element,
                     info.dtype, in, matrix.data() + o * in);
    }
    return matrix;
  }
  // File rows run along `in`: they are read in order, the columns of the result are written.
  for (int64_t i = 0; i < in; ++i) {
    for (int64_t o = 0; o < out; ++o) {
      matrix[static_cast<size_t>(o * in + i)] =
          load_as_f32(raw.data(), info.dtype, o * view.out_stride + i * view.in_stride);
    }
  }
  return matrix;
}

std::vector<float> MatrixReader::read_encoded(const MoeLayerSpec& spec, int expert,
                                              Part part) const {
  ReadScratch scratch;
  const LayerTensors& tensors = tensors_->layer(spec.layer);
  const std::vector<const TensorSource*> sources = encoded_sources(tensors, expert, part);
  const QuantScheme* scheme = tensors.matrices(expert).schemes[expert_part_index(part)];
  GANTRY_CHECK(scheme != nullptr, ErrorCode::kFormat, "{}: quantized without a scheme",
               sources[0]->name);
  EncodedReader reader(*checkpoint_, *config_->family, spec, expert, part, scratch);
  EncodedMatrix matrix;
  matrix.size = part_size(part, spec);
  for (const TensorSource* source : sources) {
    check_no_shared_blocks(*scheme, *source, *config_->family, matrix.size);
    matrix.tensors.emplace(suffix_of(*source), reader.read(*source));
  }
  if (const auto missing = missing_companion(*scheme, matrix)) {
    fail(ErrorCode::kFormat, "{}: expected a {} beside it, found none", sources[0]->name, *missing);
  }
  check_declared_shape(matrix);
  std::vector<float> decoded = decode_matrix(*scheme, matrix);
  fold_input_scale(matrix, decoded);
  return decoded;
}

std::vector<float> MatrixReader::read(int layer, int expert, Part part) const {
  const MoeLayerSpec& spec = spec_of(*config_, layer);
  GANTRY_CHECK(expert < spec.num_experts, ErrorCode::kInvalidArgument,
               "layer {}: expected an expert below {}, found {}", layer, spec.num_experts, expert);
  const LayerTensors& tensors = tensors_->layer(layer);
  if (tensors.is_encoded(expert, part)) return read_encoded(spec, expert, part);
  const TensorSource* source = find_source(tensors, expert, part, TensorKind::kWeight);
  GANTRY_CHECK(source != nullptr, ErrorCode::kInvalidArgument, "layer {}, expert {}: no {}", layer,
               expert, to_string(part));
  return read_plain(spec, *source, TensorKind::kWeight, expert, part);
}

std::vector<float> MatrixReader::read_bias(int layer, int expert, Part part) const {
  const MoeLayerSpec& spec = spec_of(*config_, layer);
  const TensorSource* source = find_source(tensors_->layer(layer), expert, part, TensorKind::kBias);
  return source == nullptr ? std::vector<float>()
                           : read_plain(spec, *source, TensorKind::kBias, expert, part);
}

std::vector<float> MatrixReader::read_single(int layer, Part part, TensorKind kind) const {
  const TensorSource* source = tensors_->layer(layer).single(part, kind);
  if (source == nullptr) return {};
  return read_plain(spec_of(*config_, layer), *source, kind, -1, part);
}

std::string MatrixReader::name(int layer, int expert, Part part) const {
  const LayerTensors& tensors = tensors_->layer(layer);
  const TensorSource* source = tensors.is_encoded(expert, part)
                                   ? tensors.any_source(expert, part)
                                   : find_source(tensors, expert, part, TensorKind::kWeight);
  return source == nullptr ? "" : source->name;
}

}  // namespace gantry
