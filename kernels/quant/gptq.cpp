#include "kernels/quant/gptq.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/base/check.h"
#include "kernels/grouped_gemm/packed_layout.h"
#include "kernels/grouped_gemm/panel_gemm_kernels.h"

namespace gantry {

// Solves kMaxPanelRows rows at a time, each task with its own memory. Earlier columns' errors reach
// a block of 32 columns in one multiplication by a panel of U; within the block, column by column.
class GptqSolver {
 public:
  GptqSolver(std::span<const float> weights, int64_t out, const GptqHessian& hessian,
             const GptqScales& scales, const GptqGrid& grid, IsaSet isas, GptqMatrix& result)
      : weights_(weights.data()),
        out_(out),
        hessian_(hessian),
        scales_(scales),
        grid_(grid),
        kernel_(select_panel_gemm(
            {.weights = DType::kF32, .activations = ActivationDType::kF32, .isas = isas})),
        n_(hessian.n_),
        padded_(hessian.padded_),
        group_(scales.group > 0 ? std::min(scales.group, hessian.n_) : hessian.n_),
        num_groups_((n_ + group_ - 1) / group_),
        stride_(kernel_.row_stride_bytes(padded_) / 4),
        result_(result) {}

  void run(const Threads& threads) {
    result_.codes.resize(static_cast<size_t>(out_ * n_));
    result_.scales.resize(static_cast<size_t>(out_ * num_groups_));
    if (!scales_.fixed.empty()) result_.scales = scales_.fixed;
    if (scales_.fixed.empty() && !hessian_.in_order_ && num_groups_ > 1) {
      result_.input_groups.resize(static_cast<size_t>(n_));
      for (int64_t place = 0; place < n_; ++place)
        result_.input_groups[static_cast<size_t>(column_at(place))] =
            static_cast<int32_t>(place / group_);
    }
    solve(threads);
  }

 private:
  class Rows;

  void solve(const Threads& threads);

  [[nodiscard]] int64_t column_at(int64_t place) const {
    return hessian_.order_[static_cast<size_t>(place)];
  }

  const float* weights_;
  int64_t out_;
  const GptqHessian& hessian_;
  const GptqScales& scales_;
  const GptqGrid& grid_;
  const PanelGemmKernel& kernel_;
  int64_t n_;
  int64_t padded_;
  int64_t group_;
  int64_t num_groups_;
  int64_t stride_;  // elements from row to row of errors
  GptqMatrix& result_;
};

class GptqSolver::Rows {
 public:
  Rows(const GptqSolver& solver, int64_t first, int64_t count)
      : s_(solver),
        first_(first),
        count_(count),
        weights_(static_cast<size_t>(count * solver.padded_)),
        errors_(static_cast<size_t>(count * solver.stride_)) {
    for (int64_t r = 0; r < count_; ++r) {
      const float* row = s_.weights_ + (first_ + r) * s_.n_;
      for (int64_t place = 0; place < s_.n_; ++place)
        weights_[static_cast<size_t>(r * s_.padded_ + place)] = row[s_.column_at(place)];
    }
  }

  void run() {
    if (s_.scales_.fixed.empty() && s_.num_groups_ == 1) choose(0, s_.n_);
    for (int64_t begin = 0; begin < s_.n_; begin += kPanelWidth) {
      if (chooses_while_solving() && begin % s_.group_ == 0 && s_.group_ >= kPanelWidth) {
        // The whole group, as the errors before it leave it.
        const int64_t end = std::min(s_.n_, begin + s_.group_);
        for (int64_t block = begin; block < end; block += kPanelWidth)
          apply(block, 0, begin);
        applied_ = begin;
        choose(begin, end);
      }
      apply(begin, applied_, begin);
      solve_block(begin);
    }
  }

 private:
  // Weights, errors ... of one block of columns, transposed: a column is a vector of rows.
  using Column = std::array<float, static_cast<size_t>(kMaxPanelRows)>;

  [[nodiscard]] bool chooses_while_solving() const {
    return s_.scales_.fixed.empty() && s_.num_groups_ > 1;
  }

  // W[block] -= E[from .. to) U[from .. to, block]
  void apply(int64_t block, int64_t from, int64_t to) {
    if (from == to) return;
    const int64_t panel = block / kPanelWidth;
    alignas(64) std::array<float, static_cast<size_t>(kMaxPanelRows * kPanelWidth)> c;
    s_.kernel_.run(
        {.x = reinterpret_cast<const std::byte*>(errors_.data() + from),
         .x_stride = s_.stride_ * 4,
         .panel = reinterpret_cast<const std::byte*>(
             s_.hessian_.panels_.data() + GptqHessian::panel_offset(panel) + from * kPanelWidth),
         .k = to - from,
         .num_rows = count_,
         .c = c.data(),
         .next = nullptr});
    for (int64_t r = 0; r < count_; ++r) {
      float* row = weights_.data() + r * s_.padded_ + block;
      for (int64_t l = 0; l < kPanelWidth; ++l)
        row[l] -= c[static_cast<size_t>(r * kPanelWidth + l)];
    }
  }

