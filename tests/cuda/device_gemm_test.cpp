// The grouped GEMM kernels against sums in double.

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/device_kernels.h"
#include "kernels/cuda/pack_device.h"
#include "tests/kernels/coded_case.h"
#include "tests/support/device_array.h"
#include "tests/support/tolerance.h"

namespace gantry::test {
namespace {

struct GemmFormat {
  const char* name;
  DType dtype;
  WeightFormat format;
};

const std::vector<GemmFormat>& gemm_formats() {
  static const std::vector<GemmFormat> all = {
      {"bf16", DType::kBF16, {}},
      {"f16", DType::kF16, {}},
      {"fp8_block", DType::kF32, {WeightElement::kE4M3, ScaleType::kF32, 128, false, false}},
      {"fp8_channel", DType::kF32, {.element = WeightElement::kE4M3, .output_scale = true}},
      {"int8_channel", DType::kF32, {.element = WeightElement::kInt8, .output_scale = true}},
      {"int8_group_zeros", DType::kF32, {WeightElement::kInt8, ScaleType::kBF16, 32, true, false}},
      {"int4_group32", DType::kF32, {WeightElement::kInt4, ScaleType::kF16, 32, true, false}},
      {"int4_group128", DType::kF32, {WeightElement::kInt4, ScaleType::kBF16, 128, false, false}},
      {"int4_group48", DType::kF32, {WeightElement::kInt4, ScaleType::kF16, 48, false, false}},
      {"mxfp4", DType::kF32, {WeightElement::kE2M1, ScaleType::kE8M0, 32, false, false}},
      {"nvfp4", DType::kF32, {WeightElement::kE2M1, ScaleType::kE4M3, 16, false, true}}};
  return all;
}

struct GemmCase {
  GemmFormat format;
  int columns_index;
};

void PrintTo(const GemmCase& tested, std::ostream* out) {
  *out << tested.format.name << ", " << kGemmColumns[static_cast<size_t>(tested.columns_index)];
}

/// Experts with random weights in device slots, and rows for them.
class DeviceGemmTest : public DeviceTest, public testing::WithParamInterface<GemmCase> {
 protected:
  struct Result {
    std::vector<float> y;
    std::vector<double> expected;
    double tolerance = 0.0;
  };

  // Where the tests' device is the emulation, the kernels of sm_90a run on an emulated sm_90a.
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    emulated = device->attributes().name.starts_with("emulated");
    const bool wgmma = GetParam().columns_index >= kWgmmaGemm;
    if (emulated && wgmma) device = open_emulated_device(1, 90);
    const DeviceMatrix m = device_matrix(layout(false, 16, 64));
    if (launch_of(m) == nullptr) GTEST_SKIP() << "no GPU of sm_90a";
  }
  KernelLaunch<ExpertGemm> launch_of(const DeviceMatrix& m) const {
    return device->kernels()
        .gemm[static_cast<size_t>(m.element)][static_cast<size_t>(GetParam().columns_index)];
  }

  bool emulated = false;

  PackedLayout layout(bool gated, int64_t n, int64_t k) const {
    const GemmFormat& f = GetParam().format;
    return {f.dtype, gated, n, k, f.format};
  }
  [[nodiscard]] bool f16() const { return GetParam().format.dtype == DType::kF16; }

  /// Packs one matrix for the device; `weights` gets its values.
  std::vector<std::byte> random_matrix(const PackedLayout& wanted, std::vector<float>& weights) {
    ByteBuffer panels;
    PackedLayout stored = wanted;
    if (wanted.format.coded()) {
      CodedCase c = random_coded(rng, wanted);
      stored = c.layout;
      panels = std::move(c.packed);
    } else {
      panels = ByteBuffer(static_cast<size_t>(wanted.bytes()));
      pack_matrix(wanted, rng.normals(static_cast<size_t>(wanted.n * wanted.k)).data(),
                  panels.data());
    }
    weights = unpack_matrix(stored, panels.data());
    const DeviceMatrix m = device_matrix(stored);
    std::vector<std::byte> packed(static_cast<size_t>(m.bytes));
    pack_device_tiles(stored, m, panels.data(), 0, m.num_tiles, packed.data());
    return packed;
  }

