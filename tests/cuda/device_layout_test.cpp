// Where weights and rows stand in GPU memory: the maps are one to one, and what the packer writes
// is what the kernels' decoders read.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <vector>

#include "kernels/cuda/device_matrix.h"
#include "kernels/cuda/emulated_block.h"
#include "kernels/cuda/pack_device.h"
#include "kernels/cuda/weight_fragments.h"
#include "tests/kernels/coded_case.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

TEST(MmaFragmentTest, EveryElementHasOnePlace) {
  std::set<std::pair<int, int>> a;
  std::set<std::pair<int, int>> b;
  std::set<std::pair<int, int>> c;
  for (int lane = 0; lane < 32; ++lane) {
    for (int e = 0; e < 8; ++e)
      a.emplace(mma_a_place(lane, e).row, mma_a_place(lane, e).col);
    for (int e = 0; e < 4; ++e) {
      b.emplace(mma_b_place(lane, e).row, mma_b_place(lane, e).col);
      c.emplace(mma_c_place(lane, e).row, mma_c_place(lane, e).col);
    }
  }
  EXPECT_EQ(a.size(), 16u * 16);
  EXPECT_EQ(b.size(), 16u * 8);
  EXPECT_EQ(c.size(), 16u * 8);
  EXPECT_EQ(*a.rbegin(), std::pair(15, 15));
  EXPECT_EQ(*b.rbegin(), std::pair(15, 7));
  EXPECT_EQ(*c.rbegin(), std::pair(15, 7));
}

TEST(DeviceRowsTest, EveryElementHasOnePlace) {
  std::set<int64_t> places;
  for (int64_t row = 0; row < 24; ++row) {
    for (int64_t k = 0; k < 128; ++k)
      places.insert(row_element(128, row, k));
  }
  EXPECT_EQ(places.size(), 24u * 128);
  EXPECT_EQ(*places.begin(), 0);
  EXPECT_EQ(*places.rbegin(), 24 * 128 - 1);
}

// Word `lane` of the two core matrices of 16 k is what the B operand wants of that lane.
TEST(DeviceRowsTest, CoreMatricesAreTheBOperand) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int e = 0; e < 4; ++e) {
      const FragmentPlace place = mma_b_place(lane, e);
      const int64_t word = e / 2 * 32 + lane;
      EXPECT_EQ(row_element(64, place.col, 16 + place.row),
                row_element(64, 0, 16) + word * 2 + e % 2);
    }
  }
}

/// W[row, k] as the decoders give it: fragments, zero points, scales, output scales.
std::vector<double> unpack_device(const DeviceMatrix& m, const std::byte* data) {
  std::vector<double> matrix(static_cast<size_t>(m.n * m.k), -1e30);
  const auto steps = chunk_steps(m.element);
  const auto decode = [&](const Bits128& chunk, int step, uint32_t(&a)[4]) {
    switch (m.element) {
      case DeviceElement::kBF16:
        return decode_fragment<DeviceElement::kBF16, EmulatedMachine>(chunk, step, a);
      case DeviceElement::kF16:
        return decode_fragment<DeviceElement::kF16, EmulatedMachine>(chunk, step, a);
      case DeviceElement::kE4M3:
        return decode_fragment<DeviceElement::kE4M3, EmulatedMachine>(chunk, step, a);
      case DeviceElement::kInt8:
        return decode_fragment<DeviceElement::kInt8, EmulatedMachine>(chunk, step, a);
      case DeviceElement::kInt4:
        return decode_fragment<DeviceElement::kInt4, EmulatedMachine>(chunk, step, a);
      case DeviceElement::kE2M1:
        return decode_fragment<DeviceElement::kE2M1, EmulatedMachine>(chunk, step, a);
    }
  };
  for (int64_t tile = 0; tile < m.num_tiles; ++tile) {
    for (int64_t k16 = 0; k16 < m.padded_k / 16; ++k16) {
      for (int lane = 0; lane < 32; ++lane) {
        const Bits128 chunk =
            EmulatedMachine::load_stream(data + m.chunk_offset(tile, k16 / steps, lane));
        uint32_t a[4] = {};
        decode(chunk, static_cast<int>(k16 % steps), a);
        GroupFactors factors;
        if (m.group > 0) factors = load_group(m, data, tile, k16 * 16 / m.group, lane);
        for (int e = 0; e < 8; ++e) {
          const FragmentPlace place = mma_a_place(lane, e);
          const int64_t row = m.row_at(tile, place.row);
          const int64_t k = k16 * 16 + place.col;
          const int half = place.row / 8;
          uint32_t word = a[e / 2];
          if (m.zero_points) {
            word = EmulatedMachine::sub_bf16x2(word, factors.zero[static_cast<size_t>(half)]);
          }
          const uint32_t bits = (word >> (16 * (e % 2))) & 0xffffu;
          const float code =
              m.element == DeviceElement::kF16 ? f16_bits_to_f32(bits) : bf16_bits_to_f32(bits);
          if (row < 0 || k >= m.k) {  // what meets rows of zeros must be a number
            EXPECT_FALSE(std::isnan(code));
            continue;
          }
          float output = 1.0F;
          if (m.output_scale) {
            std::memcpy(&output, data + m.output_scales + (tile * kTileRows + place.row) * 4, 4);
          }
          matrix[static_cast<size_t>(row * m.k + k)] =
              static_cast<double>(code) * factors.scale[static_cast<size_t>(half)] * output;
        }
      }
    }
  }
  return matrix;
}

