// Runs a conversion, tile by tile. A tile is a run of bytes that stay as they are, or rows of a
// matrix as the target stores it: whatever part of the sources falls into these rows is read and
// put in place, so a tile is written with one call and memory does not depend on the tensors.

#include "loader/relayout.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <span>
#include <utility>

#include "kernels/base/check.h"
#include "loader/memory_budget.h"
#include "loader/strided_copy.h"

namespace gantry {
namespace {

// Bytes that stay as they are go through the second-level cache; see also AtomicFile::write.
constexpr int64_t kRunBytes = int64_t{512} << 10;
// Of a transpose, larger tiles read longer pieces of each source row.
constexpr int64_t kTileBytes = int64_t{16} << 20;

/// A matrix of a slab along the slab's own axes: x runs over rows, y within a row. Elements.
struct SlabMatrix {
  int64_t nx = 0;
  int64_t ny = 0;
  int64_t from_offset = 0;
  int64_t from_x = 0;  ///< strides
  int64_t from_y = 0;
  int64_t base_row = 0;  ///< of the slab
  int64_t base_col = 0;
  int64_t row_step = 1;  ///< slab rows from one x to the next
  int64_t to_y = 0;

  /// The source rows are along x; else the slab is its transpose.
  [[nodiscard]] bool same_rows() const { return nx == 1 || ny == 1 || from_x >= from_y; }
};

SlabMatrix slab_matrix(const RelayoutSlab& slab, const RelayoutPart& part) {
  const bool out = slab.rows_are_out;
  const int64_t relative = part.to.offset - part.to.slab_offset;
  SlabMatrix m;
  m.nx = out ? part.to.size.out : part.to.size.in;
  m.ny = out ? part.to.size.in : part.to.size.out;
  m.from_offset = part.from.offset;
  m.from_x = out ? part.from.out_stride : part.from.in_stride;
  m.from_y = out ? part.from.in_stride : part.from.out_stride;
  m.base_row = relative / slab.cols;
  m.base_col = relative % slab.cols;
  m.row_step = (out ? part.to.out_stride : part.to.in_stride) / slab.cols;
  m.to_y = out ? part.to.in_stride : part.to.out_stride;
  return m;
}

/// Whether the matrix is one run of bytes on both sides.
bool is_run(const RelayoutSlab& slab, const SlabMatrix& m) {
  const auto dense = [&](int64_t x_stride, int64_t y_stride) {
    return (m.ny == 1 || y_stride == 1) && (m.nx == 1 || x_stride == m.ny);
  };
  return dense(m.from_x, m.from_y) && dense(m.row_step * slab.cols, m.to_y);
}

/// How the part of a matrix that falls into a tile is read: `rows` pieces of the source, each of
/// `span` elements, `pitch` apart; in one go where little lies between them.
struct ReadShape {
  int64_t rows = 0;
  int64_t span = 0;
  int64_t pitch = 0;
  bool at_once = false;

  [[nodiscard]] int64_t elements() const {
    return at_once ? (rows - 1) * pitch + span : rows * span;
  }
};

ReadShape read_shape(const SlabMatrix& m, int64_t count) {
  ReadShape shape;
  shape.rows = m.same_rows() ? count : m.ny;
  shape.pitch = m.same_rows() ? m.from_x : m.from_y;
  shape.span = m.same_rows() ? (m.ny - 1) * m.from_y + 1 : (count - 1) * m.from_x + 1;
  shape.at_once = shape.rows == 1 || shape.span * 2 >= shape.pitch;
  return shape;
}

/// The x that fall into slab rows [begin, end).
std::pair<int64_t, int64_t> rows_in(const SlabMatrix& m, int64_t begin, int64_t end) {
  const auto first_at = [&](int64_t row) {
    const int64_t distance = std::max<int64_t>(0, row - m.base_row);
    return std::min(m.nx, (distance + m.row_step - 1) / m.row_step);
  };
  return {first_at(begin), first_at(end)};
}

/// Gate and up whose elements stand in turn in the slab's rows, while the sources' rows run the
/// other way: they are read both, then put in place together.
bool are_interleaved(const std::vector<SlabMatrix>& matrices) {
  return matrices.size() == 2 && matrices[0].to_y == 2 && matrices[1].to_y == 2 &&
         matrices[0].base_col == 0 && matrices[1].base_col == 1 && !matrices[0].same_rows() &&
         !matrices[1].same_rows() && matrices[0].nx == matrices[1].nx &&
         matrices[0].ny == matrices[1].ny && matrices[0].base_row == matrices[1].base_row &&
         matrices[0].row_step == matrices[1].row_step;
}

int64_t staging_elements(const std::vector<SlabMatrix>& matrices, int64_t begin, int64_t end) {
  int64_t most = 0;
  for (const SlabMatrix& m : matrices) {
    const auto [x0, x1] = rows_in(m, begin, end);
    if (x1 > x0) most = std::max(most, read_shape(m, x1 - x0).elements());
  }
  return are_interleaved(matrices) ? 2 * most : most;
}

/// A copy from the staging memory into a tile.
struct TileCopy {
  StridedSource from;
  StridedTarget to;
  int64_t rows = 0;
  int64_t cols = 0;
};

struct Tile {
  size_t slab = 0;
  int part = -1;      ///< a run of this part; -1: rows of the slab
  int64_t begin = 0;  ///< bytes of the run, or rows
  int64_t end = 0;
};

class RelayoutRun {
 public:
  RelayoutRun(const Checkpoint& checkpoint, const RelayoutPlan& plan, TensorSink& sink,
              const RelayoutOptions& options)
      : checkpoint_(checkpoint),
        plan_(plan),
        sink_(sink),
        options_(options),
        budget_(options.memory_bytes),
        share_(std::max<int64_t>(
            1, options.memory_bytes / std::max(1, options.threads.resolved_count()))) {}

