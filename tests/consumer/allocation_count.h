#pragma once

#include <cstdint>

/// Allocations by operator new that this thread has made so far.
int64_t allocation_count() noexcept;
