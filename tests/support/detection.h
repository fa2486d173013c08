#pragma once

#include <filesystem>
#include <string>

#include "parallel/parallel_config.h"
#include "runtime/reference.h"
#include "runtime/verification.h"

namespace gantry::test {

/// What is wrong with a checkpoint, or "" if its blocks match the reference on these ranks. An
/// internal error is a failure of the test.
std::string problem_of(const std::filesystem::path& path, const Reference& reference,
                       const VerifySettings& settings);

/// Where the product notices that a checkpoint is damaged: "open" (an error), "names and shapes",
/// "load" (a finding) or "numbers" (in f32, against the reference); "" if it does not.
std::string stage_of_detection(const std::filesystem::path& directory, const Reference& reference,
                               const ParallelConfig& parallel);

}  // namespace gantry::test