  RelayoutStats run() {
    for (const RelayoutEqual& equal : plan_.equal)
      check_equal(equal);
    for (const RelayoutLiteral& literal : plan_.literals)
      write_literal(literal);
    std::vector<Tile> tiles;
    for (size_t s = 0; s < plan_.slabs.size(); ++s) {
      if (!sink_.is_kept(plan_.tensors[plan_.slabs[s].target].name)) add_tiles(s, tiles);
    }
    std::atomic<bool> failed = false;  // the others need not run into the same full disk
    parallel_for(options_.threads, static_cast<int64_t>(tiles.size()), [&](int64_t t) {
      if (failed.load(std::memory_order_relaxed)) return;
      try {
        const Tile& tile = tiles[static_cast<size_t>(t)];
        tile.part >= 0 ? copy_run(tile) : lay_out(tile);
      } catch (...) {
        failed = true;
        throw;
      }
    });
    return {bytes_read_, bytes_written_, budget_.peak_bytes()};
  }

 private:
  void add_tiles(size_t s, std::vector<Tile>& tiles) const {
    const RelayoutSlab& slab = plan_.slabs[s];
    std::vector<SlabMatrix> matrices;
    bool runs = true;
    for (const RelayoutPart& part : slab.parts) {
      matrices.push_back(slab_matrix(slab, part));
      runs = runs && is_run(slab, matrices.back());
    }
    if (runs) {
      const int64_t piece = std::min(kRunBytes, share_);
      for (size_t p = 0; p < matrices.size(); ++p) {
        const int64_t bytes = matrices[p].nx * matrices[p].ny * slab.element_bytes;
        for (int64_t at = 0; at < bytes; at += piece)
          tiles.push_back({s, static_cast<int>(p), at, std::min(bytes, at + piece)});
      }
      return;
    }
    const bool transposed = std::any_of(matrices.begin(), matrices.end(),
                                        [](const SlabMatrix& m) { return !m.same_rows(); });
    const int64_t row_bytes = slab.cols * slab.element_bytes;
    int64_t rows =
        std::clamp<int64_t>((transposed ? kTileBytes : kRunBytes) / row_bytes, 1, slab.rows);
    const auto need = [&](int64_t count) {
      return count * row_bytes +
             staging_elements(matrices, 0, std::min(slab.rows, count)) * slab.element_bytes;
    };
    while (rows > 1 && need(rows) > share_)
      rows /= 2;
    for (int64_t at = 0; at < slab.rows; at += rows)
      tiles.push_back({s, -1, at, std::min(slab.rows, at + rows)});
  }

  void read(const CheckpointTensor& tensor, int64_t offset_bytes, std::byte* to, int64_t bytes) {
    checkpoint_.files()[static_cast<size_t>(tensor.file)].read(tensor.info.begin + offset_bytes, to,
                                                               bytes);
    bytes_read_ += bytes;
  }

  void read(const RelayoutPart& part, int64_t offset_bytes, std::byte* to, int64_t bytes) {
    if (part.view == Mxfp4View::kStored) return read(*part.source, offset_bytes, to, bytes);
    const auto bytes_of = [this](const CheckpointTensor* tensor) {
      return [this, tensor](int64_t at, std::byte* data, int64_t size) {
        read(*tensor, at, data, size);
      };
    };
    read_mxfp4_view(part.view, bytes_of(part.source), bytes_of(part.scales), offset_bytes, to,
                    bytes);
  }

  void write(const RelayoutSlab& slab, int64_t offset_bytes, const std::byte* data, int64_t bytes) {
    sink_.write(plan_.tensors[slab.target].name, slab.offset_bytes + offset_bytes,
                {data, static_cast<size_t>(bytes)});
    bytes_written_ += bytes;
    if (options_.progress) options_.progress(bytes);
  }

