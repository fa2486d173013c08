#pragma once

#include <cstdint>

namespace gantry {

/// How many threads run a kernel.
struct LaunchShape {
  int64_t blocks = 1;
  int threads = 32;          ///< of a block, a multiple of 32
  int64_t shared_bytes = 0;  ///< dynamic shared memory of a block
};

}  // namespace gantry
