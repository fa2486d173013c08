#pragma once

#include <cstdint>

namespace gantry::test {

/// Counts the allocations by operator new that this thread has made since it was constructed.
/// Programs that use it link gantry_test_allocation_count, which replaces the operators.
class AllocationCount {
 public:
  AllocationCount() noexcept;
  [[nodiscard]] int64_t allocations() const noexcept;

 private:
  int64_t before_;
};

}  // namespace gantry::test