  void write_literal(const RelayoutLiteral& literal) {
    const std::string& name = plan_.tensors[literal.target].name;
    if (sink_.is_kept(name)) return;
    sink_.write(name, 0, literal.bytes);
    bytes_written_ += static_cast<int64_t>(literal.bytes.size());
    if (options_.progress) options_.progress(static_cast<int64_t>(literal.bytes.size()));
  }

  void copy_run(const Tile& tile) {
    const RelayoutSlab& slab = plan_.slabs[tile.slab];
    const RelayoutPart& part = slab.parts[static_cast<size_t>(tile.part)];
    const int64_t bytes = tile.end - tile.begin;
    const BudgetedBuffer buffer = budget_.take(bytes);
    read(part, part.from.offset * slab.element_bytes + tile.begin, buffer.data(), bytes);
    const int64_t offset = (part.to.offset - part.to.slab_offset) * slab.element_bytes;
    write(slab, offset + tile.begin, buffer.data(), bytes);
  }

  void lay_out(const Tile& tile) {
    const RelayoutSlab& slab = plan_.slabs[tile.slab];
    std::vector<SlabMatrix> matrices;
    for (const RelayoutPart& part : slab.parts)
      matrices.push_back(slab_matrix(slab, part));
    const int64_t row_bytes = slab.cols * slab.element_bytes;
    const int64_t tile_bytes = (tile.end - tile.begin) * row_bytes;
    const int64_t staging = staging_elements(matrices, tile.begin, tile.end) * slab.element_bytes;
    const BudgetedBuffer buffer = budget_.take(tile_bytes + staging);
    std::byte* staged = buffer.data() + tile_bytes;
    const auto fetched = [&](size_t p, std::byte* to) {
      return fetch(slab, slab.parts[p], matrices[p], tile, buffer.data(), to);
    };
    if (are_interleaved(matrices)) {
      const TileCopy gate = fetched(0, staged);
      const TileCopy up = fetched(1, staged + staging / 2);
      copy_pair({gate.from, up.from}, {gate.to, up.to}, gate.rows, gate.cols, slab.element_bytes);
    } else {
      for (size_t p = 0; p < matrices.size(); ++p) {
        const TileCopy copy = fetched(p, staged);
        copy_matrix(copy.from, copy.to, copy.rows, copy.cols, slab.element_bytes);
      }
    }
    write(slab, tile.begin * row_bytes, buffer.data(), tile_bytes);
  }

  /// Reads what one matrix has in a tile; it is still to be copied there.
  TileCopy fetch(const RelayoutSlab& slab, const RelayoutPart& part, const SlabMatrix& m,
                 const Tile& tile, std::byte* target, std::byte* staging) {
    const auto [x0, x1] = rows_in(m, tile.begin, tile.end);
    if (x1 <= x0) return {};
    const int64_t size = slab.element_bytes;
    const ReadShape shape = read_shape(m, x1 - x0);
    const int64_t first = (m.from_offset + x0 * m.from_x) * size;
    const int64_t pitch = shape.at_once ? shape.pitch : shape.span;
    if (shape.at_once) {
      read(part, first, staging, shape.elements() * size);
    } else {
      for (int64_t r = 0; r < shape.rows; ++r) {
        read(part, first + r * shape.pitch * size, staging + r * shape.span * size,
             shape.span * size);
      }
    }
    const int64_t row = m.base_row + x0 * m.row_step - tile.begin;
    return {.from = {.data = staging,
                     .row_stride = m.same_rows() ? pitch : m.from_x,
                     .col_stride = m.same_rows() ? m.from_y : pitch},
            .to = {.data = target + (row * slab.cols + m.base_col) * size,
                   .row_stride = m.row_step * slab.cols,
                   .col_stride = m.to_y},
            .rows = x1 - x0,
            .cols = m.ny};
  }

  void check_equal(const RelayoutEqual& equal) {
    const auto bytes_of = [&](const CheckpointTensor& tensor) {
      std::vector<std::byte> bytes(static_cast<size_t>(tensor.info.num_bytes()));
      read(tensor, 0, bytes.data(), tensor.info.num_bytes());
      return bytes;
    };
    GANTRY_CHECK(bytes_of(*equal.first) == bytes_of(*equal.second), ErrorCode::kFormat,
                 "{} and {} differ (layer {}, expert {}): the target has one tensor for both",
                 equal.name, equal.other_name, equal.layer, equal.expert);
  }

  const Checkpoint& checkpoint_;
  const RelayoutPlan& plan_;
  TensorSink& sink_;
  const RelayoutOptions& options_;
  MemoryBudget budget_;
  const int64_t share_;  ///< of a thread
  std::atomic<int64_t> bytes_read_ = 0;
  std::atomic<int64_t> bytes_written_ = 0;
};

}  // namespace

RelayoutStats run_relayout(const Checkpoint& checkpoint, const RelayoutPlan& plan, TensorSink& sink,
                           const RelayoutOptions& options) {
  return RelayoutRun(checkpoint, plan, sink, options).run();
}

}  // namespace gantry
