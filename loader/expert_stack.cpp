#include "loader/expert_stack.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace gantry {
namespace {

bool holds_both(const ExpertStack& stack) { return stack.gate_up != GateUp::kSeparate; }

/// Rows of an expert are shared out among the threads in pieces of about this size. A transpose
/// reads that much of each source row less, so it wants larger ones.
constexpr int64_t kPieceBytes = int64_t{1} << 20;
constexpr int64_t kTransposeBytes = int64_t{4} << 20;

// What is larger than this is not found in any cache later, so it is written past them.
constexpr int64_t kStreamBytes = int64_t{64} << 20;
bool is_large(const ExpertStack& stack) { return stack.num_bytes() >= kStreamBytes; }

/// Rows of a projection [out, in].
struct PieceRows {
  int64_t first = 0;
  int64_t count = 0;
};

/// Calls copy(expert, rows) for pieces of all experts.
template <typename Copy>
void for_pieces(const ExpertStack& stack, size_t num_matrices, const Threads& threads, Copy copy) {
  GANTRY_CHECK(num_matrices == static_cast<size_t>(stack.num_experts), ErrorCode::kInvalidArgument,
               "expected a matrix for each of {} experts, found {}", stack.num_experts,
               num_matrices);
  const int64_t row_bytes = std::max<int64_t>(1, stack.in * stack.element_bytes);
  const int64_t piece = is_dense(stack) ? kPieceBytes : kTransposeBytes;
  // Multiples of 64 rows keep the cache lines of a transpose whole.
  const int64_t rows = std::max<int64_t>(64, piece / row_bytes / 64 * 64);
  const int64_t pieces = (stack.out + rows - 1) / rows;
  parallel_for(threads, stack.num_experts * pieces, [&](int64_t task) {
    const int64_t first = task % pieces * rows;
    copy(static_cast<int>(task / pieces), PieceRows{first, std::min(rows, stack.out - first)});
  });
}

/// Rows of an expert's own matrix, which is dense.
template <typename Byte>
StridedMatrix<Byte> dense_rows(const ExpertStack& stack, Byte* data, const PieceRows& rows) {
  return {.data = data + rows.first * stack.in * stack.element_bytes,
          .row_stride = stack.in,
          .col_stride = 1};
}

StridedTarget expert_rows(const ExpertStack& stack, int expert, Part part, const PieceRows& rows) {
  StridedTarget view = expert_view(stack, expert, part);
  view.data += rows.first * view.row_stride * stack.element_bytes;
  return view;
}

StridedSource const_view(const StridedTarget& view) {
  return {.data = view.data, .row_stride = view.row_stride, .col_stride = view.col_stride};
}

void check_gate_up(const ExpertStack& stack, size_t num_gates, size_t num_ups) {
  GANTRY_CHECK(holds_both(stack), ErrorCode::kInvalidArgument,
               "expected a stack of gate and up, found one of a single projection");
  GANTRY_CHECK(num_gates == num_ups, ErrorCode::kInvalidArgument,
               "expected as many gate as up matrices, found {} and {}", num_gates, num_ups);
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
  const bool stream = is_large(stack);
  for_pieces(stack, targets.size(), threads, [&](int expert, const PieceRows& rows) {
    copy_matrix(const_view(expert_rows(stack, expert, part, rows)),
                dense_rows(stack, targets[static_cast<size_t>(expert)], rows), rows.count, stack.in,
                stack.element_bytes, stream);
  });
}

void unfuse_gate_up(const ExpertStack& stack, std::span<std::byte* const> gates,
                    std::span<std::byte* const> ups, const Threads& threads) {
  check_gate_up(stack, gates.size(), ups.size());
  const bool stream = is_large(stack);
  for_pieces(stack, gates.size(), threads, [&](int expert, const PieceRows& rows) {
    const auto e = static_cast<size_t>(expert);
    copy_pair({const_view(expert_rows(stack, expert, Part::kW1, rows)),
               const_view(expert_rows(stack, expert, Part::kW3, rows))},
              {dense_rows(stack, gates[e], rows), dense_rows(stack, ups[e], rows)}, rows.count,
              stack.in, stack.element_bytes, stream);
  });
}

void fuse_experts(std::span<const std::byte* const> sources, const ExpertStack& stack, Part part,
                  const Threads& threads) {
  const bool stream = is_large(stack);
  for_pieces(stack, sources.size(), threads, [&](int expert, const PieceRows& rows) {
    copy_matrix(dense_rows(stack, sources[static_cast<size_t>(expert)], rows),
                expert_rows(stack, expert, part, rows), rows.count, stack.in, stack.element_bytes,
                stream);
  });
}

void fuse_gate_up(std::span<const std::byte* const> gates, std::span<const std::byte* const> ups,
                  const ExpertStack& stack, const Threads& threads) {
  check_gate_up(stack, gates.size(), ups.size());
  const bool stream = is_large(stack);
  for_pieces(stack, gates.size(), threads, [&](int expert, const PieceRows& rows) {
    const auto e = static_cast<size_t>(expert);
    copy_pair(
        {dense_rows(stack, gates[e], rows), dense_rows(stack, ups[e], rows)},
        {expert_rows(stack, expert, Part::kW1, rows), expert_rows(stack, expert, Part::kW3, rows)},
        rows.count, stack.in, stack.element_bytes, stream);
  });
}

}  // namespace gantry
