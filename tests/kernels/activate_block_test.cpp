// The activation between the two GEMMs, on one accumulator block.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/base/float_convert.h"
#include "tests/kernels/row_ops_isas.h"
#include "tests/support/tolerance.h"

namespace gantry::test {
namespace {

using Floats = std::vector<float>;
using Bytes = std::vector<std::byte>;
using enum ActivateBlock::Kind;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Spec {
  ActivateBlock::Kind kind;
  bool gated;
  float limit = kInfinity;
  float alpha = 1.0F;
  float beta = 0.0F;
};

constexpr Spec kSpecs[] = {{kSilu, true},
                           {kSilu, true, 7.0F},
                           {kSwigluOai, true, 7.0F, 1.702F, 1.0F},
                           {kSwigluOai, true, 2.5F, 1.1F, 0.0F},
                           {kSiluNoMul, false},
                           {kRelu2NoMul, false}};

int64_t columns(const Spec& spec) { return spec.gated ? 16 : 32; }

/// One block: c, biases of exactly n values, and where the results go. The bytes of a row beyond
/// what is to be written hold 0xab.
struct Block {
  static constexpr int64_t kStride = 192;

  Spec spec;
  Floats c;  // [num_rows, 32]
  int64_t n = 16;
  int64_t padded = 32;
  Floats bias_gate = {};
  Floats bias_up = {};
  void (*other)(const void*, int64_t, const float*, const float*, float*) = nullptr;
  const void* context = nullptr;
  Floats factors = {};

