#include "tests/support/detection.h"

#include "kernels/base/error.h"
#include "runtime/verification.h"

namespace gantry::test {

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
