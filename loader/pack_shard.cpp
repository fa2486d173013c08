#include "loader/pack_shard.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/grouped_gemm/pack_codes.h"
#include "loader/encodings/common_format.h"

namespace gantry {
namespace {

// The rows and inputs that a rank owns, as its slots' layout has them.
class CodedShard {
 public:
  CodedShard(const CodedMatrix& coded, const Slice& out, const Slice& in,
             const WeightFormat& format)
      : coded_(coded), out_(out), in_(in) {
    const auto row = static_cast<size_t>(out.begin);
    block_ = {
        .rows = out.size(),
        .cols = in.size(),
        .output_scales = coded.output_scales.empty() ? nullptr : coded.output_scales.data() + row,
        .nibbles = coded.nibbles(),
        .flip = coded.flip};
    if (coded.nibbles() && in.begin % 2 != 0) {
      cut_codes();
    } else {
      block_.stride = coded.row_bytes();
      block_.codes = coded.code_row(out.begin) + in.begin / (coded.nibbles() ? 2 : 1);
    }
    if (!format.grouped()) return;
    const int64_t groups = (in.size() + format.group - 1) / format.group;
    const bool same_groups = coded.format.group == format.group;  // not cut
    const bool all_groups = same_groups && groups == coded.num_groups();
    const int64_t stored = size_of(format.scale);
    if (coded.file_scales != nullptr && same_groups) {
      block_.scale_stride = coded.num_groups() * stored;
      block_.stored_scales =
          coded.file_scales + out.begin * block_.scale_stride + in.begin / format.group * stored;
    } else if (coded.file_scales == nullptr && all_groups) {
      block_.scales = coded.scales.data() + out.begin * groups;
    } else {
      cut(groups, format.group, scales_, [&](int64_t at) { return coded.scale(at); });
      block_.scales = scales_.data();
    }
    if (!coded.minimums.empty()) {
      cut(groups, format.group, minimums_,
          [&](int64_t at) { return coded.minimums[static_cast<size_t>(at)]; });
      block_.minimums = minimums_.data();
    }
    if (format.super_group > 0) cut_supers(format.super_group);
    if (coded.zeros.empty()) return;
    if (all_groups) {
      block_.zeros = coded.zeros.data() + out.begin * groups;
      return;
    }
    cut(groups, format.group, zeros_,
        [&](int64_t at) { return coded.zeros[static_cast<size_t>(at)]; });
    block_.zeros = zeros_.data();
  }
  [[nodiscard]] const CodedBlock& block() const noexcept { return block_; }

 private:
  // Codes that begin within a byte, one a byte.
  void cut_codes() {
    codes_.reserve(static_cast<size_t>(out_.size() * in_.size()));
    for (int64_t o = out_.begin; o < out_.end; ++o) {
      for (int64_t i = in_.begin; i < in_.end; ++i)
        codes_.push_back(coded_.code(o, i));
    }
    block_.codes = codes_.data();
    block_.stride = in_.size();
    block_.nibbles = false;
    block_.flip = 0;
  }

  void cut_supers(int64_t super_group) {
    const int64_t supers = (in_.size() + super_group - 1) / super_group;
    const auto cut = [&](const std::vector<float>& from, std::vector<float>& part) {
      for (int64_t o = out_.begin; o < out_.end; ++o) {
        for (int64_t s = 0; s < supers; ++s) {
          const int64_t whole = (in_.begin + s * super_group) / coded_.format.super_group;
          part.push_back(from[static_cast<size_t>(o * coded_.num_supers() + whole)]);
        }
      }
    };
    cut(coded_.super_scales, super_scales_);
    block_.super_scales = super_scales_.data();
    if (coded_.super_minimums.empty()) return;
    cut(coded_.super_minimums, super_minimums_);
    block_.super_minimums = super_minimums_.data();
  }

  template <typename T, typename At>
  void cut(int64_t groups, int64_t group, std::vector<T>& part, const At& at) {
    part.resize(static_cast<size_t>(out_.size() * groups));
    size_t next = 0;
    for (int64_t o = out_.begin; o < out_.end; ++o) {
      for (int64_t g = 0; g < groups; ++g) {
        part[next++] = at(o * coded_.num_groups() + (in_.begin + g * group) / coded_.format.group);
      }
    }
  }