  // The scales of the group of places begin .. end - 1.
  void choose(int64_t begin, int64_t end) {
    for (int64_t r = 0; r < count_; ++r) {
      const float* row = weights_.data() + r * s_.padded_;
      scale_of(r, begin / s_.group_) =
          s_.grid_.choose({row + begin, static_cast<size_t>(end - begin)});
    }
  }

  GptqScale& scale_of(int64_t r, int64_t group) {
    return s_.result_.scales[static_cast<size_t>((first_ + r) * s_.num_groups_ + group)];
  }

  void solve_block(int64_t begin) {
    const int64_t width = std::min(kPanelWidth, s_.n_ - begin);
    std::array<Column, static_cast<size_t>(kPanelWidth)> w{};
    const auto load = [&] {
      for (int64_t l = 0; l < width; ++l) {
        for (int64_t r = 0; r < count_; ++r)
          w[static_cast<size_t>(l)][static_cast<size_t>(r)] =
              weights_[static_cast<size_t>(r * s_.padded_ + begin + l)];
      }
    };
    load();
    const float* triangle = s_.hessian_.triangles_.data() + begin * kPanelWidth;
    for (int64_t l = 0; l < width; ++l) {
      const int64_t place = begin + l;
      if (chooses_while_solving() && s_.group_ < kPanelWidth && place % s_.group_ == 0) {
        const int64_t end = std::min(s_.n_, place + s_.group_);
        for (int64_t i = place; i < end; ++i) {
          for (int64_t r = 0; r < count_; ++r)
            weights_[static_cast<size_t>(r * s_.padded_ + i)] =
                w[static_cast<size_t>(i - begin)][static_cast<size_t>(r)];
        }
        choose(place, end);
      }
      const Column errors =
          round_column(place, w[static_cast<size_t>(l)], triangle[l * kPanelWidth + l]);
      for (int64_t j = l + 1; j < width; ++j) {
        const float u = triangle[l * kPanelWidth + j];
        Column& column = w[static_cast<size_t>(j)];
        for (size_t r = 0; r < column.size(); ++r)
          column[r] -= errors[r] * u;
      }
    }
  }

  // Codes of one column; returns e = (w - q) / U_ii.
  Column round_column(int64_t place, const Column& w, float pivot) {
    const int64_t column = s_.column_at(place);
    // Fixed scales are those of the column's own place in the matrix.
    const int64_t group = (s_.scales_.fixed.empty() ? place : column) / s_.group_;
    std::array<GptqScale, static_cast<size_t>(kMaxPanelRows)> scales;
    std::array<uint8_t, static_cast<size_t>(kMaxPanelRows)> codes{};
    Column values{};
    for (int64_t r = 0; r < count_; ++r)
      scales[static_cast<size_t>(r)] = scale_of(r, group);
    s_.grid_.round(count_, w.data(), scales.data(), codes.data(), values.data());
    Column errors{};
    for (int64_t r = 0; r < count_; ++r) {
      const auto i = static_cast<size_t>(r);
      s_.result_.codes[static_cast<size_t>((first_ + r) * s_.n_ + column)] = codes[i];
      errors[i] = (w[i] - values[i]) / pivot;
      errors_[static_cast<size_t>(r * s_.stride_ + place)] = errors[i];
    }
    return errors;
  }

  const GptqSolver& s_;
  int64_t first_;
  int64_t count_;
  int64_t applied_ = 0;    // errors of places before it are in the weights of the current group
  Buffer<float> weights_;  // [rows, padded n], in the order of rounding
  Buffer<float> errors_;   // [rows, stride]
};

void GptqSolver::solve(const Threads& threads) {
  const int64_t blocks = (out_ + kMaxPanelRows - 1) / kMaxPanelRows;
  parallel_for(threads, blocks, [&](int64_t block) {
    const int64_t first = block * kMaxPanelRows;
    Rows(*this, first, std::min(kMaxPanelRows, out_ - first)).run();
  });
}

GptqMatrix gptq_quantize(std::span<const float> weights, int64_t out, const GptqHessian& hessian,
                         const GptqScales& scales, const GptqGrid& grid, const Threads& threads,
                         IsaSet isas) {
  const int64_t n = hessian.size();
  GANTRY_CHECK(out >= 0 && static_cast<int64_t>(weights.size()) == out * n,
               ErrorCode::kInvalidArgument, "GPTQ: expected a matrix [{}, {}], found {} elements",
               out, n, weights.size());
  const int64_t group = scales.group;
  const bool fits = group == 0 || group >= n || !scales.fixed.empty() ||
                    (group > 0 && (group % kPanelWidth == 0 || kPanelWidth % group == 0));
  GANTRY_CHECK(group >= 0 && fits, ErrorCode::kUnsupported,
               "GPTQ: groups of {} inputs: expected a multiple of {} or a divisor of it", group,
               kPanelWidth);
  const int64_t num_groups = group == 0 ? 1 : (n + group - 1) / group;
  GANTRY_CHECK(
      scales.fixed.empty() || static_cast<int64_t>(scales.fixed.size()) == out * num_groups,
      ErrorCode::kInvalidArgument, "GPTQ: expected {} x {} scales, found {}", out, num_groups,
      scales.fixed.size());
  GptqMatrix result;
  GptqSolver(weights, out, hessian, scales, grid, isas, result).run(threads);
  return result;
}

}  // namespace gantry
