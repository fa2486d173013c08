// e4m3 x e4m3: the device's quantization against the host's, bit for bit; products against sums in
// double.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cuda/device_kernels.h"
#include "kernels/cuda/float_bits.h"
#include "kernels/cuda/pack_device.h"
#include "kernels/quant/quantize_rows.h"
#include "kernels/quant/round_formats.h"
#include "tests/kernels/coded_case.h"
#include "tests/support/device_array.h"
#include "tests/support/tolerance.h"

namespace gantry::test {
namespace {

TEST(FloatBitsTest, RoundsToE4M3AsTheHostDoes) {
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 65521) {
    const float value = bits_to_f32(static_cast<uint32_t>(bits));
    const float found = e4m3_bits_to_f32(f32_to_e4m3_bits(value));
    const float wanted = round_to_e4m3(value);
    ASSERT_TRUE(found == wanted || (std::isnan(found) && std::isnan(wanted))) << value;
  }
  for (uint32_t code = 0; code < 256; ++code) {  // codes and the ties between them
    const float value = e4m3_bits_to_f32(code);
    if (std::isnan(value)) continue;
    ASSERT_EQ(f32_to_e4m3_bits(value), code);
    const float next = e4m3_bits_to_f32(code + 1);
    if (std::isnan(next) || code == 255 || code == 127) continue;
    const float tie = (value + next) / 2;
    ASSERT_EQ(e4m3_bits_to_f32(f32_to_e4m3_bits(tie)), round_to_e4m3(tie)) << tie;
  }
}

std::shared_ptr<Device> hopper(const std::shared_ptr<Device>& device) {
  if (device->attributes().name.starts_with("emulated")) return open_emulated_device(1, 90);
  return device;
}

class Rows8Test : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    device = hopper(device);
    if (device->kernels().gemm_rows8 == nullptr) GTEST_SKIP() << "no GPU of sm_90a";
  }
};

struct RowsCase {
  const char* name;
  RowFormat format;
  bool as_bf16;
};

constexpr float kStaticScale = 0.037F;

class QuantizeRowsTest : public DeviceTest, public testing::WithParamInterface<RowsCase> {
 protected:
  struct Codes {
    std::vector<float> codes;  // [rows, padded_k]
    std::vector<float> scales;
  };

  [[nodiscard]] static QuantizeExpertRows kernel_for(int64_t k, int64_t padded_k, int64_t rows) {
    QuantizeExpertRows kernel{};
    kernel.top_k = 1;
    kernel.k = k;
    kernel.padded_k = padded_k;
    kernel.max_rows = rows;
    kernel.kind = GetParam().format.kind;
    kernel.powers_of_two = GetParam().format.power_of_two_scales;
    return kernel;
  }

  Codes quantize(QuantizeExpertRows kernel, int32_t rows) {
    const auto count = static_cast<size_t>(kernel.max_rows * kernel.padded_k);
    const DeviceArray<uint8_t> bytes(device, count);
    const DeviceArray<uint16_t> halves(device, count);
    const DeviceArray<float> scales(device,
                                    static_cast<size_t>(kernel.num_groups() * kernel.max_rows));
    const DeviceArray<int32_t> totals(device, std::vector<int32_t>{rows, 0});
    // Three slots; every expert is in the second one.
    const DeviceArray<float> static_scales(device, std::vector<float>{NAN, kStaticScale, NAN});
    const DeviceArray<int32_t> ids(device, std::vector<int32_t>(16, 2));
    const DeviceArray<int32_t> slots(device, std::vector<int32_t>{-1, 0, 1});
    (GetParam().as_bf16 ? reinterpret_cast<void*&>(kernel.codes16)
                        : reinterpret_cast<void*&>(kernel.codes)) =
        GetParam().as_bf16 ? static_cast<void*>(halves.data()) : bytes.data();
    kernel.scales = scales.data();
    kernel.totals = totals.data();
    kernel.static_scales = static_scales.data();
    kernel.topk_ids = ids.data();
    kernel.expert_to_slot = slots.data();
    const OwnedStream stream(device);
    device->kernels().quantize(kernel, device->attributes(), stream.handle());
    device->synchronize(stream.handle());
    Codes found{std::vector<float>(count), scales.read()};
    const std::vector<uint8_t> read8 = bytes.read();
    const std::vector<uint16_t> read16 = halves.read();
    for (int64_t row = 0; row < kernel.max_rows; ++row) {
      for (int64_t k = 0; k < kernel.padded_k; ++k) {
        const auto at8 = static_cast<size_t>(row8_element(kernel.padded_k, row, k));
        const auto at16 = static_cast<size_t>(row_element(kernel.padded_k, row, k));
        found.codes[static_cast<size_t>(row * kernel.padded_k + k)] =
            GetParam().as_bf16 ? bf16_bits_to_f32(read16[at16]) : e4m3_bits_to_f32(read8[at8]);
      }
    }
    return found;
  }

