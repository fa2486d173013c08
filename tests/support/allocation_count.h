#pragma once

#include <cstdint>

#include "tests/consumer/allocation_count.h"

namespace gantry::test {

/// Counts the allocations by operator new that this thread has made since it was constructed.
/// Programs that use it link gantry_test_allocation_count, which replaces the operators.
class AllocationCount {
 public:
  [[nodiscard]] int64_t allocations() const noexcept { return allocation_count() - before_; }

 private:
  int64_t before_ = allocation_count();
};

}  // namespace gantry::test
