#include "kernels/fused_moe/fused_experts.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/fused_moe/fused_experts_check.h"
#include "kernels/fused_moe/int8_rows.h"
#include "kernels/fused_moe/matrix_rows.h"
#include "kernels/fused_moe/row_ops.h"

// Two passes over the experts with one barrier between them. Pass 1 cuts every expert's w13 into
// runs of panels (and long experts into chunks of rows); pass 2 cuts the output columns, and each
// task walks all experts in order, so that a token's sum needs no atomics and no buffer of all
// (token, expert) outputs.

namespace gantry {
namespace {

// Rows that stay in the L2 cache while the panels of a task pass by: 128 rows of 2048 bf16 are half
// a MB, beside two panels of 128 KB (Zen 4, 1 MB of L2: 735 ms for 4096 tokens, 755 with 256).
constexpr int64_t kChunkRows = 128;

// Up to so many rows an expert, reading weights takes longer than multiplying.
constexpr int64_t kStreamedRows = 5;

// 2^16 products of an unsigned and a signed byte, 255 * -128 each, fit an int32.
constexpr int64_t kMaxInt8Depth = 65536;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Cuts `total` into the fewest pieces of at most `most`, as even as possible.
int64_t even_piece(int64_t total, int64_t most) {
  return total == 0 ? 1 : ceil_div(total, ceil_div(total, most));
}

// What all tasks of one call share.
struct Pass {
  const FusedExpertsCall& call;
  const FusedExpertsKernels& kernels;
  FusedExpertsScratch& scratch;
  CodedPanel w13_coded;
  CodedPanel w2_coded;
  int64_t w13_panel_bytes;
  int64_t w2_panel_bytes;
  int64_t row_stride;    // bytes of a gathered row
  int64_t mid_stride;    // bytes of a row between the GEMMs
  bool store_rows_bf16;  // gathered rows stand as bf16
  bool store_mid_bf16;   // rows between the GEMMs do
  bool round_bf16;       // values are rounded to bf16
  ActivateBlock::Kind kind;
  int64_t panels_per_task = 1;