  /// Codes times scales are what quantize_row leaves, bit for bit; zeros from k on.
  static void expect_row(const Codes& found, const QuantizeExpertRows& kernel, int64_t row,
                         std::vector<float> values) {
    quantize_row(GetParam().format, {values, 0}, {}, kStaticScale);
    for (int64_t k = 0; k < kernel.padded_k; ++k) {
      const float code = found.codes[static_cast<size_t>(row * kernel.padded_k + k)];
      if (k >= kernel.k) {
        ASSERT_TRUE(code == 0.0F || std::isnan(code)) << "padding " << k;
        continue;
      }
      const int64_t group = kernel.num_groups() == 1 ? 0 : k / 128;
      const float scale = found.scales[static_cast<size_t>(group * kernel.max_rows + row)];
      const float wanted = values[static_cast<size_t>(k)];
      const float value = code * scale;
      ASSERT_TRUE(value == wanted || (std::isnan(value) && std::isnan(wanted)))
          << "row " << row << " column " << k << ": " << value << ", expected " << wanted;
    }
  }
};

TEST_P(QuantizeRowsTest, QuantizesGatheredRowsAsTheHostDoes) {
  constexpr int64_t kTokens = 5;
  constexpr int64_t kK = 300;
  std::vector<float> x = rng.normals(kTokens * kK, 3.0F);
  for (int64_t k = 0; k < kK; ++k) {
    x[static_cast<size_t>(2 * kK + k)] = 0.0F;
    x[static_cast<size_t>(3 * kK + k)] *= 1e-14F;
  }
  x[4 * kK + 7] = std::numeric_limits<float>::infinity();
  x[4 * kK + 150] = std::numeric_limits<float>::quiet_NaN();
  // Rows of choices 2 t + 1 and 2 t, backwards, then padding.
  const std::vector<int32_t> row_choice = {9, 7, 5, 3, 1, 0, -1, -1};
  const DeviceArray<float> device_x(device, x);
  const DeviceArray<int32_t> choices(device, row_choice);
  QuantizeExpertRows kernel = kernel_for(kK, 320, 16);
  kernel.x = device_x.data();
  kernel.row_choice = choices.data();
  kernel.top_k = 2;
  const Codes found = quantize(kernel, 8);
  for (int64_t row = 0; row < 6; ++row) {
    const auto* begin = x.data() + row_choice[static_cast<size_t>(row)] / 2 * kK;
    expect_row(found, kernel, row, {begin, begin + kK});
  }
  expect_row(found, kernel, 7, std::vector<float>(kK, 0.0F));
  EXPECT_TRUE(std::isnan(found.scales[8])) << "row 8 is past the batch's rows";
}

TEST_P(QuantizeRowsTest, QuantizesRowsBetweenTheGemms) {
  constexpr int64_t kK = 200;
  constexpr int64_t kPadded = 256;
  std::vector<uint16_t> rows(8 * kPadded, 0);
  std::vector<std::vector<float>> plain(8, std::vector<float>(kK));
  for (int64_t r = 0; r < 8; ++r) {
    for (int64_t k = 0; k < kK; ++k) {
      const uint32_t bits = f32_to_bf16_bits(rng.normal());
      rows[static_cast<size_t>(row_element(kPadded, r, k))] = static_cast<uint16_t>(bits);
      plain[static_cast<size_t>(r)][static_cast<size_t>(k)] = bf16_bits_to_f32(bits);
    }
  }
  const DeviceArray<uint16_t> device_rows(device, rows);
  const DeviceArray<int32_t> choices(device, std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7});
  QuantizeExpertRows kernel = kernel_for(kK, kPadded, 8);
  kernel.rows = device_rows.data();
  kernel.row_choice = choices.data();
  const Codes found = quantize(kernel, 8);
  for (int64_t r = 0; r < 8; ++r)
    expect_row(found, kernel, r, plain[static_cast<size_t>(r)]);
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, QuantizeRowsTest,
    testing::Values(RowsCase{"Group", {RowQuantization::kFp8Group, 128}, false},
                    RowsCase{"GroupAsBf16", {RowQuantization::kFp8Group, 128}, true},
                    RowsCase{"PowersOfTwo", {RowQuantization::kFp8Group, 128, true}, false},
                    RowsCase{"Token", {RowQuantization::kFp8Token}, false},
                    RowsCase{"TokenAsBf16", {RowQuantization::kFp8Token}, true},
                    RowsCase{"Static", {RowQuantization::kFp8Static}, false},
                    RowsCase{"StaticAsBf16", {RowQuantization::kFp8Static}, true},
                    RowsCase{"Int8Token", {RowQuantization::kInt8Token}, true},
                    RowsCase{"Int8Static", {RowQuantization::kInt8Static}, true}),
    [](const auto& tested) { return std::string(tested.param.name); });

