// Damages the experts' blocks in GGUF files of real quantizers and asks the product whether it
// notices. Whether a damage changes a weight is decided by ggml's formula for one block after the
// other, which gguf_golden_test.cpp holds against ggml's own numbers.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <span>

#include "kernels/base/float_convert.h"
#include "loader/encodings/ggml_types.h"
#include "tests/support/detection.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/mutations.h"
#include "tests/support/seeded_rng.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

/// One expert's matrix in the bytes of a file.
struct Slab {
  std::span<char> bytes;
  size_t block_bytes;
  size_t row_bytes;
  [[nodiscard]] std::span<char> block(size_t index) const {
    return bytes.subspan(index * block_bytes, block_bytes);
  }
  [[nodiscard]] size_t num_blocks() const { return bytes.size() / block_bytes; }
  [[nodiscard]] std::span<char> any_block(SeededRng& rng) const {
    return block(static_cast<size_t>(rng.integer(0, static_cast<int64_t>(num_blocks()) - 1)));
  }
};

/// Damages one matrix; `other` is another one of the same tensor, or up for gate.
struct BlockMutation {
  const char* name;
  std::function<void(const Slab&, const Slab& other, SeededRng&)> apply;
};

void roll(std::span<char> bytes, size_t by) {
  std::rotate(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(by), bytes.end());
}

const std::vector<BlockMutation>& block_mutations() {
  static const std::vector<BlockMutation> list = {
      {"swap_nibbles",
       [](const Slab& slab, const Slab&, SeededRng&) {
         for (char& byte : slab.bytes) {
           const auto code = static_cast<uint8_t>(byte);
           byte = static_cast<char>(code >> 4 | code << 4);
         }
       }},
      {"roll_blocks",
       [](const Slab& slab, const Slab&, SeededRng&) { roll(slab.bytes, slab.block_bytes); }},
      {"roll_rows",
       [](const Slab& slab, const Slab&, SeededRng&) { roll(slab.bytes, slab.row_bytes); }},
      {"shift_by_a_byte", [](const Slab& slab, const Slab&, SeededRng&) { roll(slab.bytes, 1); }},
      {"roll_bytes_of_blocks",
       [](const Slab& slab, const Slab&, SeededRng&) {
         for (size_t i = 0; i < slab.num_blocks(); ++i)
           roll(slab.block(i), 1);
       }},
      {"negate",
       [](const Slab& slab, const Slab&, SeededRng&) {
         for (size_t i = 0; i < slab.num_blocks(); ++i)
           slab.block(i)[1] ^= static_cast<char>(0x80);
       }},
      {"zero_a_block", [](const Slab& slab, const Slab&,
                          SeededRng& rng) { std::ranges::fill(slab.any_block(rng), '\0'); }},
      {"ones_in_a_block",  // NaN, where it has floats
       [](const Slab& slab, const Slab&, SeededRng& rng) {
         std::ranges::fill(slab.any_block(rng), '\xff');
       }},
      {"lose_the_end",  // what a torn write leaves
       [](const Slab& slab, const Slab&, SeededRng& rng) {
         const auto kept = rng.integer(0, static_cast<int64_t>(slab.bytes.size() / 2));
         std::ranges::fill(slab.bytes.subspan(static_cast<size_t>(kept)), '\0');
       }},
      {"copy_of_another", [](const Slab& slab, const Slab& other,
                             SeededRng&) { std::ranges::copy(other.bytes, slab.bytes.begin()); }},
      {"swap_with_another", [](const Slab& slab, const Slab& other,
                               SeededRng&) { std::ranges::swap_ranges(slab.bytes, other.bytes); }},
  };
  return list;
}

