// The emulation itself: it must notice what a GPU would punish. And the conversions it rests on.

#include "kernels/cuda/emulated_block.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "kernels/base/float_convert.h"
#include "kernels/cuda/float_bits.h"
#include "kernels/quant/element_formats.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

constexpr LaunchShape kOneBlock{.blocks = 1, .threads = 64, .shared_bytes = 64 * 4};

TEST(EmulatedBlockTest, ABarrierShowsEveryThreadWhatTheOthersWrote) {
  std::vector<int> seen(64, -1);
  run_emulated(kOneBlock, 3, [&](EmulatedMachine& m) {
    auto* words = reinterpret_cast<int*>(m.shared());
    words[m.thread()] = m.thread();
    m.sync();
    seen[static_cast<size_t>(m.thread())] = words[63 - m.thread()];
  });
  for (int t = 0; t < 64; ++t)
    EXPECT_EQ(seen[static_cast<size_t>(t)], 63 - t);
}

TEST(EmulatedBlockTest, AMissingBarrierGivesResultsThatDependOnTheSeed) {
  const auto run = [](uint64_t seed) {
    std::vector<int> seen(64, -1);
    run_emulated(kOneBlock, seed, [&](EmulatedMachine& m) {
      auto* words = reinterpret_cast<int*>(m.shared());
      words[m.thread()] = m.thread();
      seen[static_cast<size_t>(m.thread())] = words[63 - m.thread()];
    });
    return seen;
  };
  EXPECT_NE(run(1), run(2));
}

TEST(EmulatedBlockTest, RefusesABarrierThatSomeThreadsNeverReach) {
  expect_error(
      [] {
        run_emulated(kOneBlock, 1, [](EmulatedMachine& m) {
          if (m.thread() != 5) m.sync();
        });
      },
      ErrorCode::kInternal, {"never reach"});
}

TEST(EmulatedBlockTest, RefusesLanesThatMeetInDifferentCollectives) {
  expect_error(
      [] {
        run_emulated(kOneBlock, 1, [](EmulatedMachine& m) {
          if (m.thread() % 32 == 7) {
            m.sync_warp();
          } else {
            (void)m.shuffle_xor(1.0F, 1);
          }
        });
      },
      ErrorCode::kInternal, {"different collectives"});
}

TEST(EmulatedBlockTest, NoticesAWritePastSharedMemory) {
  expect_error(
      [] {
        run_emulated(kOneBlock, 1, [](EmulatedMachine& m) {
          if (m.thread() == 0) reinterpret_cast<int*>(m.shared())[64] = 1;
        });
      },
      ErrorCode::kInternal, {"shared memory"});
}

TEST(EmulatedBlockTest, AsynchronousCopiesLandWhenTheyAreWaitedFor) {
  alignas(16) const std::array<uint32_t, 4> source = {1, 2, 3, 4};
  run_emulated({.blocks = 1, .threads = 32, .shared_bytes = 1024}, 1, [&](EmulatedMachine& m) {
    if (m.thread() != 0) return;
    auto* words = reinterpret_cast<uint32_t*>(m.shared());
    m.copy16_async(words, source.data());
    m.commit_copies();
    m.copy16_async(words + 4, source.data());
    m.commit_copies();
    EXPECT_EQ(words[0], 0xffffffffu);
    m.wait_copies(1);
    EXPECT_EQ(words[0], 1u);
    EXPECT_EQ(words[4], 0xffffffffu);
    m.wait_copies(0);
    EXPECT_EQ(words[4], 1u);
  });
}

TEST(EmulatedBlockTest, PassesOnWhatAThreadThrows) {
  EXPECT_THROW(run_emulated(kOneBlock, 1,
                            [](EmulatedMachine& m) {
                              if (m.thread() == 3) throw std::out_of_range("three");
                              m.sync();
                            }),
               std::out_of_range);
}

bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

TEST(FloatBitsTest, AgreesWithTheHostForEveryCode) {
  for (uint32_t code = 0; code < 65536; ++code) {
    const auto bits = static_cast<uint16_t>(code);
    ASSERT_TRUE(same(bf16_bits_to_f32(code), bf16_to_f32(bits))) << code;
    ASSERT_TRUE(same(f16_bits_to_f32(code), f16_to_f32(bits))) << code;
  }
  for (uint32_t code = 0; code < 256; ++code) {
    ASSERT_TRUE(same(e4m3_bits_to_f32(code), e4m3_to_f32(static_cast<uint8_t>(code)))) << code;
    ASSERT_TRUE(same(e8m0_bits_to_f32(code), e8m0_to_f32(static_cast<uint8_t>(code)))) << code;
  }
}

TEST(FloatBitsTest, RoundsAsTheHostDoes) {
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 65521) {  // a prime: every low half
    const float value = bits_to_f32(static_cast<uint32_t>(bits));
    ASSERT_EQ(f32_to_bf16_bits(value), f32_to_bf16(value)) << bits;
    ASSERT_EQ(f32_to_f16_bits(value), f32_to_f16(value)) << bits;
  }
}

}  // namespace
}  // namespace gantry::test