  /// Whether up rows of a slot's w13 have inputs of their own, which stand behind those of the
  /// gate.
  [[nodiscard]] bool up_rows(int64_t slot) const {
    return call.has_up_rows() && *section(slot, call.up_quantizer.scale_offset) !=
                                     *section(slot, call.x_quantizer.scale_offset);
  }
  /// Gathered rows: of gate and up, or those of up alone.
  [[nodiscard]] std::byte* x_rows(bool up) const {
    return scratch.rows.data() + (up ? call.rows.offsets.back() * row_stride : 0);
  }
  [[nodiscard]] int64_t slot_rows(int64_t slot) const {
    const auto s = static_cast<size_t>(slot);
    return call.rows.offsets[s + 1] - call.rows.offsets[s];
  }
  [[nodiscard]] const std::byte* slot(int64_t slot) const {
    return call.experts.slots + slot * call.experts.slot_stride_bytes;
  }
  /// A section of a slot; null where slots have none.
  template <typename T = float>
  [[nodiscard]] const T* section(int64_t slot_index, int64_t offset) const {
    return offset < 0 ? nullptr : reinterpret_cast<const T*>(slot(slot_index) + offset);
  }
};

ActivateBlock::Kind kind_of(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return ActivateBlock::Kind::kSilu;
    case Activation::kSwigluOai:
      return ActivateBlock::Kind::kSwigluOai;
    case Activation::kSiluNoMul:
      return ActivateBlock::Kind::kSiluNoMul;
    case Activation::kRelu2NoMul:
      return ActivateBlock::Kind::kRelu2NoMul;
    default:
      return ActivateBlock::Kind::kOther;
  }
}

void apply_one_row(const void* context, int64_t n, const float* gate, const float* up, float* out) {
  apply_activation(*static_cast<const ActivationSpec*>(context), 1, n, gate, n, up, n, out, n);
}

// ---- gather ------------------------------------------------------------------------------------

constexpr int64_t kGatherRows = 32;

QuantizedRows quantized_rows(const Pass& pass, std::byte* rows, int64_t stride,
                             const PackedLayout& layout) {
  return {.rows = rows,
          .stride_bytes = stride,
          .columns = layout.k,
          .offsets = pass.call.rows.offsets,
          .slots = pass.call.experts.slots,
          .slot_stride_bytes = pass.call.experts.slot_stride_bytes};
}

/// What rows are gathered as.
struct Gather {
  std::byte* rows;
  bool as_f32;
};

// Rows begin .. begin + count - 1, all of one slot where slots transform x.
void gather_rows(const Pass& pass, int64_t slot, int64_t begin, int64_t count, Gather how) {
  const FusedExpertsCall& call = pass.call;
  const PackedExperts& experts = call.experts;
  const int64_t h = experts.hidden_size();
  const bool mapped = call.rows.token != nullptr;
  const float* scale = call.input_weights.empty() ? nullptr : call.input_weights.data();
  pass.kernels.row_ops->gather({.x = mapped ? call.x.data() : call.x.data() + begin * h,
                                .token = mapped ? call.rows.token + begin : nullptr,
                                .choice = mapped ? call.rows.choice + begin : nullptr,
                                .scale = mapped || scale == nullptr ? scale : scale + begin,
                                .rows = how.rows + begin * pass.row_stride,
                                .stride = pass.row_stride,
                                .num_rows = count,
                                .n = h,
                                .padded = experts.w13.padded_k(),
                                .round_bf16 = pass.round_bf16 && !how.as_f32,
                                .store_bf16 = pass.store_rows_bf16 && !how.as_f32,
                                .order = pass.section<int32_t>(slot, experts.x_order_offset),
                                .factors = pass.section(slot, experts.x_factors_offset)});
}

void gather_task(const Pass& pass, int64_t task, Gather how) {
  const std::span<const int32_t> offsets = pass.call.rows.offsets;
  const int64_t begin = task * kGatherRows;
  const int64_t end = std::min<int64_t>(begin + kGatherRows, offsets.back());
  if (!pass.call.experts.transforms_x()) return gather_rows(pass, 0, begin, end - begin, how);
  int64_t slot = std::upper_bound(offsets.begin(), offsets.end(), begin) - offsets.begin() - 1;
  for (int64_t row = begin; row < end; ++slot) {
    const int64_t last = std::min<int64_t>(end, offsets[static_cast<size_t>(slot) + 1]);
    if (row < last) gather_rows(pass, slot, row, last - row, how);
    row = last;
  }
}

void gather(const Pass& pass, const Threads& threads, Gather how) {
  // Lambdas that capture one reference fit into std::function without an allocation.
  const std::pair<const Pass&, Gather> job{pass, how};
  parallel_for(threads, ceil_div(pass.call.rows.offsets.back(), kGatherRows),
               [&job](int64_t task) { gather_task(job.first, task, job.second); });
}

void gather_int8(const Pass& pass, const Threads& threads, bool up) {
  const FusedExpertsCall& call = pass.call;
  QuantizeInt8 rows = int8_rows_for(pass.kernels.w13, call.experts.w13);
  rows.rows = pass.x_rows(up);
  rows.stride = pass.row_stride;
  rows.num_rows = call.rows.offsets.back();
  if (call.experts.transforms_x()) {  // first as f32 where the codes will stand
    gather(pass, threads, {rows.rows, /*as_f32=*/true});
    rows.x = reinterpret_cast<const float*>(rows.rows);
    rows.x_stride = pass.row_stride / static_cast<int64_t>(sizeof(float));
  } else {
    rows.x = call.x.data();
    rows.x_stride = call.experts.hidden_size();
    rows.token = call.rows.token;
    rows.choice = call.rows.choice;
    rows.factor = call.input_weights.empty() ? nullptr : call.input_weights.data();
  }
  quantize_int8_rows(rows, *pass.kernels.row_ops, up ? call.up_quantizer : call.x_quantizer,
                     quantized_rows(pass, rows.rows, pass.row_stride, call.experts.w13), threads);
}

// ---- pass 1: w13 and the activation

int64_t active_slots(const Pass& pass) {
  int64_t active = 0;
  for (int64_t s = 0; s < pass.call.experts.num_slots; ++s)
    active += pass.slot_rows(s) > 0 ? 1 : 0;
  return active;
}

// Tasks of slot s are [task_offsets[s], task_offsets[s + 1]).
int64_t plan_w13(Pass& pass, int num_threads) {
  const PackedExperts& experts = pass.call.experts;
  const int64_t panels = experts.w13.num_panels();
  const int64_t active = active_slots(pass);
  // About 32 tasks a thread: the last one to end then costs some 2 %; but runs of panels as long as
  // possible, because they are what the memory streams.
  const int64_t wanted = int64_t{32} * num_threads;
  pass.panels_per_task =
      even_piece(panels, std::clamp<int64_t>(panels * active / std::max<int64_t>(1, wanted), 1,
                                             std::max<int64_t>(1, panels)));
  int64_t tasks = 0;
  for (int64_t s = 0; s < experts.num_slots; ++s) {
    pass.scratch.task_offsets[static_cast<size_t>(s)] = tasks;
    tasks += ceil_div(pass.slot_rows(s), kChunkRows) * ceil_div(panels, pass.panels_per_task);
  }
  pass.scratch.task_offsets[static_cast<size_t>(experts.num_slots)] = tasks;
  return tasks;
}

void w13_panel(const Pass& pass, int64_t slot, int64_t panel, int64_t row_begin, int64_t row_end,
               const std::byte* next) {
  const FusedExpertsCall& call = pass.call;
  const PackedExperts& experts = call.experts;
  const int64_t width = experts.w13.panel_outputs();
  const int64_t column = panel * width;
  const int64_t j = experts.intermediate_size();
  const float* bias = pass.section(slot, experts.b13_offset);
  const float* mid_factors = pass.section(slot, experts.mid_factors_offset);
  const int64_t element = pass.store_mid_bf16 ? 2 : 4;
  // The last panel also writes the zeros that w2's padded k meets.
  const bool last = panel + 1 == experts.w13.num_panels();
  const int64_t padded = last ? experts.w2.padded_k() - column : width;
  alignas(64) float c[kMaxMultiplyRows * kPanelWidth];
  const int64_t step = even_piece(row_end - row_begin, multiply_rows(pass.kernels.w13));
  for (int64_t row = row_begin; row < row_end; row += step) {
    const int64_t rows = std::min(step, row_end - row);
    const auto multiply = [&](bool up, float* sums) {
      multiply_panel({.kernels = pass.kernels.w13,
                      .layout = experts.w13,
                      .coded = pass.w13_coded,
                      .x = pass.x_rows(up) + row * pass.row_stride,
                      .x_stride = pass.row_stride,
                      .num_rows = rows,
                      .matrix_rows = pass.slot_rows(slot),
                      .panel = pass.slot(slot) + experts.w13_offset + panel * pass.w13_panel_bytes,
                      .c = sums,
                      .next = row == row_begin ? next : nullptr});
    };
    multiply(/*up=*/false, c);
    if (pass.up_rows(slot)) {  // the same panel, of which the other half counts
      alignas(64) float of_up[kMaxMultiplyRows * kPanelWidth];
      multiply(/*up=*/true, of_up);
      for (int64_t r = 0; r < rows; ++r)
        std::copy_n(of_up + r * kPanelWidth + kHalfPanel, kHalfPanel,
                    c + r * kPanelWidth + kHalfPanel);
    }
    pass.kernels.row_ops->activate(
        {.c = c,
         .num_rows = rows,
         .bias_gate = bias == nullptr ? nullptr : bias + column,
         .bias_up = bias == nullptr || !experts.w13.gated ? nullptr : bias + j + column,
         .out = pass.scratch.intermediate.data() + row * pass.mid_stride + column * element,
         .out_stride = pass.mid_stride,
         .gated = experts.w13.gated,
         .n = std::min(width, j - column),
         .padded = padded,
         .round_bf16 = pass.round_bf16,
         .store_bf16 = pass.store_mid_bf16,
         .kind = pass.kind,
         .limit = call.activation.limit > 0.0F ? call.activation.limit
                                               : std::numeric_limits<float>::infinity(),
         .alpha = call.activation.alpha,
         .beta = call.activation.beta,
         .other = apply_one_row,
         .other_context = &call.activation,
         .factors = mid_factors == nullptr ? nullptr : mid_factors + column});
  }
}

void w13_task(const Pass& pass, int64_t task) {
  const PackedExperts& experts = pass.call.experts;
  const int64_t* offsets = pass.scratch.task_offsets.data();
  const int64_t slot =
      std::upper_bound(offsets, offsets + experts.num_slots + 1, task) - offsets - 1;
  const int64_t panels = experts.w13.num_panels();
  const int64_t runs = ceil_div(panels, pass.panels_per_task);
  const int64_t chunk = (task - offsets[slot]) / runs;
  const int64_t first = (task - offsets[slot]) % runs * pass.panels_per_task;
  const int64_t last = std::min(panels, first + pass.panels_per_task);
  const int64_t chunk_rows = even_piece(pass.slot_rows(slot), kChunkRows);
  const int64_t row_begin = pass.call.rows.offsets[static_cast<size_t>(slot)] + chunk * chunk_rows;
  const int64_t row_end = std::min<int64_t>(row_begin + chunk_rows,
                                            pass.call.rows.offsets[static_cast<size_t>(slot) + 1]);
  if (row_begin >= row_end) return;
  const std::byte* w13 = pass.slot(slot) + experts.w13_offset;
  for (int64_t panel = first; panel < last; ++panel) {
    // The panel after this one: of this run, or where the next task begins.
    const std::byte* next = panel + 1 < panels ? w13 + (panel + 1) * pass.w13_panel_bytes : nullptr;
    w13_panel(pass, slot, panel, row_begin, row_end, next);
  }
}

// ---- pass 2: w2 and the sum over experts

void w2_panel(const Pass& pass, int64_t slot, int64_t panel, const std::byte* next) {
  const FusedExpertsCall& call = pass.call;
  const PackedExperts& experts = call.experts;
  const int64_t column = panel * kPanelWidth;
  const int64_t h = experts.hidden_size();
  const int64_t begin = call.rows.offsets[static_cast<size_t>(slot)];
  const int64_t end = call.rows.offsets[static_cast<size_t>(slot) + 1];
  const float* bias = call.add_w2_bias ? pass.section(slot, experts.b2_offset) : nullptr;
  const int32_t* target = call.rows.out_row != nullptr ? call.rows.out_row : call.rows.token;
  const bool mapped = target != nullptr;
  float* out = call.out.data() + column;
  alignas(64) float c[kMaxMultiplyRows * kPanelWidth];
  const int64_t step = even_piece(end - begin, multiply_rows(pass.kernels.w2));
  for (int64_t row = begin; row < end; row += step) {
    const int64_t rows = std::min(step, end - row);
    // The tokens' sums lie anywhere: fetch them while the GEMM runs.
    for (int64_t r = row; r < row + rows; ++r) {
      const float* line = out + (mapped ? target[r] : r) * h;
      __builtin_prefetch(line, 1);
      __builtin_prefetch(line + 16, 1);
    }
    multiply_panel({.kernels = pass.kernels.w2,
                    .layout = experts.w2,
                    .coded = pass.w2_coded,
                    .x = pass.scratch.intermediate.data() + row * pass.mid_stride,
                    .x_stride = pass.mid_stride,
                    .num_rows = rows,
                    .matrix_rows = end - begin,
                    .panel = pass.slot(slot) + experts.w2_offset + panel * pass.w2_panel_bytes,
                    .c = c,
                    .next = row == begin ? next : nullptr});
    pass.kernels.row_ops->accumulate(
        {.c = c,
         .num_rows = rows,
         .bias = bias == nullptr ? nullptr : bias + column,
         .token = mapped ? target + row : nullptr,
         .choice = mapped ? call.rows.choice + row : nullptr,
         .first_token = row,
         .weight = call.weights.empty() ? nullptr : call.weights.data(),
         .out = out,
         .out_stride = h,
         .n = std::min(kPanelWidth, h - column)});
  }
}

void w2_task(const Pass& pass, int64_t task) {
  const FusedExpertsCall& call = pass.call;
  const PackedExperts& experts = call.experts;
  const int64_t first = task * pass.panels_per_task;
  const int64_t last = std::min(experts.w2.num_panels(), first + pass.panels_per_task);
  const int64_t h = experts.hidden_size();
  if (call.clear) {
    const int64_t begin = first * kPanelWidth;
    const int64_t count = std::min(h, last * kPanelWidth) - begin;
    for (int64_t t = 0; t < static_cast<int64_t>(call.out.size()) / h; ++t)
      std::memset(call.out.data() + t * h + begin, 0, static_cast<size_t>(count) * sizeof(float));
  }
  const auto panel_of = [&](int64_t slot, int64_t panel) {
    return pass.slot(slot) + experts.w2_offset + panel * pass.w2_panel_bytes;
  };
  size_t i = 0;
  const auto skip_idle = [&] {
    while (i < call.rows.order.size() && pass.slot_rows(call.rows.order[i]) == 0)
      ++i;
  };
  for (skip_idle(); i < call.rows.order.size();) {
    const int64_t slot = call.rows.order[i];
    ++i;
    skip_idle();
    for (int64_t panel = first; panel < last; ++panel) {
      const std::byte* next = nullptr;
      if (panel + 1 < last) {
        next = panel_of(slot, panel + 1);
      } else if (i < call.rows.order.size()) {
        next = panel_of(call.rows.order[i], first);
      }
      w2_panel(pass, slot, panel, next);
    }
  }
}

int64_t plan_w2(Pass& pass, int num_threads) {
  const int64_t panels = pass.call.experts.w2.num_panels();
  const int64_t num_rows = pass.call.rows.offsets.back();
  // Every task reads all rows between the GEMMs once: few tasks where those are more bytes than the
  // weights are. And few where experts have so few rows that memory is waited for, because the
  // stream breaks where the panels of an expert end (Zen 4, 1 token of Qwen3-30B-A3B, 16, 4 and 2
  // tasks a thread: w2 in bf16 620, 512 and 465 us, in int4 288, 203 and 205).
  const bool many_bytes = num_rows * pass.mid_stride > int64_t{4} << 20;
  const bool streams = num_rows <= kStreamedRows * active_slots(pass);
  const int64_t wanted = int64_t{streams ? 2 : many_bytes ? 4 : 16} * num_threads;
  pass.panels_per_task = even_piece(panels, std::max<int64_t>(1, panels / wanted));
  return ceil_div(panels, pass.panels_per_task);
}

// ---- the quantizers of kScheme

void quantize_x(const Pass& pass, const Threads& threads, bool up) {
  const FusedExpertsCall& call = pass.call;
  if (call.activations != ActivationDType::kScheme) return;
  quantize_rows(up ? call.up_quantizer : call.x_quantizer,
                quantized_rows(pass, pass.x_rows(up), pass.row_stride, call.experts.w13),
                call.amax_exchange, threads, pass.scratch.amax.span());
}

void quantize_intermediate(const Pass& pass, const Threads& threads) {
  const FusedExpertsCall& call = pass.call;
  if (call.activations != ActivationDType::kScheme) return;
  const RowQuantizer& quantizer = call.intermediate_quantizer;
  const PackedLayout& layout = call.experts.w2;
  const QuantizedRows all =
      quantized_rows(pass, pass.scratch.intermediate.data(), pass.mid_stride, layout);
  if (pass.kernels.w2.rows != ActivationDType::kInt8) {
    return quantize_rows(quantizer, all, call.amax_exchange, threads, pass.scratch.amax.span());
  }
  const std::span<const float> amax =
      exchange_amax(quantizer, all, call.amax_exchange, threads, pass.scratch.amax.span());
  QuantizeInt8 rows = int8_rows_for(pass.kernels.w2, layout);
  rows.x = reinterpret_cast<const float*>(all.rows);
  rows.x_stride = pass.mid_stride / static_cast<int64_t>(sizeof(float));
  rows.rows = all.rows;
  rows.stride = pass.mid_stride;
  rows.num_rows = call.rows.offsets.back();
  rows.amax = amax.empty() ? nullptr : amax.data();
  quantize_int8_rows(rows, *pass.kernels.row_ops, quantizer, all, threads);
}

// Group sums of all rows, for matrices with zero points or minimums.
void sum_rows(const Pass& pass, const MatrixKernels& kernels, const PackedLayout& layout,
              std::byte* rows, int64_t stride, const Threads& threads) {
  if (!layout.format.needs_sums() || kernels.rows == ActivationDType::kInt8) return;
  const struct {
    const MatrixKernels& kernels;
    const PackedLayout& layout;
    std::byte* rows;
    int64_t stride;
    int64_t num_rows;
  } sums{kernels, layout, rows, stride, pass.call.rows.offsets.back()};
  parallel_for(threads, ceil_div(sums.num_rows, kGatherRows), [&sums](int64_t task) {
    const int64_t begin = task * kGatherRows;
    sum_groups(sums.kernels, sums.layout, sums.rows + begin * sums.stride, sums.stride,
               std::min(kGatherRows, sums.num_rows - begin));
  });
}

}  // namespace