class GgufMutationTest : public testing::TestWithParam<Golden> {
 protected:
  [[nodiscard]] const TensorInfo& tensor(const std::string& projection) const {
    return model.checkpoint().find("blk.0.ffn_" + projection + "_exps.weight")->info;
  }
  [[nodiscard]] Slab slab(std::string& bytes, const TensorInfo& info, int64_t expert) const {
    const auto size = static_cast<size_t>(info.num_bytes() / kExperts);
    const GgmlType* type = find_ggml_type(info.block_type);
    const auto rows = static_cast<size_t>(info.shape.at(info.shape.size() - 2));
    return {std::span(bytes).subspan(
                static_cast<size_t>(info.begin) + static_cast<size_t>(expert) * size, size),
            type == nullptr ? static_cast<size_t>(size_of(info.dtype))
                            : static_cast<size_t>(type->block_bytes),
            size / rows};
  }
  // A whole tensor in f32.
  static std::vector<float> decode(const std::string& bytes, const TensorInfo& info) {
    const auto* data = reinterpret_cast<const std::byte*>(bytes.data() + info.begin);
    const GgmlType* type = find_ggml_type(info.block_type);
    if (type == nullptr) {
      std::vector<float> values(static_cast<size_t>(info.num_elements()));
      convert_to_f32(data, info.dtype, info.num_elements(), values.data());
      return values;
    }
    const int64_t blocks = info.num_bytes() / type->block_bytes;
    std::vector<float> values(static_cast<size_t>(blocks * type->block_elements));
    decode_ggml_blocks(*type, data, blocks, values.data());
    return values;
  }
  static bool same_values(const std::vector<float>& a, const std::vector<float>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](float x, float y) { return x == y || (std::isnan(x) && std::isnan(y)); });
  }

  static constexpr int64_t kExperts = 4;
  const MoeModel model{GetParam().directory, /*names_only=*/false};
  const Reference reference =
      read_reference(GetParam().directory / "moe_io.safetensors", model.config());
  const std::string intact = read_bytes(GetParam().directory / "model.gguf");
  const TempDir temp;
  SeededRng rng;
};

TEST_P(GgufMutationTest, EveryDamageThatChangesAWeightIsNoticed) {
  ASSERT_EQ(model.config().layers.at(0).num_experts, kExperts);
  const std::vector<ParallelConfig> layouts = {
      {}, {.tp_size = 3}, {.ep_size = 2}, {.tp_size = 2, .ep_size = 2}};
  std::map<std::string, int> stages;
  int tried = 0;
  int changed = 0;
  for (int trial = 0; trial < trials(); ++trial) {
    for (const BlockMutation& mutation : block_mutations()) {
      for (const std::string projection : {"gate", "up", "down"}) {
        const TensorInfo& info = tensor(projection);
        const int64_t expert = rng.integer(0, kExperts - 1);
        std::string damaged = intact;
        // Up's matrix for gate's, where they are of one type; else that of another expert.
        const TensorInfo& up = tensor("up");
        const bool up_for_gate = projection == "gate" && info.block_type == up.block_type &&
                                 info.dtype == up.dtype && trial % 2 == 0;
        const Slab other = up_for_gate
                               ? slab(damaged, up, expert)
                               : slab(damaged, info, (expert + rng.integer(1, 3)) % kExperts);
        mutation.apply(slab(damaged, info, expert), other, rng);
        const bool changes = !same_values(decode(damaged, info), decode(intact, info));
        temp.write("model.gguf", damaged);
        const ParallelConfig& parallel = layouts[static_cast<size_t>(tried) % layouts.size()];
        const std::string stage = stage_of_detection(temp.path(), reference, parallel);
        ++tried;
        changed += changes ? 1 : 0;
        ++stages[stage];
        if (!changes) continue;
        EXPECT_NE(stage, "") << mutation.name << " of " << projection << " of expert " << expert
                             << " (seed " << rng.seed() << ", " << describe(parallel) << ")";
      }
    }
  }
  EXPECT_GT(changed, 0);
  std::printf("%s: %d mutations tried, %d changed a weight; noticed %d (%d by numbers)\n",
              GetParam().name.c_str(), tried, changed, tried - stages[""], stages["numbers"]);
}

INSTANTIATE_TEST_SUITE_P(Quantizers, GgufMutationTest, testing::ValuesIn(gguf_goldens()),
                         [](const auto& golden) { return golden.param.name; });

}  // namespace
}  // namespace gantry::test