  /// y = x W^T for experts of `counts` rows.
  Result run(const std::vector<int32_t>& counts, int64_t n, int64_t k) {
    const PackedLayout wanted = layout(false, n, k);
    const DeviceMatrix m = device_matrix(wanted);
    const int tile_rows = 8 * kGemmColumns[static_cast<size_t>(GetParam().columns_index)];
    std::vector<std::byte> slots;
    std::vector<std::vector<float>> weights(counts.size());
    std::vector<TokenTile> tiles;
    int32_t rows = 0;
    for (size_t e = 0; e < counts.size(); ++e) {
      const std::vector<std::byte> packed = random_matrix(wanted, weights[e]);
      slots.insert(slots.end(), packed.begin(), packed.end());
      for (int32_t r = 0; r < counts[e]; r += tile_rows)
        tiles.push_back({static_cast<int32_t>(e), rows + r, std::min(tile_rows, counts[e] - r)});
      rows += static_cast<int32_t>(align_to(counts[e], 8));
    }
    Result result;
    std::vector<uint16_t> x(static_cast<size_t>(rows * m.padded_k), 0);
    std::vector<float> plain(static_cast<size_t>(rows * k), 0.0F);
    result.expected.assign(static_cast<size_t>(rows * n), NAN);
    double largest_w = 0.0;
    int32_t first = 0;
    for (size_t e = 0; e < counts.size(); ++e) {
      largest_w = std::max(largest_w, largest_magnitude(weights[e]));
      for (int32_t r = first; r < first + counts[e]; ++r)
        fill_row(x, plain, m.padded_k, r, k);
      for (int32_t r = first; r < first + counts[e]; ++r) {
        for (int64_t o = 0; o < n; ++o) {
          double sum = 0.0;
          for (int64_t i = 0; i < k; ++i) {
            sum += static_cast<double>(plain[static_cast<size_t>(r * k + i)]) *
                   weights[e][static_cast<size_t>(o * k + i)];
          }
          result.expected[static_cast<size_t>(r * n + o)] = sum;
        }
      }
      first += static_cast<int32_t>(align_to(counts[e], 8));
    }
    result.tolerance = scaled_tolerance(k, largest_magnitude(plain), largest_w);
    const DeviceArray<std::byte> device_slots(device, slots);
    const DeviceArray<uint16_t> device_x(device, x);
    const DeviceArray<TokenTile> device_tiles(device, tiles);
    const DeviceArray<int32_t> totals(
        device, std::vector<int32_t>{rows, static_cast<int32_t>(tiles.size())});
    const DeviceArray<float> y(device, static_cast<size_t>(rows * n));
    launch(m, {.slots = device_slots.data(),
               .slot_stride = m.bytes,
               .matrix = m,
               .x = device_x.data(),
               .tiles = device_tiles.data(),
               .totals = totals.data(),
               .max_tiles = static_cast<int64_t>(tiles.size()),
               .y = y.data()});
    result.y = y.read();
    return result;
  }

  void launch(const DeviceMatrix& m, const ExpertGemm& gemm) const {
    const OwnedStream stream(device);
    launch_of(m)(gemm, device->attributes(), stream.handle());
    device->synchronize(stream.handle());
  }

  /// Scales multiply sums of their groups: two roundings more than a plain dot product has, and one
  /// for the scale of the output; the tensor cores may truncate where they add, which counts twice.
  static double scaled_tolerance(int64_t k, double max_x, double max_w) {
    return 2.0 * dot_tolerance(k + 3, max_x, max_w);
  }

  void fill_row(std::vector<uint16_t>& x, std::vector<float>& plain, int64_t padded_k, int64_t row,
                int64_t k) {
    for (int64_t i = 0; i < k; ++i) {
      const float value = rng.normal();
      const uint16_t bits = f16() ? f32_to_f16(value) : f32_to_bf16(value);
      x[static_cast<size_t>(row_element(padded_k, row, i))] = bits;
      plain[static_cast<size_t>(row * k + i)] = f16() ? f16_to_f32(bits) : bf16_to_f32(bits);
    }
  }

