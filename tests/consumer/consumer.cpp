// Uses Gantry as another project would: installed headers, the imported target, nothing else.
#include <cstdio>

#include "kernels/base/cpu_features.h"
#include "parallel/expert_map.h"
#include "runtime/fused_moe_layer.h"

int main() {
  const auto map =
      gantry::ExpertMap::create(/*num_experts=*/128, /*ep_size=*/3, gantry::Placement::kLinear);
  std::printf("gantry %s on %s\n", GANTRY_PACKAGE_VERSION,
              gantry::to_string(gantry::host_isas()).c_str());
  std::printf("%s\n", map.describe().c_str());
  return map.num_slots(0) == 43 ? 0 : 1;
}
