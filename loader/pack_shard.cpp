#include "loader/pack_shard.h"

#include "kernels/base/check.h"
#include "kernels/grouped_gemm/pack_codes.h"

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
  std::vector<int8_t> zeros_;
};

}  // namespace

void pack_shard(const CodedMatrix& coded, const EncodedJob& job) {
  const PackedLayout& layout = *job.target.panels;
  GANTRY_CHECK(
      shard_format(coded.format, job.in.begin) == layout.format && coded.input_groups.empty(),
      ErrorCode::kFormat, "expected {}, found {}{}", to_string(layout.format),
      to_string(coded.format),
      coded.input_groups.empty() ? "" : " with groups that are not in order");
  const CodedShard shard(coded, job.out, job.in, layout.format);
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