  /// Rows that hold no token are never stored: they stay 0xff, which is NaN.
  void expect_match(const std::vector<int32_t>& counts, int64_t n, int64_t k) {
    const Result result = run(counts, n, k);
    EXPECT_TRUE(all_close(result.y, result.expected, result.tolerance))
        << "n " << n << " k " << k << " seed " << rng.seed();
  }
};

TEST_P(DeviceGemmTest, MultipliesRowsOfSeveralExperts) { expect_match({3, 0, 9, 1}, 72, 200); }

TEST_P(DeviceGemmTest, MultipliesOddSizes) { expect_match({2, 17}, 33, 70); }

TEST_P(DeviceGemmTest, MultipliesMoreRowsThanATileHolds) {
  const int32_t tile = 8 * kGemmColumns[static_cast<size_t>(GetParam().columns_index)];
  expect_match({tile + 1}, 20, 64);
}

TEST_P(DeviceGemmTest, MultipliesRowsThatFillTheirStagesSeveralTimes) {
  expect_match({3}, 70, 1090);
}

// Each number of columns that a kernel has code for.
TEST_P(DeviceGemmTest, MultipliesTilesOfAllWidths) {
  const int32_t tile = 8 * kGemmColumns[static_cast<size_t>(GetParam().columns_index)];
  expect_match({tile / 4, tile / 2, tile * 5 / 8, tile}, 20, 70);
}

TEST_P(DeviceGemmTest, DoesNothingWithoutRows) { EXPECT_TRUE(run({0, 0}, 16, 64).y.empty()); }

// On the emulation each launch of a device runs threads in that device's order.
TEST_P(DeviceGemmTest, GivesTheSameBitsInWhateverOrderThreadsRun) {
  const uint64_t seed = rng.seed();
  rng = SeededRng(seed);
  const std::vector<float> first = run({5, 12}, 40, 136).y;
  if (emulated) device = open_emulated_device(77, device->attributes().compute_capability);
  rng = SeededRng(seed);
  const std::vector<float> second = run({5, 12}, 40, 136).y;
  ASSERT_EQ(first.size(), second.size());
  for (size_t i = 0; i < first.size(); ++i)
    ASSERT_EQ(f32_to_bits(first[i]), f32_to_bits(second[i])) << i;
}

// Dense rows (shared experts), a bias, gate and up: silu(a) u with a = x . gate + b, rounded once.
TEST_P(DeviceGemmTest, ActivatesGateAndUpOfTheSameNeuron) {
  constexpr int64_t kNeurons = 21;
  constexpr int64_t kK = 96;
  constexpr int64_t kTokens = 11;
  const PackedLayout wanted = layout(true, 2 * kNeurons, kK);
  const DeviceMatrix m = device_matrix(wanted);
  std::vector<float> weights;
  std::vector<std::byte> slot = random_matrix(wanted, weights);
  const std::vector<float> bias = rng.normals(2 * kNeurons);
  const auto bias_offset = static_cast<int64_t>(slot.size());
  const auto* bytes = reinterpret_cast<const std::byte*>(bias.data());
  slot.insert(slot.end(), bytes, bytes + bias.size() * 4);
  std::vector<uint16_t> x(static_cast<size_t>(16 * m.padded_k), 0);
  std::vector<float> plain(static_cast<size_t>(kTokens * kK));
  for (int64_t t = 0; t < kTokens; ++t)
    fill_row(x, plain, m.padded_k, t, kK);
  const DeviceArray<std::byte> device_slot(device, slot);
  const DeviceArray<uint16_t> device_x(device, x);
  const DeviceArray<uint16_t> rows(device, static_cast<size_t>(16 * m.padded_outputs()));
  launch(m, {.slots = device_slot.data(),
             .slot_stride = static_cast<int64_t>(slot.size()),
             .bias_offset = bias_offset,
             .matrix = m,
             .x = device_x.data(),
             .dense_rows = kTokens,
             .max_tiles = 2,
             .activated = true,
             .f16 = f16(),
             .rows = rows.data()});
  const std::vector<uint16_t> found = rows.read();
  const double sum_error =
      scaled_tolerance(kK, largest_magnitude(plain), largest_magnitude(weights)) + 1e-6;
  for (int64_t t = 0; t < kTokens; ++t) {
    const auto dot = [&](int64_t row) {
      double sum = static_cast<double>(bias[static_cast<size_t>(row)]);
      for (int64_t i = 0; i < kK; ++i) {
        sum += static_cast<double>(plain[static_cast<size_t>(t * kK + i)]) *
               weights[static_cast<size_t>(row * kK + i)];
      }
      return sum;
    };
    for (int64_t j = 0; j < m.padded_outputs(); ++j) {
      const uint16_t bits = found[static_cast<size_t>(row_element(m.padded_outputs(), t, j))];
      if (j >= kNeurons) {
        ASSERT_EQ(bits, 0) << "padding is the next matrix' k";
        continue;
      }
      const double a = dot(j);
      const double u = dot(kNeurons + j);
      const double silu = a / (1.0 + std::exp(-a));
      const double value = f16() ? f16_to_f32(bits) : bf16_to_f32(bits);
      // |silu'| <= 1.1; 2^-8 covers half a step of bf16 and expf.
      const double limit = sum_error * (1.1 * std::fabs(u) + std::fabs(silu) + sum_error) +
                           0x1p-8 * std::fabs(silu * u) + 1e-7;
      const double most = f16() ? 65504.0 : 3e38;
      if (std::fabs(silu * u) > most) continue;  // f16 overflows, as it must
      ASSERT_NEAR(value, silu * u, limit) << "token " << t << " neuron " << j;
    }
  }
}

std::vector<GemmCase> gemm_cases() {
  std::vector<GemmCase> all;
  for (const GemmFormat& format : gemm_formats()) {
    const DeviceMatrix m = device_matrix({format.dtype, false, 16, 64, format.format});
    for (int c = 0; c < static_cast<int>(kGemmColumns.size()); ++c) {
      if (c == kWideWgmmaGemm && !takes_wide_tiles(m)) continue;
      all.push_back({format, c});
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(
    Kernels, DeviceGemmTest, testing::ValuesIn(gemm_cases()), [](const auto& tested) {
      return std::string(tested.param.format.name) +
             (tested.param.columns_index >= kWgmmaGemm ? "_wgmma" : "_columns") +
             std::to_string(kGemmColumns[static_cast<size_t>(tested.param.columns_index)]);
    });

}  // namespace
}  // namespace gantry::test
