#pragma once

// The walk over tiles that the vector kernels share. A tile gives whole cache lines of 64 bytes of
// the target: 64 / E source rows (E bytes an element) by one vector of columns. First the rows of
// one dword of the target line are merged (2 rows of halfwords, 4 of bytes), so that what is left
// is a transpose of dwords.
//
// Ops (one for an instruction set, with internal linkage) has
//   Vector, kVectorBytes               a piece of a source row
//   load(p), load_part(p, bytes)       the rest of a part is zero
//   interleave_low/high<size>(a, b)    elements of `size` bytes in turn, in each 128-bit lane
//   transpose(rows[16], store)         store(column, line): dword `column` of 16 vectors, in order
//   Line; store(p, line), stream(p, line), store_part(p, line, bytes)

#include <immintrin.h>

#include "kernels/transpose/transpose_call.h"

namespace gantry {
namespace {

constexpr int64_t kLineBytes = 64;
// A pass over one tile's rows reads this much of each before it goes on to the rows below: long
// enough for DRAM pages, and what it prefetches stays in the second-level cache.
// (expert_stack_bench: tile by tile down the columns 1.7 to 1.9 times the time of memcpy, without
// the prefetch 1.2 to 1.5, this 1.1.)
constexpr int64_t kPassBytes = 1024;

constexpr int64_t smaller(int64_t a, int64_t b) noexcept { return a < b ? a : b; }

template <typename Byte>
Byte* row_of(const AlternatingRows<Byte>& rows, int64_t r) noexcept {
  return rows.base[r % 2] + r / 2 * rows.stride;
}

template <typename Ops, int kSize>
struct TileWalk {
  using Vector = typename Ops::Vector;
  static constexpr int kMerged = 4 / kSize;  // rows in a dword
  static constexpr int64_t kRows = kLineBytes / kSize;
  static constexpr int64_t kCols = Ops::kVectorBytes / kSize;

  const TransposeCall& call;

  /// Vector k of the result: dwords k * 4 .. k * 4 + 3 of each 128-bit lane's columns.
  template <typename Load>
  static void merge_rows(const Load& load, int group, Vector (&out)[4][16]) noexcept {
    if constexpr (kMerged == 1) {
      out[0][group] = load(group);
    } else if constexpr (kMerged == 2) {
      const Vector a = load(2 * group);
      const Vector b = load(2 * group + 1);
      out[0][group] = Ops::template interleave_low<2>(a, b);
      out[1][group] = Ops::template interleave_high<2>(a, b);
    } else {
      const Vector a = load(4 * group);
      const Vector b = load(4 * group + 1);
      const Vector c = load(4 * group + 2);
      const Vector d = load(4 * group + 3);
      const Vector ab_low = Ops::template interleave_low<1>(a, b);
      const Vector ab_high = Ops::template interleave_high<1>(a, b);
      const Vector cd_low = Ops::template interleave_low<1>(c, d);
      const Vector cd_high = Ops::template interleave_high<1>(c, d);
      out[0][group] = Ops::template interleave_low<2>(ab_low, cd_low);
      out[1][group] = Ops::template interleave_high<2>(ab_low, cd_low);
      out[2][group] = Ops::template interleave_low<2>(ab_high, cd_high);
      out[3][group] = Ops::template interleave_high<2>(ab_high, cd_high);
    }
  }

  /// Loads rows of a tile and hands store(column, line) its columns.
  template <typename Load, typename Store>
  static void tile(const Load& load, const Store& store) noexcept {
    Vector merged[4][16];
#pragma GCC unroll 16
    for (int group = 0; group < 16; ++group)
      merge_rows(load, group, merged);
#pragma GCC unroll 4
    for (int k = 0; k < kMerged; ++k) {
      Ops::transpose(merged[k], [&](int dword, typename Ops::Line line) {
        // Dword 4 l + p of vector k is column l * (16 / E) + 4 k + p.
        store(dword / 4 * (16 / kSize) + 4 * k + dword % 4, line);
      });
    }
  }

