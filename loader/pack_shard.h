#pragma once

// Internal.

#include <vector>

#include "loader/encoded_job.h"
#include "loader/encodings/coded_matrix.h"

namespace gantry {

/// Packs the rows and inputs of a coded matrix that a job's rank owns into the job's slots.
/// @throws Error kFormat if the matrix is not in the slots' format
void pack_shard(const CodedMatrix& coded, const EncodedJob& job);

/// The same of a matrix that was decoded to f32 [out, in], into slots of f32.
void pack_decoded(const std::vector<float>& decoded, const EncodedJob& job, const MatrixSize& size);

}  // namespace gantry
