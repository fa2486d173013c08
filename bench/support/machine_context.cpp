#include "bench/support/machine_context.h"

#include <benchmark/benchmark.h>

#include <string>

#include "kernels/base/cpu_features.h"
#include "kernels/base/parallel_for.h"

namespace gantry::bench {

void add_machine_context() {
  benchmark::AddCustomContext("cpu", cpu_model_name());
  benchmark::AddCustomContext("isa", to_string(host_isas()));
  benchmark::AddCustomContext("threads", std::to_string(available_cpus()));
}

}  // namespace gantry::bench