  const CodedMatrix& coded_;
  Slice out_;
  Slice in_;
  CodedBlock block_;
  std::vector<uint8_t> codes_;
  std::vector<float> scales_;
  std::vector<float> minimums_;
  std::vector<float> super_scales_;
  std::vector<float> super_minimums_;
  std::vector<int8_t> zeros_;
};

// The rows that a job wants, all columns in its order. With its own scales and zero points: groups
// are those of the sorted columns, which are the file's.
CodedMatrix reorder(const CodedMatrix& coded, const EncodedJob& job) {
  const int64_t rows = job.out.size();
  CodedMatrix moved{.format = coded.format, .size = {rows, coded.size.in}};
  const bool columns = job.column_order != nullptr;
  moved.flip = columns ? 0 : coded.flip;
  moved.own_codes(columns ? (coded.nibbles() ? (coded.size.in + 1) / 2 : coded.size.in)
                          : coded.row_bytes());
  const int64_t groups = coded.num_groups();
  std::vector<uint8_t> row_codes(static_cast<size_t>(coded.size.in));
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = job.out.begin + r;
    const int64_t source =
        job.row_order != nullptr ? (*job.row_order)[static_cast<size_t>(at)] : at;
    uint8_t* target = moved.codes.data() + r * moved.padded_row_bytes;
    if (!columns) {
      std::copy_n(coded.code_row(source), moved.padded_row_bytes, target);
    } else {
      for (size_t i = 0; i < row_codes.size(); ++i)
        row_codes[i] = coded.code(source, static_cast<int64_t>(i));
      for (size_t i = 0; i < row_codes.size(); ++i) {
        const uint8_t code = row_codes[static_cast<size_t>((*job.column_order)[i])];
        if (coded.nibbles()) {
          target[i / 2] |= static_cast<uint8_t>(code << (i % 2 * 4));
        } else {
          target[i] = code;
        }
      }
    }
    const auto copy_row = [source](const auto& from, int64_t count, auto& to) {
      if (!from.empty()) {
        to.insert(to.end(), from.begin() + source * count, from.begin() + (source + 1) * count);
      }
    };
    for (int64_t g = source * groups; g < (source + 1) * groups; ++g)
      moved.scales.push_back(coded.scale(g));
    copy_row(coded.zeros, groups, moved.zeros);
    copy_row(coded.minimums, groups, moved.minimums);
    copy_row(coded.super_scales, coded.num_supers(), moved.super_scales);
    copy_row(coded.super_minimums, coded.num_supers(), moved.super_minimums);
    copy_row(coded.output_scales, 1, moved.output_scales);
  }
  return moved;
}

}  // namespace

void pack_shard(const CodedMatrix& coded, const EncodedJob& job) {
  const PackedLayout& layout = *job.target.panels;
  const bool in_order = coded.input_groups.empty() || job.column_order != nullptr;
  const WeightFormat& whole = job.format.coded() ? job.format : coded.format;
  const bool fits = common_format(coded.format, whole) == whole;
  GANTRY_CHECK(fits && shard_format(whole, job.in.begin) == layout.format && in_order,
               ErrorCode::kFormat, "expected {}, found {}{}", to_string(layout.format),
               to_string(coded.format), in_order ? "" : " with groups that are not in order");
  const CodedMatrix* matrix = &coded;
  CodedMatrix moved;
  Slice out = job.out;
  if (job.row_order != nullptr || job.column_order != nullptr) {
    moved = reorder(coded, job);
    matrix = &moved;
    out = {0, job.out.size()};
  }
  CodedMatrix wider;
  if (matrix->format != whole) {
    wider = convert_format(*matrix, whole);
    matrix = &wider;
  }
  const CodedShard shard(*matrix, out, job.in, layout.format);
  for (const EncodedJob::Destination& destination : job.destinations) {
    if (destination.slot == nullptr) continue;
    GANTRY_CHECK(pack_coded_rows(layout, shard.block(), job.target.first_row,
                                 destination.slot + job.target.offset),
                 ErrorCode::kInternal, "a scale is not a value of {}", to_string(layout.format));
  }
}

void pack_decoded(const std::vector<float>& decoded, const EncodedJob& job,
                  const MatrixSize& size) {
  const StridedBlock block{.data = reinterpret_cast<const std::byte*>(
                               decoded.data() + job.out.begin * size.in + job.in.begin),
                           .rows = job.out.size(),
                           .cols = job.in.size(),
                           .row_stride = size.in,
                           .col_stride = 1};
  for (const EncodedJob::Destination& destination : job.destinations) {
    if (destination.slot == nullptr) continue;
    pack_block(*job.target.panels, block, job.target.first_row, 0,
               destination.slot + job.target.offset);
  }
}

}  // namespace gantry