std::vector<std::byte> pack(const PackedLayout& layout, const std::byte* panels) {
  const DeviceMatrix m = device_matrix(layout);
  std::vector<std::byte> device(static_cast<size_t>(m.bytes));
  pack_device_tiles(layout, m, panels, 0, m.num_tiles, device.data());
  return device;
}

TEST(PackDeviceTest, PlainMatricesComeBackAsTheyWere) {
  SeededRng rng;
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    for (const bool gated : {false, true}) {
      for (const int64_t k : {1, 40, 64, 129}) {
        const PackedLayout layout{dtype, gated, 2 * 37, k, {}};
        ByteBuffer panels(static_cast<size_t>(layout.bytes()));
        pack_matrix(layout, rng.normals(static_cast<size_t>(layout.n * k)).data(), panels.data());
        const std::vector<double> found =
            unpack_device(device_matrix(layout), pack(layout, panels.data()).data());
        const std::vector<float> expected = unpack_matrix(layout, panels.data());
        for (size_t i = 0; i < expected.size(); ++i) {
          const float wanted = dtype == DType::kF32 ? round_to_bf16(expected[i]) : expected[i];
          ASSERT_EQ(found[i], static_cast<double>(wanted)) << i << ", k " << k;
        }
      }
    }
  }
}

class PackCodedTest : public testing::TestWithParam<WeightElement> {};

TEST_P(PackCodedTest, EveryFormatDecodesToItsWeights) {
  SeededRng rng;
  for (const WeightFormat& format : formats_of(GetParam(), {16, 32, 128})) {
    for (const bool gated : {false, true}) {
      const PackedLayout layout{DType::kF32, gated, 2 * 21, 200, format};
      const bool integers =
          GetParam() == WeightElement::kInt4 || GetParam() == WeightElement::kInt8;
      if (format.zero_points && !integers) {
        expect_error([&] { (void)device_matrix(layout); }, ErrorCode::kUnsupported,
                     {"zero points"});
        continue;
      }
      const CodedCase c = random_coded(rng, layout);
      const DeviceMatrix m = device_matrix(c.layout);
      const std::vector<double> found = unpack_device(m, pack(c.layout, c.packed.data()).data());
      for (int64_t row = 0; row < layout.n; ++row) {
        for (int64_t k = 0; k < layout.k; ++k) {
          const double wanted =
              (c.code(row, k) - c.zero(row, k)) * c.scale(row, k) * c.output_scale(row);
          ASSERT_EQ(found[static_cast<size_t>(row * layout.k + k)], wanted)
              << to_string(format) << " row " << row << " k " << k << " seed " << rng.seed();
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Elements, PackCodedTest, testing::ValuesIn(all_elements()),
                         [](const auto& element) {
                           return format_name({.element = element.param});
                         });

TEST(PackDeviceTest, RefusesAnE4M3WeightThatIsNaN) {
  SeededRng rng;
  CodedCase c = random_coded(
      rng, {DType::kF32, false, 16, 64, {.element = WeightElement::kE4M3, .output_scale = true}});
  c.codes[70] = 0xff;
  ASSERT_TRUE(c.store());
  expect_error([&] { (void)pack(c.layout, c.packed.data()); }, ErrorCode::kUnsupported,
               {"row 1, column 6"});
}

TEST(PackDeviceTest, RefusesGroupsThatCutAnMmaStep) {
  const PackedLayout layout{
      DType::kF32, false, 16, 64, {WeightElement::kInt4, ScaleType::kF16, 8, false, false}};
  expect_error([&] { (void)device_matrix(layout); }, ErrorCode::kUnsupported, {"multiple of 16"});
}

TEST(DeviceSlotLayoutTest, SectionsAreAlignedAndDoNotOverlap) {
  const PackedLayout w13{DType::kBF16, true, 2 * 33, 70, {}};
  const PackedLayout w2{DType::kBF16, false, 70, 33, {}};
  const DeviceSlotLayout layout = device_slot_layout(w13, w2, /*bias=*/true);
  EXPECT_EQ(layout.w13.padded_k, 128);
  EXPECT_EQ(layout.w13.padded_outputs(), 64);
  EXPECT_EQ(layout.w2.padded_k, layout.w13.padded_outputs());
  EXPECT_GE(layout.w2_offset, layout.w13.bytes);
  EXPECT_GE(layout.b13_offset, layout.w2_offset + layout.w2.bytes);
  EXPECT_GE(layout.b2_offset, layout.b13_offset + w13.n * 4);
  EXPECT_GE(layout.stride_bytes, layout.b2_offset + w2.n * 4);
  for (const int64_t offset :
       {layout.w2_offset, layout.b13_offset, layout.b2_offset, layout.stride_bytes}) {
    EXPECT_EQ(offset % kDeviceAlignment, 0);
  }
}

}  // namespace
}  // namespace gantry::test
