// Where every element of a packed matrix stands, worked out here from the position in memory: the
// opposite direction of PackedLayout, so that neither can share the other's mistakes.

#include "kernels/grouped_gemm/packed_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/float_convert.h"
#include "kernels/base/parallel_for.h"
#include "tests/support/seeded_rng.h"

namespace gantry {

void PrintTo(const PackedLayout& layout, std::ostream* out) {
  *out << to_string(layout.dtype) << (layout.gated ? " gated " : " ") << layout.n << " x "
       << layout.k;
}

namespace test {
namespace {

using Bytes = std::vector<std::byte>;

/// Row and column of W at element `index` of the packed matrix; nothing where it is padding.
std::optional<std::pair<int64_t, int64_t>> element_at(const PackedLayout& layout, int64_t index) {
  const int64_t lines = (layout.k + 31) / 32 * 32;  // one line of 32 lanes for every k
  const int64_t panel = index / (lines * 32);
  const int64_t rest = index % (lines * 32);
  const bool pairs = layout.dtype == DType::kBF16;
  const int64_t lane = pairs ? rest % 64 / 2 : rest % 32;
  const int64_t column = pairs ? rest / 64 * 2 + rest % 2 : rest / 32;
  int64_t row = panel * 32 + lane;
  bool exists = row < layout.n;
  if (layout.gated) {
    const int64_t neuron = panel * 16 + lane % 16;
    exists = neuron < layout.n / 2;
    row = lane < 16 ? neuron : layout.n / 2 + neuron;
  }
  if (!exists || column >= layout.k) return std::nullopt;
  return std::pair{row, column};
}

class PackedLayoutTest : public testing::TestWithParam<PackedLayout> {
 protected:
  [[nodiscard]] int64_t element() const { return size_of(layout.dtype); }

  /// W row by row, with a value of its own (as bits) for every element.
  [[nodiscard]] Bytes codes() const {
    Bytes bytes(static_cast<size_t>(layout.n * layout.k * element()));
    for (int64_t i = 0; i < layout.n * layout.k; ++i)
      write(bytes, i, code(i));
    return bytes;
  }
  static uint32_t code(int64_t i) { return static_cast<uint32_t>(i) + 1; }
  void write(Bytes& bytes, int64_t index, uint32_t bits) const {
    std::memcpy(bytes.data() + index * element(), &bits, static_cast<size_t>(element()));
  }
  [[nodiscard]] uint32_t read(const std::byte* bytes, int64_t index) const {
    uint32_t bits = 0;
    std::memcpy(&bits, bytes + index * element(), static_cast<size_t>(element()));
    return bits;
  }

  /// `codes()` packed in one piece.
  [[nodiscard]] Bytes packed_codes() const {
    Bytes packed(static_cast<size_t>(layout.bytes()));
    const Bytes source = codes();
    pack_block(layout, {source.data(), layout.n, layout.k, layout.k, 1}, 0, 0, packed.data());
    return packed;
  }

