#include "loader/read_job.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"

namespace gantry {
namespace {

// A chunk of consecutive file rows in staging memory.
struct Chunk {
  const std::byte* data;
  int64_t row_begin;
  int64_t row_end;
  int64_t cols;
  DType dtype;
};

// Copies what the chunk holds of one planned copy; returns the range of outer indices written.
RowRange copy_from_chunk(const PlannedCopy& copy, const Chunk& chunk) {
  const auto first_index = [&](int64_t row) {  // first outer index at or after a file row
    return std::clamp<int64_t>((row - copy.outer_begin + copy.outer_step - 1) / copy.outer_step, 0,
                               copy.outer_count);
  };
  const int64_t begin = chunk.row_begin <= copy.outer_begin ? 0 : first_index(chunk.row_begin);
  const int64_t end = chunk.row_end <= copy.outer_begin ? 0 : first_index(chunk.row_end);
  if (begin >= end) return {0, 0};
  if (copy.destination == nullptr) return {begin, end};

  const int64_t first_row = copy.outer_begin + begin * copy.outer_step - chunk.row_begin;
  const int64_t source_offset = first_row * chunk.cols + copy.inner_begin;
  const int64_t outer_stride = copy.outer_step * chunk.cols;
  const int64_t count = end - begin;
  if (!copy.panels) {
    auto* target = reinterpret_cast<float*>(copy.destination) + copy.destination_row;
    for (int64_t outer = 0; outer < count; ++outer) {
      for (int64_t inner = 0; inner < copy.inner_count; ++inner) {
        const int64_t element = copy.outer_is_row ? begin + outer : inner;
        target[element] =
            load_as_f32(chunk.data, chunk.dtype,
                        source_offset + outer * outer_stride + inner * copy.inner_step);
      }
    }
    return {begin, end};
  }
  // A plain matrix beside quantized ones is widened like them.
  std::vector<float> widened;
  const std::byte* data = chunk.data;
  if (chunk.dtype != copy.panels->dtype) {
    const int64_t elements = (chunk.row_end - chunk.row_begin) * chunk.cols;
    widened.resize(static_cast<size_t>(elements));
    convert_to_f32(chunk.data, chunk.dtype, elements, widened.data());
    data = reinterpret_cast<const std::byte*>(widened.data());
  }
  // In destination terms: rows x cols, with the source's stride along each.
  const StridedBlock block{.data = data + source_offset * size_of(copy.panels->dtype),
                           .rows = copy.outer_is_row ? count : copy.inner_count,
                           .cols = copy.outer_is_row ? copy.inner_count : count,
                           .row_stride = copy.outer_is_row ? outer_stride : copy.inner_step,
                           .col_stride = copy.outer_is_row ? copy.inner_step : outer_stride};
  pack_block(*copy.panels, block, copy.destination_row + (copy.outer_is_row ? begin : 0),
             copy.outer_is_row ? 0 : begin, copy.destination);
  return {begin, end};
}

}  // namespace

void report_non_finite(const Checkpoint& checkpoint, const TensorSource& source, int expert,
                       int64_t index, float value, LoadReport& report) {
  const std::string file = checkpoint.file_name(*source.tensor);
  report.add({FindingKind::kNonFinite,
              fmt::format("{}: element {} is {}{} ({})", source.name, index,
                          std::isnan(value) ? "NaN" : "infinite",
                          expert >= 0 ? fmt::format(", expert {}", expert) : "", file),
              source.name, file, source.ref.layer, expert,
              std::string(to_string(source.ref.part))});
}

int64_t run_read_job(const Checkpoint& checkpoint, const ReadJob& job, const LoadOptions& options,
                     LoadLedger& ledger, LoadReport& report) {
  const CheckpointTensor& tensor = *job.source->tensor;
  const WeightFile& file = checkpoint.files()[static_cast<size_t>(tensor.file)];
  const int64_t element = size_of(tensor.info.dtype);
  const int64_t row_bytes = job.slab_cols * element;
  const int64_t rows_per_chunk = std::max<int64_t>(1, options.staging_bytes / row_bytes);
  std::vector<uint32_t> staging;  // aligned for every element type
  int64_t bytes = 0;
  bool finite = true;
  for (const RowRange& range : rows_to_read(job)) {
    for (int64_t row = range.begin; row < range.end; row += rows_per_chunk) {
      const int64_t row_end = std::min(range.end, row + rows_per_chunk);
      const int64_t chunk_bytes = (row_end - row) * row_bytes;
      staging.resize(static_cast<size_t>((chunk_bytes + 3) / 4));
      const int64_t first_element = job.slab_offset + row * job.slab_cols;
      file.read(tensor.info.begin + first_element * element, staging.data(), chunk_bytes);
      bytes += chunk_bytes;

      const Chunk chunk{reinterpret_cast<const std::byte*>(staging.data()), row, row_end,
                        job.slab_cols, tensor.info.dtype};
      if (options.check_finite && finite) {
        const int64_t bad =
            find_non_finite(chunk.data, chunk.dtype, (row_end - row) * job.slab_cols);
        if (bad >= 0) {
          finite = false;  // one finding a tensor and expert says enough
          report_non_finite(checkpoint, *job.source, job.expert, first_element + bad,
                            load_as_f32(chunk.data, chunk.dtype, bad), report);
        }
      }
      for (const PlannedCopy& copy : job.copies) {
        const RowRange written = copy_from_chunk(copy, chunk);
        ledger.record(copy.ledger_id, written.begin, written.end);
      }
      if (options.progress) options.progress(chunk_bytes);
    }
  }
  return bytes;
}

}  // namespace gantry