FusedExpertsKernels select_fused_experts(const KernelRequest& request, const WeightFormat& w13,
                                         const WeightFormat& w2) {
  const RowOps* row_ops = request.isas.contains(Isa::kAvx512) ? &avx512::kRowOps
                          : request.isas.contains(Isa::kAvx2) ? &avx2::kRowOps
                                                              : &scalar::kRowOps;
  return {select_matrix_kernels(request, w13), select_matrix_kernels(request, w2), row_ops};
}

void fused_experts(const FusedExpertsCall& call, const FusedExpertsKernels& kernels,
                   const Threads& threads, FusedExpertsScratch& scratch) {
  const PackedExperts& experts = call.experts;
  const int64_t num_rows = call.rows.offsets.empty() ? 0 : call.rows.offsets.back();
  check_call(call, scratch, fused_experts_scratch(experts, kernels, num_rows, call.has_up_rows()));
  GANTRY_CHECK(call.activations == ActivationDType::kBF16 ||
                   (kernels.w13.gemm->rows == ActivationDType::kF32 &&
                    kernels.w2.gemm->rows == ActivationDType::kF32),
               ErrorCode::kInvalidArgument, "fused_experts: {} rounds {} activations to bf16",
               kernels.w13.gemm->name, to_string(call.activations));
  for (const auto& [matrix, layout] :
       {std::pair{&kernels.w13, &experts.w13}, std::pair{&kernels.w2, &experts.w2}}) {
    GANTRY_CHECK(matrix->rows != ActivationDType::kInt8 || layout->padded_k() <= kMaxInt8Depth,
                 ErrorCode::kUnsupported,
                 "fused_experts: rows of {} overflow the int32 sums of {}, which hold {}",
                 layout->k, to_string(*matrix), kMaxInt8Depth);
  }
  Pass pass{.call = call,
            .kernels = kernels,
            .scratch = scratch,
            .w13_coded = experts.w13.coded_panel(),
            .w2_coded = experts.w2.coded_panel(),
            .w13_panel_bytes = experts.w13.panel_bytes(),
            .w2_panel_bytes = experts.w2.panel_bytes(),
            .row_stride = gathered_stride_bytes(kernels.w13, experts.w13, experts.transforms_x()),
            .mid_stride = f32_row_stride_bytes(kernels.w2, experts.w2),
            .store_rows_bf16 = kernels.w13.rows == ActivationDType::kBF16,
            .store_mid_bf16 = kernels.w2.rows == ActivationDType::kBF16,
            .round_bf16 = call.activations == ActivationDType::kBF16,
            .kind = kind_of(call.activation.kind)};
  const int num_threads = threads.resolved_count();
  for (const bool up : {false, true}) {
    if (up && !call.has_up_rows()) break;
    if (kernels.w13.rows == ActivationDType::kInt8) {
      gather_int8(pass, threads, up);
    } else {
      gather(pass, threads, {pass.x_rows(up), /*as_f32=*/false});
      quantize_x(pass, threads, up);
    }
    sum_rows(pass, kernels.w13, experts.w13, pass.x_rows(up), pass.row_stride, threads);
  }
  parallel_for(threads, plan_w13(pass, num_threads),
               [&pass](int64_t task) { w13_task(pass, task); });
  quantize_intermediate(pass, threads);
  sum_rows(pass, kernels.w2, experts.w2, scratch.intermediate.data(), pass.mid_stride, threads);
  parallel_for(threads, plan_w2(pass, num_threads), [&pass](int64_t task) { w2_task(pass, task); });
}

}  // namespace gantry
