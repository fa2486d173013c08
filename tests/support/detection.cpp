#include "tests/support/detection.h"

#include <gtest/gtest.h>

#include "kernels/base/error.h"

namespace gantry::test {

std::string problem_of(const std::filesystem::path& path, const Reference& reference,
                       const VerifySettings& settings) {
  try {
    MoeModel model(path, /*names_only=*/false);
    if (!model.report().ok()) return "names: " + summarize(model.report(), 5);
    verify_model(model, &reference, settings, {});
    return model.report().ok() ? "" : summarize(model.report(), 5);
  } catch (const Error& error) {
    EXPECT_NE(error.code(), ErrorCode::kInternal) << error.what();
    return error.what();
  }
}

std::string stage_of_detection(const std::filesystem::path& directory, const Reference& reference,
                               const ParallelConfig& parallel) {
  try {
    MoeModel model(directory, /*names_only=*/false);
    if (!model.report().ok()) return "names and shapes";
    VerifySettings settings;
    settings.parallel = parallel;
    settings.load.threads.count = 1;
    const VerifyResult result = verify_model(model, &reference, settings, {});
    if (model.report().ok()) return "";
    for (const Finding& finding : model.report().findings()) {
      if (finding.kind != FindingKind::kReference) return "load";
    }
    return "numbers";
  } catch (const Error&) {
    return "open";
  }
}

}  // namespace gantry::test