  [[nodiscard]] Bytes run_bytes(const RowOps& ops, bool round, bool store_bf16) const {
    const int64_t num_rows = static_cast<int64_t>(c.size()) / 32;
    Bytes out(static_cast<size_t>(num_rows * kStride), std::byte{0xab});
    ops.activate({.c = c.data(),
                  .num_rows = num_rows,
                  .bias_gate = bias_gate.empty() ? nullptr : bias_gate.data(),
                  .bias_up = bias_up.empty() ? nullptr : bias_up.data(),
                  .out = out.data(),
                  .out_stride = kStride,
                  .gated = spec.gated,
                  .n = n,
                  .padded = padded,
                  .round_bf16 = round,
                  .store_bf16 = store_bf16,
                  .kind = spec.kind,
                  .limit = spec.limit,
                  .alpha = spec.alpha,
                  .beta = spec.beta,
                  .other = other,
                  .other_context = context,
                  .factors = factors.empty() ? nullptr : factors.data()});
    return out;
  }
  /// The f32 results of every row, [num_rows, padded].
  [[nodiscard]] Floats run(const RowOps& ops) const {
    const Bytes out = run_bytes(ops, false, false);
    Floats values;
    for (size_t row = 0; row < out.size(); row += kStride) {
      for (int64_t i = 0; i < padded; ++i)
        values.push_back(load_as_f32(out.data() + row, DType::kF32, i));
    }
    return values;
  }
};

/// Rows of c that hold the given pairs.
Block block_of(const Spec& spec, const Floats& gate, const Floats& up) {
  const auto width = static_cast<size_t>(columns(spec));
  Block block{.spec = spec, .c = Floats((gate.size() + width - 1) / width * 32, 0.5F)};
  block.n = block.padded = columns(spec);
  for (size_t i = 0; i < gate.size(); ++i) {
    block.c[i / width * 32 + i % width] = gate[i];
    if (spec.gated) block.c[i / width * 32 + 16 + i % width] = up[i];
  }
  return block;
}

/// A result in double, and how far the f32 one may be from it.
struct Expected {
  double value;
  double tolerance;
};

// With u = 2^-24, z = alpha a and e = exp(-z), the relative error of a / (1 + e) (u' + beta) is
//   from e, times e / (1 + e), by which an error of e reaches the sum: |z| u where the product z is
//     rounded, 4 u from the exponential itself (2 ulp);
//   u each from the sum 1 + e, the quotient, the sum with beta and the last product.
// The exponential of f32 overflows after e^88.7: the quotient is then 0 instead of up to
// |a| e^-88.7. And the quotient may be denormal: half a step, times |u' + beta|.
Expected expected(const Spec& spec, float gate, float up) {
  if (spec.kind == kRelu2NoMul) {
    const double a = gate < 0.0F ? 0.0 : static_cast<double>(gate);
    return {a * a, relative_tolerance(a * a, 1)};
  }
  const bool clamped = spec.kind != kSiluNoMul;
  const double limit = clamped ? static_cast<double>(spec.limit) : INFINITY;
  const double a = std::fmin(gate, limit);
  const double z = spec.kind == kSwigluOai ? static_cast<double>(spec.alpha) * a : a;
  double factor = spec.gated ? std::fmax(std::fmin(up, limit), -limit) : 1.0;
  if (spec.kind == kSwigluOai) factor += static_cast<double>(spec.beta);
  const double value = a / (1.0 + std::exp(-z)) * factor;
  const double reach = 1.0 / (1.0 + std::exp(z));
  const double roundings = 1.01 * ((std::fabs(z) + 4.0) * reach + 4.0);
  const double tail = std::fabs(a) * std::exp(-88.7) * (1.0 + 8.0 * kF32Rounding) + kF32Tiny;
  return {value, relative_tolerance(value, roundings) + tail * std::fabs(factor)};
}

class ActivateBlockTest : public RowOpsTest {
 protected:
  void expect_close(const Spec& spec, const Floats& gate, const Floats& up) {
    const Floats found = block_of(spec, gate, up).run(ops);
    for (size_t i = 0; i < gate.size(); ++i) {
      const Expected wanted = expected(spec, gate[i], up[i]);
      const double value = found[i];
      const double rounded = static_cast<float>(wanted.value);
      if (value == rounded) continue;  // also infinity, which has no distance
      EXPECT_NEAR(value, wanted.value, wanted.tolerance)
          << "kind " << static_cast<int>(spec.kind) << ", gate " << gate[i] << ", up " << up[i];
    }
  }
};

TEST_P(ActivateBlockTest, MatchesTheFormulasInDouble) {
  for (const Spec& spec : kSpecs) {
    for (const float deviation : {0.01F, 1.0F, 5.0F, 40.0F})
      expect_close(spec, rng.normals(5000, deviation), rng.normals(5000, deviation));
  }
}

TEST_P(ActivateBlockTest, HoldsAtClampsZeroAndLargeMagnitudes) {
  const Floats edges = {0.0F,   1e-40F, 1e-20F, 0.3466F, 0.3465F, 2.499F, 2.5F,
                        6.999F, 7.0F,   7.001F, 20.0F,   87.0F,   88.0F,  88.49F,
                        88.51F, 89.0F,  103.0F, 104.0F,  1e4F,    1e15F,  1e30F};
  Floats gate;
  Floats up;
  for (const float a : edges) {
    for (const float u : edges) {
      gate.insert(gate.end(), {a, a, -a, -a});
      up.insert(up.end(), {u, -u, u, -u});
    }
  }
  for (const Spec& spec : kSpecs)
    expect_close(spec, gate, up);
}

TEST_P(ActivateBlockTest, AGateBelowTheLimitIsNotClamped) {
  const Spec spec{kSilu, true, 7.0F};
  const Floats found = block_of(spec, {100, 7, 3, 3, 3, 3}, {3, 3, 100, 7, -100, -7}).run(ops);
  EXPECT_EQ(found[0], found[1]);
  EXPECT_EQ(found[2], found[3]);
  EXPECT_EQ(found[4], found[5]);
  EXPECT_EQ(found[2], -found[4]);
  const Floats low = block_of(spec, {-8, -7}, {1, 1}).run(ops);
  EXPECT_GT(low[0], low[1]);  // silu rises towards 0 there
}

TEST_P(ActivateBlockTest, NanOfEitherOperandStaysNanInItsPlace) {
  for (const Spec& spec : kSpecs) {
    const Floats found = block_of(spec, {kNan, 1, -1, kNan, 2}, {2, kNan, kNan, kNan, 2}).run(ops);
    EXPECT_TRUE(std::isnan(found[0]));
    EXPECT_EQ(std::isnan(found[1]), spec.gated);
    EXPECT_EQ(std::isnan(found[2]), spec.gated);
    EXPECT_TRUE(std::isnan(found[3]));
    EXPECT_FALSE(std::isnan(found[4]));
  }
}

TEST_P(ActivateBlockTest, BiasesAreAddedBeforeTheActivation) {
  for (const Spec& spec : kSpecs) {
    Block plain{.spec = spec, .c = rng.normals(3 * 32), .n = columns(spec)};
    Block biased = plain;
    biased.bias_gate = rng.normals(static_cast<size_t>(plain.n));
    biased.bias_up = rng.normals(static_cast<size_t>(plain.n));  // of no meaning where ungated
    for (size_t i = 0; i < plain.c.size(); ++i) {
      const size_t lane = i % 32;
      plain.c[i] += !spec.gated || lane < 16 ? biased.bias_gate[lane] : biased.bias_up[lane - 16];
    }
    EXPECT_EQ(biased.run(ops), plain.run(ops));
  }
}

TEST_P(ActivateBlockTest, ColumnsFromNOnAreZeroAndNothingBehindThePaddingIsTouched) {
  for (const Spec& spec : kSpecs) {
    const Floats c = rng.normals(2 * 32);
    const Floats whole = Block{.spec = spec, .c = c, .n = columns(spec)}.run(ops);
    for (int64_t n = 1; n <= columns(spec); ++n) {
      for (int64_t padded = n; padded <= 32; ++padded) {
        Block block{.spec = spec, .c = c, .n = n, .padded = padded};
        for (int64_t lane = 0; lane < 64; ++lane) {  // what does not exist must not be read
          if (lane % columns(spec) >= n) block.c[static_cast<size_t>(lane)] = kNan;
        }
        const Floats found = block.run(ops);
        for (int64_t i = 0; i < 2 * padded; ++i) {
          const auto at = static_cast<size_t>(i / padded * 32 + i % padded);
          ASSERT_EQ(found[static_cast<size_t>(i)], i % padded < n ? whole[at] : 0.0F)
              << "n " << n << ", padded " << padded << ", column " << i % padded;
        }
        for (const bool bf16 : {false, true}) {
          const Bytes bytes = block.run_bytes(ops, bf16, bf16);
          for (int64_t i = padded * (bf16 ? 2 : 4); i < Block::kStride; ++i)
            ASSERT_EQ(bytes[static_cast<size_t>(i)], std::byte{0xab});
        }
      }
    }
  }
}

TEST_P(ActivateBlockTest, RoundsItsF32ResultsToBf16) {
  for (const Spec& spec : kSpecs) {
    const Block block{.spec = spec, .c = rng.normals(3 * 32, 3.0F), .n = columns(spec) - 1};
    const Floats exact = block.run(ops);
    const Bytes rounded = block.run_bytes(ops, true, false);
    const Bytes stored = block.run_bytes(ops, true, true);
    for (int64_t i = 0; i < 3 * 32; ++i) {
      const float wanted = round_to_bf16(exact[static_cast<size_t>(i)]);
      const int64_t row = i / 32 * Block::kStride;
      ASSERT_EQ(load_as_f32(rounded.data() + row, DType::kF32, i % 32), wanted);
      ASSERT_EQ(load_as_f32(stored.data() + row, DType::kBF16, i % 32), wanted);
    }
  }
}

TEST_P(ActivateBlockTest, AValueHasTheSameBitsInEveryColumnAndRow) {
  for (const Spec& spec : kSpecs) {
    for (int64_t n = 1; n <= columns(spec); ++n) {
      Block block{.spec = spec, .c = Floats(3 * 32, -1.37F), .n = n, .padded = n};
      const Floats found = block.run(ops);
      EXPECT_EQ(found, Floats(found.size(), found[0])) << "n " << n;
    }
  }
}

TEST_P(ActivateBlockTest, AnyOtherActivationIsCalledOnceARowWithBiasedValues) {
  struct Context {
    float factor;
  } const context{3.0F};
  for (const bool gated : {true, false}) {
    Block block{.spec = {kOther, gated}, .c = rng.normals(2 * 32), .n = 13, .context = &context};
    block.bias_gate = rng.normals(13);
    block.bias_up = rng.normals(13);
    block.other = [](const void* data, int64_t n, const float* gate, const float* up, float* out) {
      const float factor = static_cast<const Context*>(data)->factor;
      for (int64_t i = 0; i < n; ++i)
        out[i] = gate[i] * factor - up[i];
    };
    const Floats found = block.run(ops);
    for (size_t i = 0; i < 2 * 32; ++i) {
      const size_t lane = i % 32;
      if (lane >= 13) {
        EXPECT_EQ(found[i], 0.0F);
        continue;
      }
      const float gate = block.c[i] + block.bias_gate[lane];
      const float up = gated ? block.c[i + 16] + block.bias_up[lane] : gate;
      EXPECT_NEAR(found[i], gate * 3.0F - up, 1e-6F) << "column " << lane;
    }
  }
}

TEST_P(ActivateBlockTest, AGateFarBelowZeroShutsWhateverTheUp) {
  for (const float gate : {-120.0F, -1e4F, -1e30F}) {
    const Floats found =
        block_of({.kind = kSilu, .gated = true}, Floats(8, gate), Floats(8, 1e30F)).run(ops);
    for (size_t i = 0; i < 8; ++i)
      EXPECT_EQ(found[i], 0.0F) << gate;
  }
}

TEST_P(ActivateBlockTest, FactorsMultiplyTheResultsOfEveryKind) {
  for (const Spec& spec : kSpecs) {
    const auto width = static_cast<size_t>(columns(spec));
    Block block = block_of(spec, rng.normals(3 * width), rng.normals(3 * width));
    block.n = columns(spec) - 3;
    const Floats plain = block.run(ops);
    block.factors = rng.normals(static_cast<size_t>(block.n));
    const Floats found = block.run(ops);
    for (size_t i = 0; i < found.size(); ++i) {
      const size_t column = i % width;
      const float factor = column < block.factors.size() ? block.factors[column] : 0.0F;
      EXPECT_EQ(found[i], plain[i] * factor) << "element " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, ActivateBlockTest, testing::ValuesIn(row_ops_isas()), row_ops_name);

}  // namespace
}  // namespace gantry::test
