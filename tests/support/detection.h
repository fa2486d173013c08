#pragma once

#include <filesystem>
#include <string>

#include "parallel/parallel_config.h"
#include "runtime/reference.h"

namespace gantry::test {

/// Where the product notices that a checkpoint is damaged: "open" (an error), "names and shapes",
/// "load" (a finding) or "numbers" (in f32, against the reference); "" if it does not.
std::string stage_of_detection(const std::filesystem::path& directory, const Reference& reference,
                               const ParallelConfig& parallel);

}  // namespace gantry::test
