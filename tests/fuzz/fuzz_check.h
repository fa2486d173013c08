#pragma once

#include <cstdio>
#include <cstdlib>

namespace gantry::test {

/// Ends the process, as libFuzzer expects of a finding, unless `holds`.
inline void fuzz_check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz target: broken promise: %s\n", what);
  std::abort();
}

}  // namespace gantry::test