  const PackedLayout& layout = GetParam();
  SeededRng rng;
  testing::ScopedTrace trace{__FILE__, __LINE__, "seed " + std::to_string(rng.seed())};
};

TEST_P(PackedLayoutTest, EveryPositionHoldsTheElementOfTheFormulaAndPaddingIsZero) {
  const Bytes packed = packed_codes();
  int64_t found = 0;
  for (int64_t i = 0; i < layout.bytes() / element(); ++i) {
    const auto place = element_at(layout, i);
    found += place ? 1 : 0;
    ASSERT_EQ(read(packed.data(), i), place ? code(place->first * layout.k + place->second) : 0U)
        << "position " << i;
  }
  EXPECT_EQ(found, layout.n * layout.k);
}

TEST_P(PackedLayoutTest, OffsetsAreThoseOfTheFormula) {
  for (int64_t i = 0; i < layout.bytes() / element(); ++i) {
    const auto place = element_at(layout, i);
    if (!place) continue;
    ASSERT_EQ(layout.offset_bytes(place->first, place->second), i * element());
  }
}

TEST_P(PackedLayoutTest, SizesAreWholePanelsOf32LanesAndPaddedColumns) {
  const int64_t outputs = layout.gated ? layout.n / 2 : layout.n;
  const int64_t width = layout.gated ? 16 : 32;
  EXPECT_EQ(layout.num_outputs(), outputs);
  EXPECT_EQ(layout.num_panels(), (outputs + width - 1) / width);
  EXPECT_EQ(layout.padded_k() % 32, 0);
  EXPECT_GE(layout.padded_k(), layout.k);
  EXPECT_LT(layout.padded_k(), layout.k + 32);
  EXPECT_EQ(layout.panel_bytes(), 32 * layout.padded_k() * element());
  EXPECT_EQ(layout.bytes(), layout.num_panels() * layout.panel_bytes());
}

TEST_P(PackedLayoutTest, UnpackGivesBackWhatPackRounded) {
  std::vector<float> matrix = rng.normals(static_cast<size_t>(layout.n * layout.k));
  Bytes packed(static_cast<size_t>(layout.bytes()));
  pack_matrix(layout, matrix.data(), packed.data());
  for (float& value : matrix) {
    if (layout.dtype == DType::kBF16) value = round_to_bf16(value);
    if (layout.dtype == DType::kF16) value = f16_to_f32(f32_to_f16(value));
  }
  EXPECT_EQ(unpack_matrix(layout, packed.data()), matrix);
}

TEST_P(PackedLayoutTest, PaddingIsNotTouched) {
  const Bytes source = codes();
  Bytes packed(static_cast<size_t>(layout.bytes()), std::byte{0xab});
  pack_block(layout, {source.data(), layout.n, layout.k, layout.k, 1}, 0, 0, packed.data());
  const uint32_t untouched = element() == 2 ? 0xababU : 0xababababU;
  for (int64_t i = 0; i < layout.bytes() / element(); ++i) {
    if (element_at(layout, i)) continue;
    ASSERT_EQ(read(packed.data(), i), untouched) << "position " << i;
  }
}

TEST_P(PackedLayoutTest, ATransposedSourcePacksToTheSameBytes) {
  Bytes transposed(static_cast<size_t>(layout.n * layout.k * element()));
  for (int64_t r = 0; r < layout.n; ++r) {
    for (int64_t c = 0; c < layout.k; ++c)
      write(transposed, c * layout.n + r, code(r * layout.k + c));
  }
  Bytes packed(static_cast<size_t>(layout.bytes()));
  pack_block(layout, {transposed.data(), layout.n, layout.k, 1, layout.n}, 0, 0, packed.data());
  EXPECT_EQ(packed, packed_codes());
}

TEST_P(PackedLayoutTest, AnyCutIntoBlocksGivesTheSameBytes) {
  const Bytes source = codes();
  const Bytes whole = packed_codes();
  const auto cuts = [&](int64_t size) {
    std::vector<int64_t> at = {0, size};
    for (int i = 0; i < 4; ++i)
      at.push_back(rng.integer(0, size));
    std::sort(at.begin(), at.end());
    return at;
  };
  for (int attempt = 0; attempt < 20; ++attempt) {
    const std::vector<int64_t> rows = cuts(layout.n);
    const std::vector<int64_t> cols = cuts(layout.k);
    Bytes packed(whole.size());
    for (size_t r = 0; r + 1 < rows.size(); ++r) {
      for (size_t c = 0; c + 1 < cols.size(); ++c) {
        const StridedBlock block{source.data() + (rows[r] * layout.k + cols[c]) * element(),
                                 rows[r + 1] - rows[r], cols[c + 1] - cols[c], layout.k, 1};
        pack_block(layout, block, rows[r], cols[c], packed.data());
      }
    }
    ASSERT_EQ(packed, whole) << "attempt " << attempt;
  }
}

TEST_P(PackedLayoutTest, SingleColumnsPackToTheSameBytesAndAtOnce) {
  // Every other bf16 begins in the middle of a pair that another thread writes.
  const Bytes source = codes();
  Bytes packed(static_cast<size_t>(layout.bytes()));
  parallel_for({.count = 4, .executor = {}}, layout.k, [&](int64_t c) {
    const StridedBlock column{source.data() + c * element(), layout.n, 1, layout.k, 1};
    pack_block(layout, column, 0, c, packed.data());
  });
  EXPECT_EQ(packed, packed_codes());
}

TEST_P(PackedLayoutTest, RowsOfAWiderMatrixAtAnUnalignedAddressPackToTheSameBytes) {
  const int64_t stride = layout.k + 3;
  Bytes wide(static_cast<size_t>(layout.n * stride * element() + 1), std::byte{0xee});
  for (int64_t r = 0; r < layout.n; ++r) {
    for (int64_t c = 0; c < layout.k; ++c) {
      const uint32_t bits = code(r * layout.k + c);
      std::memcpy(wide.data() + 1 + (r * stride + c) * element(), &bits,
                  static_cast<size_t>(element()));
    }
  }
  Bytes packed(static_cast<size_t>(layout.bytes()));
  pack_block(layout, {wide.data() + 1, layout.n, layout.k, stride, 1}, 0, 0, packed.data());
  EXPECT_EQ(packed, packed_codes());
}

TEST_P(PackedLayoutTest, EveryBitOfANanIsKept) {
  Bytes source(static_cast<size_t>(layout.n * layout.k * element()));
  for (int64_t i = 0; i < layout.n * layout.k; ++i) {
    const auto payload = static_cast<uint32_t>(rng.integer(1, 0x7f));
    const uint32_t sign = i % 2 == 0 ? 0U : 1U;
    write(source, i,
          element() == 4                 ? sign << 31 | 0x7f800000U | payload
          : layout.dtype == DType::kBF16 ? sign << 15 | 0x7f80U | payload
                                         : sign << 15 | 0x7c00U | payload);
  }
  Bytes packed(static_cast<size_t>(layout.bytes()));
  pack_block(layout, {source.data(), layout.n, layout.k, layout.k, 1}, 0, 0, packed.data());
  for (int64_t r = 0; r < layout.n; ++r) {
    for (int64_t c = 0; c < layout.k; ++c) {
      ASSERT_EQ(read(packed.data() + layout.offset_bytes(r, c), 0),
                read(source.data(), r * layout.k + c));
    }
  }
}

TEST_P(PackedLayoutTest, ABlockWithoutRowsOrColumnsWritesNothing) {
  Bytes packed(static_cast<size_t>(layout.bytes()));
  const Bytes zeros = packed;
  pack_block(layout, {nullptr, 0, layout.k, layout.k, 1}, 0, 0, packed.data());
  pack_block(layout, {packed.data(), layout.n, 0, layout.k, 1}, 0, 0, packed.data());
  EXPECT_EQ(packed, zeros);
}

std::vector<PackedLayout> layouts() {
  std::vector<PackedLayout> all;
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 1}, {31, 33}, {32, 32}, {33, 31}, {70, 97}, {64, 1}, {5, 200}}) {
      all.push_back({dtype, false, n, k});
    }
    for (const auto& [half, k] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 1}, {7, 33}, {16, 32}, {17, 31}, {20, 97}, {33, 130}}) {
      all.push_back({dtype, true, 2 * half, k});
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Layouts, PackedLayoutTest, testing::ValuesIn(layouts()),
                         [](const auto& tested) {
                           const PackedLayout& l = tested.param;
                           return std::string(to_string(l.dtype)) + (l.gated ? "_gated_" : "_") +
                                  std::to_string(l.n) + "x" + std::to_string(l.k);
                         });

TEST(PackedLayoutGatedTest, APanelHolds16GateRowsAndTheMatching16UpRows) {
  const PackedLayout layout{.dtype = DType::kF32, .gated = true, .n = 80, .k = 4};
  for (int64_t neuron = 0; neuron < 40; ++neuron) {
    const PackedLayout::Place gate = layout.place_of(neuron);
    const PackedLayout::Place up = layout.place_of(40 + neuron);
    EXPECT_EQ(gate.panel, neuron / 16);
    EXPECT_EQ(gate.lane, neuron % 16);
    EXPECT_EQ(up.panel, gate.panel);
    EXPECT_EQ(up.lane, gate.lane + 16);
  }
}

TEST(PackedLayoutEmptyTest, AMatrixWithoutRowsHasNoPanels) {
  for (const bool gated : {false, true}) {
    const PackedLayout layout{.dtype = DType::kBF16, .gated = gated, .n = 0, .k = 40};
    EXPECT_EQ(layout.num_panels(), 0);
    EXPECT_EQ(layout.bytes(), 0);
    EXPECT_TRUE(unpack_matrix(layout, nullptr).empty());
  }
}

}  // namespace
}  // namespace test
}  // namespace gantry
