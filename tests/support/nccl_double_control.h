#pragma once

#include <string>

#include "tests/nccl_double/nccl_double.h"

namespace gantry::test {

/// The file of the double of libnccl (tests/nccl_double).
std::string nccl_double_path();

/// What communicators of this thread will do wrong, see nccl_double::Plan.
void set_nccl_double_plan(const char* plan);

/// Of this process so far.
NcclDoubleCounts nccl_double_counts();

}  // namespace gantry::test
