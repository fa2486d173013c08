#pragma once

#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "kernels/base/cpu_features.h"
#include "kernels/fused_moe/row_ops.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {

/// One instruction set's row operations.
struct RowOpsIsa {
  Isa isa;
  const RowOps* ops;
};

inline void PrintTo(const RowOpsIsa& tested, std::ostream* out) { *out << to_string(tested.isa); }

/// Runs a test with the row operations of one instruction set; one that this CPU lacks is reported
/// as skipped, not passed.
class RowOpsTest : public testing::TestWithParam<RowOpsIsa> {
 protected:
  void SetUp() override {
    const Isa isa = GetParam().isa;
    if (!detected_isas().contains(isa)) GTEST_SKIP() << "needs " << to_string(isa);
  }

  const RowOps& ops = *GetParam().ops;
  SeededRng rng;
  testing::ScopedTrace trace{__FILE__, __LINE__, "seed " + std::to_string(rng.seed())};
};

inline std::vector<RowOpsIsa> row_ops_isas() {
  return {{Isa::kScalar, &scalar::kRowOps},
          {Isa::kAvx2, &avx2::kRowOps},
          {Isa::kAvx512, &avx512::kRowOps}};
}

inline std::string row_ops_name(const testing::TestParamInfo<RowOpsIsa>& tested) {
  return std::string(to_string(tested.param.isa));
}

}  // namespace gantry::test
