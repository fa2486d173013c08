// What every bit of a packed coded matrix holds, worked out here from the position in memory: the
// opposite direction of pack_coded_rows, so that neither can share the other's mistakes.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <ostream>
#include <string>
#include <vector>

#include "tests/kernels/coded_case.h"

namespace gantry {

void PrintTo(const PackedLayout& layout, std::ostream* out) {
  *out << to_string(layout) << (layout.gated ? " gated " : " ") << layout.n << " x " << layout.k;
}

namespace test {
namespace {

int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/// Sections of one panel, added up from the docstring's picture.
struct Sections {
  int64_t groups = 0;
  int64_t zeros = 0;
  int64_t minimums = 0;
  int64_t supers = 0;
  int64_t super_scales = 0;
  int64_t super_minimums = 0;
  int64_t output_scales = 0;
  int64_t codes = 0;
  int64_t end = 0;

  explicit Sections(const PackedLayout& layout) {
    const WeightFormat& format = layout.format;
    const int64_t k = (layout.k + 31) / 32 * 32;
    if (format.group > 0) groups = (k + format.group - 1) / format.group;
    zeros = whole_lines(groups * 32 * size_of(format.scale));
    minimums = zeros + (format.zero_points ? whole_lines(groups * 32) : 0);
    super_scales = minimums + (format.minimums ? zeros : 0);
    if (format.super_group > 0) supers = (k + format.super_group - 1) / format.super_group;
    super_minimums = super_scales + supers * 64;
    output_scales = super_minimums + (format.minimums ? supers * 64 : 0);
    codes = output_scales + (format.output_scale ? 128 : 0);
    end = codes + (bits_of(format.element) == 4 ? k * 16 : k * 32);
  }
};

/// The row of W in a lane of a panel, or -1.
int64_t row_at(const PackedLayout& layout, int64_t panel, int64_t lane) {
  if (!layout.gated) return panel * 32 + lane < layout.n ? panel * 32 + lane : -1;
  const int64_t neuron = panel * 16 + lane % 16;
  if (neuron >= layout.n / 2) return -1;
  return lane < 16 ? neuron : layout.n / 2 + neuron;
}

struct CodePlace {
  int64_t lane;
  int64_t k;
};

/// Lane and k of the code at byte `offset` of a panel's codes, and at its upper half if `high`.
CodePlace code_place(WeightElement element, int64_t offset, bool high) {
  const int64_t half = offset / 64 % 2 * 16;
  const int64_t line = offset / 128;
  const int64_t b = offset % 64;
  switch (element) {
    case WeightElement::kE4M3:
    case WeightElement::kE5M2:  // 16-byte blocks of 4 lanes: halves of 8 bytes, pairs of k
      return {half + b / 16 * 4 + b / 2 % 4, line * 4 + b / 8 % 2 * 2 + b % 2};
    case WeightElement::kInt8:
      return {half + b / 4, line * 4 + b % 4};
    default:  // 16-bit words: two a lane, nibbles from the lowest up
      return {half + b / 4, line * 8 + (b % 2 * 2 + (high ? 1 : 0)) * 2 + b / 2 % 2};
  }
}

class CodedLayoutTest : public testing::TestWithParam<PackedLayout> {
 protected:
  const PackedLayout& layout = GetParam();
  SeededRng rng;
  testing::ScopedTrace trace{__FILE__, __LINE__, "seed " + std::to_string(rng.seed())};
  const Sections sections{layout};
  const CodedCase c = random_coded(rng, layout);

  /// What byte `at` of panel `panel` must be.
  [[nodiscard]] uint8_t expected_byte(int64_t panel, int64_t at) const {
    if (at >= sections.codes) return expected_codes(panel, at - sections.codes);
    const WeightFormat& format = layout.format;
    if (at >= sections.output_scales) {
      const int64_t row = row_at(layout, panel, (at - sections.output_scales) / 4);
      if (row < 0) return 0;
      return byte_of(c.output_scales[static_cast<size_t>(row)], ScaleType::kF32, at % 4);
    }
    if (at >= sections.super_scales) {
      const bool minimum = at >= sections.super_minimums;
      return expected_factor(
          panel, at - (minimum ? sections.super_minimums : sections.super_scales), ScaleType::kF16,
          c.supers(), minimum ? c.super_minimums : c.super_scales);
    }
    if (at >= sections.minimums) {
      return expected_factor(panel, at - sections.minimums, format.scale, c.groups(), c.minimums);
    }
    const bool zero = at >= sections.zeros;
    const int64_t size = zero ? 1 : size_of(format.scale);
    const int64_t index = (zero ? at - sections.zeros : at) / size;
    const int64_t row = row_at(layout, panel, index % 32);
    if (row < 0 || index / 32 >= c.groups()) return 0;
    const auto group = static_cast<size_t>(row * c.groups() + index / 32);
    if (zero) return static_cast<uint8_t>(c.zeros[group]);
    return byte_of(c.scales[group], format.scale, at % size);
  }