  void whole_tile(int64_t r, int64_t c, bool stream) const noexcept {
    const std::byte* sources[2] = {row_of(call.source, r) + c * kSize,
                                   row_of(call.source, r + 1) + c * kSize};
    std::byte* targets[2] = {call.target.base[c % 2], call.target.base[(c + 1) % 2]};
    for (int side = 0; side < 2; ++side) {
      if (targets[side] != nullptr) targets[side] = row_of(call.target, c + side) + r * kSize;
    }
    // The rows of the tile below come now, so that they are there when this pass is over.
    const int64_t below = r + 2 * kRows <= call.rows ? r + kRows : r;
    const std::byte* next[2] = {row_of(call.source, below) + c * kSize,
                                row_of(call.source, below + 1) + c * kSize};
    const auto load = [&](int row) {
      const int64_t offset = row / 2 * call.source.stride;
      _mm_prefetch(reinterpret_cast<const char*>(next[row % 2] + offset), _MM_HINT_T1);
      return Ops::load(sources[row % 2] + offset);
    };
    if (stream) {
      tile(load, [&](int64_t column, typename Ops::Line line) {
        std::byte* base = targets[column % 2];
        if (base != nullptr) Ops::stream(base + column / 2 * call.target.stride, line);
      });
    } else {
      tile(load, [&](int64_t column, typename Ops::Line line) {
        std::byte* base = targets[column % 2];
        if (base != nullptr) Ops::store(base + column / 2 * call.target.stride, line);
      });
    }
  }

  void part_of_tile(int64_t r, int64_t rows, int64_t c, int64_t cols) const noexcept {
    const auto load = [&](int row) {
      // Rows beyond the last one are read as the first one again, and not stored.
      const std::byte* from = row_of(call.source, row < rows ? r + row : r) + c * kSize;
      return Ops::load_part(from, cols * kSize);
    };
    tile(load, [&](int64_t column, typename Ops::Line line) {
      if (column >= cols || call.target.base[(c + column) % 2] == nullptr) return;
      Ops::store_part(row_of(call.target, c + column) + r * kSize, line, rows * kSize);
    });
  }

  /// Rows before the first one that stands at the start of a cache line in every target row; -1
  /// where there is no such row.
  [[nodiscard]] int64_t rows_before_line() const noexcept {
    int64_t lead = -1;
    for (const std::byte* base : call.target.base) {
      if (base == nullptr) continue;
      const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(base) % kLineBytes);
      const int64_t own = (kLineBytes - past) % kLineBytes;
      if (lead >= 0 && lead != own) return -1;
      lead = own;
    }
    return call.target.stride % kLineBytes == 0 && lead % kSize == 0 ? lead / kSize : -1;
  }

  /// A tile's rows of columns [c0, c1).
  void pass(int64_t r, int64_t rows, int64_t c0, int64_t c1, bool stream) const noexcept {
    for (int64_t c = c0; c < c1; c += kCols) {
      const int64_t cols = smaller(kCols, c1 - c);
      if (rows == kRows && cols == kCols) {
        whole_tile(r, c, stream);
      } else {
        part_of_tile(r, rows, c, cols);
      }
    }
  }

  void run() const noexcept {
    if (call.target.base[0] == nullptr && call.target.base[1] == nullptr) return;
    const int64_t lead = rows_before_line();
    const bool stream = call.stream && lead >= 0;
    const int64_t first = lead < 0 ? 0 : smaller(lead, call.rows);
    const int64_t step = kPassBytes / kSize;
    for (int64_t c = 0; c < call.cols; c += step) {
      const int64_t end = smaller(call.cols, c + step);
      if (first > 0) pass(0, first, c, end, stream);
      for (int64_t r = first; r < call.rows; r += kRows)
        pass(r, smaller(kRows, call.rows - r), c, end, stream);
    }
    if (stream) _mm_sfence();
  }
};

template <typename Ops>
void transpose_tiles(const TransposeCall& call) noexcept {
  if (call.rows <= 0 || call.cols <= 0) return;
  switch (call.element_bytes) {
    case 1:
      return TileWalk<Ops, 1>{call}.run();
    case 2:
      return TileWalk<Ops, 2>{call}.run();
    default:
      return TileWalk<Ops, 4>{call}.run();
  }
}

}  // namespace
}  // namespace gantry