struct ProductCase {
  const char* name;
  WeightFormat format;
  bool row_groups;
  int columns_index = kWgmmaGemm;  ///< of kGemmColumns: below, rows are codes in bf16
};

class Rows8ProductTest : public Rows8Test, public testing::WithParamInterface<ProductCase> {};

TEST_P(Rows8ProductTest, MultipliesCodesAndScales) {
  for (const auto& [n, k, counts] :
       {std::tuple<int64_t, int64_t, std::vector<int32_t>>{72, 328, {3, 70, 0, 128}},
        std::tuple<int64_t, int64_t, std::vector<int32_t>>{16, 1000, {9}},
        std::tuple<int64_t, int64_t, std::vector<int32_t>>{33, 40, {1}}}) {
    const PackedLayout layout{DType::kF32, false, n, k, GetParam().format};
    std::vector<std::byte> slots;
    std::vector<std::vector<float>> weights;
    std::vector<TokenTile> tiles;
    int32_t rows = 0;
    DeviceMatrix m;
    for (size_t e = 0; e < counts.size(); ++e) {
      const CodedCase c = random_coded(rng, layout);
      m = device_matrix(c.layout);
      const auto begin = static_cast<ptrdiff_t>(slots.size());
      slots.resize(slots.size() + static_cast<size_t>(m.bytes));
      pack_device_tiles(c.layout, m, c.packed.data(), 0, m.num_tiles, slots.data() + begin);
      weights.push_back(unpack_matrix(c.layout, c.packed.data()));
      const int32_t most = 8 * kGemmColumns[static_cast<size_t>(GetParam().columns_index)];
      for (int32_t first = 0; first < counts[e]; first += most)
        tiles.push_back({static_cast<int32_t>(e), rows + first, std::min(most, counts[e] - first)});
      rows += static_cast<int32_t>(align_to(counts[e], 8));
    }
    const int index = GetParam().columns_index;
    const bool rows8 = index == kWgmmaGemm;
    ASSERT_TRUE(takes_rows8(m) || !rows8);
    const int64_t groups = GetParam().row_groups ? ceil_div(m.padded_k, int64_t{128}) : 1;
    std::vector<uint8_t> codes(static_cast<size_t>(rows * m.padded_k), 0);
    std::vector<uint16_t> codes16(codes.size(), 0);
    std::vector<float> scales(static_cast<size_t>(groups * rows));
    for (float& scale : scales)
      scale = 0.01F + static_cast<float>(rng.integer(0, 100)) * 0.003F;
    std::vector<double> expected(static_cast<size_t>(rows * n), NAN);
    double largest_x = 0.0;
    double largest_w = 0.0;
    for (const TokenTile& tile : tiles) {
      const std::vector<float>& w = weights[static_cast<size_t>(tile.slot)];
      largest_w = std::max(largest_w, largest_magnitude(w));
      for (int32_t r = tile.first_row; r < tile.first_row + tile.num_rows; ++r) {
        std::vector<double> x(static_cast<size_t>(k));
        for (int64_t i = 0; i < k; ++i) {
          const auto code = static_cast<uint8_t>(f32_to_e4m3_bits(rng.normal(0.0F, 50.0F)));
          codes[static_cast<size_t>(row8_element(m.padded_k, r, i))] = code;
          codes16[static_cast<size_t>(row_element(m.padded_k, r, i))] =
              static_cast<uint16_t>(f32_to_bf16_bits(e4m3_bits_to_f32(code)));
          const int64_t g = GetParam().row_groups ? i / 128 : 0;
          x[static_cast<size_t>(i)] = static_cast<double>(e4m3_bits_to_f32(code)) *
                                      scales[static_cast<size_t>(g * rows + r)];
          largest_x = std::max(largest_x, std::fabs(x[static_cast<size_t>(i)]));
        }
        for (int64_t o = 0; o < n; ++o) {
          double sum = 0.0;
          for (int64_t i = 0; i < k; ++i)
            sum += x[static_cast<size_t>(i)] * w[static_cast<size_t>(o * k + i)];
          expected[static_cast<size_t>(r * n + o)] = sum;
        }
      }
    }
    const DeviceArray<std::byte> device_slots(device, slots);
    const DeviceArray<uint8_t> device_codes(device, codes);
    const DeviceArray<float> device_scales(device, scales);
    const DeviceArray<TokenTile> device_tiles(device, tiles);
    const DeviceArray<int32_t> totals(
        device, std::vector<int32_t>{rows, static_cast<int32_t>(tiles.size())});
    const DeviceArray<float> y(device, static_cast<size_t>(rows * n));
    const OwnedStream stream(device);
    const DeviceArray<uint16_t> device_codes16(device, codes16);
    const DeviceKernels& kernels = device->kernels();
    const auto launch =
        rows8 ? kernels.gemm_rows8
              : (groups > 1
                     ? kernels.gemm_row_groups
                     : kernels.gemm[static_cast<size_t>(m.element)])[static_cast<size_t>(index)];
    launch({.slots = device_slots.data(),
            .slot_stride = m.bytes,
            .matrix = m,
            .x = rows8 ? nullptr : device_codes16.data(),
            .x8 = rows8 ? device_codes.data() : nullptr,
            .x_scales = device_scales.data(),
            .x_groups = groups,
            .x_scale_stride = rows,
            .tiles = device_tiles.data(),
            .totals = totals.data(),
            .max_tiles = static_cast<int64_t>(tiles.size()),
            .y = y.data()},
           device->attributes(), stream.handle());
    device->synchronize(stream.handle());
    // Emulated sums of 128 are rounded once a product of 32; a GPU's keep 14 bits or so
    // (DeepSeek-V3 technical report, 3.3.2), which 128 terms of either sign average out to some
    // 2^-12 of the largest sum.
    const bool emulated = device->attributes().name.starts_with("emulated");
    double tolerance = 2.0 * dot_tolerance(k + 4, largest_x, largest_w);
    if (!emulated) tolerance += 0x1p-12 * static_cast<double>(k) * largest_x * largest_w;
    EXPECT_TRUE(all_close(y.read(), expected, tolerance))
        << "n " << n << " k " << k << " seed " << rng.seed();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Formats, Rows8ProductTest,
    testing::Values(
        ProductCase{
            "BlockByGroup", {WeightElement::kE4M3, ScaleType::kF32, 128, false, false}, true},
        ProductCase{
            "Bf16BlockByRow", {WeightElement::kE4M3, ScaleType::kBF16, 128, false, false}, false},
        ProductCase{"ChannelByRow", {.element = WeightElement::kE4M3, .output_scale = true}, false},
        ProductCase{
            "ChannelByGroup", {.element = WeightElement::kE4M3, .output_scale = true}, true},
        ProductCase{"BlockByGroupColumns1",
                    {WeightElement::kE4M3, ScaleType::kF32, 128, false, false},
                    true,
                    0},
        ProductCase{"Groups32ByGroupColumns2",
                    {WeightElement::kE4M3, ScaleType::kBF16, 32, false, false},
                    true,
                    1},
        ProductCase{"ChannelByGroupColumns4",
                    {.element = WeightElement::kE4M3, .output_scale = true},
                    true,
                    2},
        ProductCase{"BlockByGroupTiled",
                    {WeightElement::kE4M3, ScaleType::kF32, 128, false, false},
                    true,
                    kTiledGemm},
        ProductCase{"ChannelByRowColumns1",
                    {.element = WeightElement::kE4M3, .output_scale = true},
                    false,
                    0},
        ProductCase{"Int4ByRowTiled",
                    {WeightElement::kInt4, ScaleType::kBF16, 32, false, false},
                    false,
                    kTiledGemm}),
    [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace gantry::test