 private:
  /// Byte `at` of a section [count, 32] of factors that a matrix has as [n, count].
  [[nodiscard]] uint8_t expected_factor(int64_t panel, int64_t at, ScaleType type, int64_t count,
                                        const std::vector<float>& factors) const {
    const int64_t index = at / size_of(type);
    const int64_t row = row_at(layout, panel, index % 32);
    if (row < 0 || index / 32 >= count) return 0;
    return byte_of(factors[static_cast<size_t>(row * count + index / 32)], type,
                   at % size_of(type));
  }
  [[nodiscard]] uint8_t expected_codes(int64_t panel, int64_t offset) const {
    const WeightElement element = layout.format.element;
    if (bits_of(element) == 8) return code_of(panel, code_place(element, offset, false));
    return static_cast<uint8_t>(code_of(panel, code_place(element, offset, false)) |
                                code_of(panel, code_place(element, offset, true)) << 4);
  }
  [[nodiscard]] uint8_t code_of(int64_t panel, CodePlace place) const {
    const int64_t row = row_at(layout, panel, place.lane);
    if (row < 0 || place.k >= layout.k) return 0;
    return c.codes[static_cast<size_t>(row * layout.k + place.k)];
  }
  /// Byte `index` of a scale as it is stored; scales here are normal in their type.
  static uint8_t byte_of(float scale, ScaleType type, int64_t index) {
    const auto bits = std::bit_cast<uint32_t>(scale);
    const uint32_t exponent = bits >> 23;
    uint32_t stored = bits;
    if (type == ScaleType::kBF16) stored = bits >> 16;
    if (type == ScaleType::kF16) stored = (exponent - 112) << 10 | (bits >> 13 & 0x3ffu);
    if (type == ScaleType::kE8M0) stored = exponent;
    if (type == ScaleType::kE4M3) stored = (exponent - 120) << 3 | (bits >> 20 & 7u);
    if (type == ScaleType::kInt8) stored = static_cast<uint32_t>(static_cast<int32_t>(scale));
    return static_cast<uint8_t>(stored >> (8 * index));
  }
};

TEST_P(CodedLayoutTest, EveryByteHoldsWhatTheFormulaSaysAndPaddingIsZero) {
  ASSERT_EQ(layout.bytes(), layout.num_panels() * sections.end);
  for (int64_t panel = 0; panel < layout.num_panels(); ++panel) {
    for (int64_t at = 0; at < sections.end; ++at) {
      ASSERT_EQ(static_cast<int>(c.packed.data()[panel * sections.end + at]),
                static_cast<int>(expected_byte(panel, at)))
          << "panel " << panel << ", byte " << at << ", codes from " << sections.codes;
    }
  }
}

TEST_P(CodedLayoutTest, SectionsStandWhereTheFormulaPutsThem) {
  const CodedPanel panel = layout.coded_panel();
  EXPECT_EQ(panel.format, layout.format);
  EXPECT_EQ(panel.num_groups, sections.groups);
  EXPECT_EQ(panel.scales, 0);
  EXPECT_EQ(panel.scale_bytes, 32 * size_of(layout.format.scale));
  EXPECT_EQ(panel.zeros, sections.zeros);
  EXPECT_EQ(panel.minimums, sections.minimums);
  EXPECT_EQ(panel.num_supers, sections.supers);
  EXPECT_EQ(panel.super_scales, sections.super_scales);
  EXPECT_EQ(panel.super_minimums, sections.super_minimums);
  EXPECT_EQ(panel.output_scales, sections.output_scales);
  EXPECT_EQ(panel.codes, sections.codes);
  EXPECT_EQ(panel.codes % 64, 0);
  EXPECT_EQ(panel.bytes, sections.end);
  EXPECT_EQ(panel.bytes % 64, 0);
}

TEST_P(CodedLayoutTest, UnpackGivesTheFormulaInF32) {
  std::vector<float> expected;
  for (int64_t row = 0; row < layout.n; ++row) {
    for (int64_t k = 0; k < layout.k; ++k)
      expected.push_back(c.decoded(row, k) * static_cast<float>(c.output_scale(row)));
  }
  EXPECT_EQ(unpack_matrix(layout, c.packed.data()), expected);
}

TEST_P(CodedLayoutTest, CodesAreFoundAgain) {
  const CodedPanel panel = layout.coded_panel();
  for (int64_t row = 0; row < layout.n; ++row) {
    const PackedLayout::Place place = layout.place_of(row);
    const std::byte* data = c.packed.data() + place.panel * panel.bytes;
    for (int64_t k = 0; k < layout.k; ++k) {
      ASSERT_EQ(code_at(panel, data, place.lane, k),
                c.codes[static_cast<size_t>(row * layout.k + k)])
          << row << ", " << k;
    }
  }
}

TEST_P(CodedLayoutTest, AnyCutIntoRowsOfAWiderMatrixGivesTheSameBytes) {
  const int64_t stride = layout.k + 5;
  std::vector<uint8_t> wide(static_cast<size_t>(layout.n * stride), 0xee);
  const bool nibbles = bits_of(layout.format.element) == 4;
  for (int64_t row = 0; row < layout.n; ++row) {
    for (int64_t k = 0; k < layout.k; ++k) {  // of 4-bit codes the upper half does not count
      const uint8_t code = c.codes[static_cast<size_t>(row * layout.k + k)];
      wide[static_cast<size_t>(row * stride + k)] =
          static_cast<uint8_t>(nibbles ? code | rng.integer(0, 15) << 4 : code);
    }
  }
  for (int attempt = 0; attempt < 4; ++attempt) {
    std::vector<int64_t> cuts = {0, layout.n};
    for (int i = 0; i < 3; ++i)
      cuts.push_back(rng.integer(0, layout.n));
    std::sort(cuts.begin(), cuts.end());
    ByteBuffer packed(c.packed.size());
    for (size_t i = cuts.size() - 1; i-- > 0;) {
      const int64_t row = cuts[i];
      const CodedBlock part{
          .codes = wide.data() + row * stride,
          .rows = cuts[i + 1] - row,
          .cols = layout.k,
          .stride = stride,
          .scales = c.scales.data() + row * c.groups(),
          .zeros = c.zeros.empty() ? nullptr : c.zeros.data() + row * c.groups(),
          .output_scales = c.output_scales.empty() ? nullptr : c.output_scales.data() + row,
          .minimums = c.minimums.data() + (c.minimums.empty() ? 0 : row * c.groups()),
          .super_scales = c.super_scales.data() + row * c.supers(),
          .super_minimums =
              c.super_minimums.data() + (c.super_minimums.empty() ? 0 : row * c.supers())};
      EXPECT_TRUE(pack_coded_rows(layout, part, row, packed.data()));
    }
    ASSERT_EQ(std::memcmp(packed.data(), c.packed.data(), packed.size()), 0)
        << "attempt " << attempt;
  }
}

TEST_P(CodedLayoutTest, OwnedBytesLeavePaddingOut) {
  const WeightFormat& format = layout.format;
  const int64_t row_codes = bits_of(format.element) == 4 ? (layout.k + 1) / 2 : layout.k;
  const int64_t pair = format.minimums ? 2 : 1;
  const int64_t row_scales =
      c.groups() * (pair * size_of(format.scale) + (format.zero_points ? 1 : 0)) +
      c.supers() * pair * 2;
  const int64_t row_bytes = row_codes + row_scales + (format.output_scale ? 4 : 0);
  EXPECT_EQ(layout.owned_bytes(), layout.n * row_bytes);
  EXPECT_LE(layout.owned_bytes(), layout.bytes());
}

std::vector<PackedLayout> layouts() {
  std::vector<PackedLayout> all;
  struct Shape {
    bool gated;
    int64_t n;
    int64_t k;
  };
  const std::vector<Shape> shapes = {{false, 1, 1}, {false, 33, 97}, {false, 70, 33},
                                     {true, 2, 7},  {true, 34, 130}, {true, 66, 40}};
  // Groups of 24 and 40 fall into any place of the 32 columns of a padded step.
  for (const WeightElement element : every_element()) {
    for (const WeightFormat& format : every_format_of(element, {8, 24, 32, 128})) {
      for (const Shape& s : shapes)
        all.push_back({DType::kF32, s.gated, s.n, s.k, format});
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Formats, CodedLayoutTest, testing::ValuesIn(layouts()),
                         [](const auto& tested) {
                           const PackedLayout& l = tested.param;
                           std::string name = format_name(l.format);
                           name += l.gated ? "_gated_" : "_";
                           return name + std::to_string(l.n) + "x" + std::to_string(l.k);
                         });

TEST(CodedLayoutEmptyTest, AMatrixWithoutRowsHasNoPanels) {
  const PackedLayout layout{
      .n = 0, .k = 64, .format = {WeightElement::kE4M3, ScaleType::kF32, 32, false, true}};
  EXPECT_EQ(layout.num_panels(), 0);
  EXPECT_EQ(layout.bytes(), 0);
  EXPECT_TRUE(pack_coded_rows(layout, {.cols = 64, .stride = 64}, 0, nullptr));
}

}  // namespace
}  // namespace test
}  // namespace gantry
