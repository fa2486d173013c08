#include "kernels/transpose/transpose_call.h"

// The reference: blocks whose rows stay in the first-level cache, element by element.

namespace gantry::scalar {
namespace {

template <typename Byte>
Byte* row_of(const AlternatingRows<Byte>& rows, int64_t r) noexcept {
  return rows.base[r % 2] + r / 2 * rows.stride;
}

template <typename Element>
void run(const TransposeCall& call) noexcept {
  constexpr int64_t kBlock = 32;
  for (int64_t r0 = 0; r0 < call.rows; r0 += kBlock) {
    const int64_t r1 = call.rows - r0 < kBlock ? call.rows : r0 + kBlock;
    for (int64_t c = 0; c < call.cols; ++c) {
      if (call.target.base[c % 2] == nullptr) continue;
      auto* target = reinterpret_cast<Element*>(row_of(call.target, c));
      for (int64_t r = r0; r < r1; ++r)
        target[r] = reinterpret_cast<const Element*>(row_of(call.source, r))[c];
    }
  }
}

}  // namespace

void transpose(const TransposeCall& call) noexcept {
  switch (call.element_bytes) {
    case 1:
      return run<uint8_t>(call);
    case 2:
      return run<uint16_t>(call);
    default:
      return run<uint32_t>(call);
  }
}

}  // namespace gantry::scalar
