#include "loader/expert_stack.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace gantry {
namespace {

bool holds_both(const ExpertStack& stack) { return stack.gate_up != GateUp::kSeparate; }

/// Rows of an expert are shared out among the threads in pieces of about this size.
constexpr int64_t kPieceBytes = int64_t{1} << 20;

/// Calls copy(expert, first row, rows) for pieces of all experts.
template <typename Copy>
void for_pieces(const ExpertStack& stack, size_t num_matrices, const Threads& threads, Copy copy) {
  GANTRY_CHECK(num_matrices == static_cast<size_t>(stack.num_experts), ErrorCode::kInvalidArgument,
               "expected a matrix for each of {} experts, found {}", stack.num_experts,
               num_matrices);
  const int64_t row_bytes = std::max<int64_t>(1, stack.in * stack.element_bytes);
  // Multiples of 32 rows keep the blocks of a transpose whole.
  const int64_t rows = std::max<int64_t>(32, kPieceBytes / row_bytes / 32 * 32);
  const int64_t pieces = (stack.out + rows - 1) / rows;
  parallel_for(threads, stack.num_experts * pieces, [&](int64_t task) {
    const int64_t first = task % pieces * rows;
    copy(static_cast<int>(task / pieces), first, std::min(rows, stack.out - first));
  });
}

}  // namespace

StridedTarget expert_view(const ExpertStack& stack, int expert, Part part) {
  GANTRY_CHECK(expert >= 0 && expert < stack.num_experts, ErrorCode::kInvalidArgument,
               "expected an expert below {}, found {}", stack.num_experts, expert);
  GANTRY_CHECK(!holds_both(stack) || part == Part::kW1 || part == Part::kW3,
               ErrorCode::kInvalidArgument, "expected w1 or w3 of a stack of both, found {}",
               to_string(part));
  const int64_t whole_out = stack.out * (holds_both(stack) ? 2 : 1);
  const bool out_in = stack.orientation == Orientation::kOutIn;
  StridedTarget view;
  view.row_stride = out_in ? stack.in : 1;
  view.col_stride = out_in ? 1 : whole_out;
  int64_t offset = expert * whole_out * stack.in;
  if (holds_both(stack)) {
    const bool interleaved = stack.gate_up == GateUp::kInterleaved;
    if (part == Part::kW3) offset += view.row_stride * (interleaved ? 1 : stack.out);
    if (interleaved) view.row_stride *= 2;
  }
  view.data = stack.data + offset * stack.element_bytes;
  return view;
}

bool is_dense(const ExpertStack& stack) noexcept {
  return stack.orientation == Orientation::kOutIn && stack.gate_up != GateUp::kInterleaved;
}

void unfuse_experts(const ExpertStack& stack, Part part, std::span<std::byte* const> targets,
                    const Threads& threads) {
  const int64_t size = stack.element_bytes;
  for_pieces(stack, targets.size(), threads, [&](int expert, int64_t first, int64_t rows) {
    const StridedTarget view = expert_view(stack, expert, part);
    copy_matrix({.data = view.data + first * view.row_stride * size,
                 .row_stride = view.row_stride,
                 .col_stride = view.col_stride},
                {.data = targets[static_cast<size_t>(expert)] + first * stack.in * size,
                 .row_stride = stack.in,
                 .col_stride = 1},
                rows, stack.in, size);
  });
}

void fuse_experts(std::span<const std::byte* const> sources, const ExpertStack& stack, Part part,
                  const Threads& threads) {
  const int64_t size = stack.element_bytes;
  for_pieces(stack, sources.size(), threads, [&](int expert, int64_t first, int64_t rows) {
    StridedTarget view = expert_view(stack, expert, part);
    view.data += first * view.row_stride * size;
    copy_matrix({.data = sources[static_cast<size_t>(expert)] + first * stack.in * size,
                 .row_stride = stack.in,
                 .col_stride = 1},
                view, rows, stack.in, size);
  });
}

}  // namespace gantry
