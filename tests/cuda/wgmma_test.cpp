// The descriptors of wgmma, and that its emulation notices what a GPU would punish.

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <set>
#include <vector>

#include "kernels/cuda/device_matrix.h"
#include "kernels/cuda/emulated_block.h"
#include "kernels/cuda/emulated_wgmma.h"
#include "kernels/cuda/float_bits.h"
#include "kernels/cuda/mma_fragments.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

struct SwizzleCase {
  SharedSwizzle swizzle;
  uint32_t width;  // bytes of a row that stand together
};

class SwizzleTest : public testing::TestWithParam<SwizzleCase> {};

// Walks 64 rows of one wgmma (32 bytes each) as the PTX ISA documents it: every 16 bytes of each
// row are met once, and no two rows of eight hit the same bank.
TEST_P(SwizzleTest, MeetsEveryByteOnceAndWithoutBankConflicts) {
  const auto [swizzle, width] = GetParam();
  const bool plain = swizzle == SharedSwizzle::kNone;
  const SharedMatrix matrix{.start = 2048,
                            .leading_bytes = plain ? 128u : 0u,
                            .stride_bytes = plain ? 1024u : 8 * width,
                            .swizzle = swizzle};
  std::set<uint32_t> met;
  for (uint32_t k = 0; k < (plain ? 512u : width); k += plain ? 256 : 32) {
    const uint64_t descriptor = advance_descriptor(shared_matrix_descriptor(matrix), k);
    for (int row = 0; row < 64; ++row) {
      for (int byte = 0; byte < 32; ++byte)
        EXPECT_TRUE(met.insert(descriptor_address(descriptor, row, byte)).second);
    }
    if (width < 128 && !plain) continue;  // 64 and 32 bytes have conflicts of 2 and 4
    for (int row = 0; row < 64; row += 8) {
      std::set<uint32_t> banks;
      for (int r = 0; r < 8; ++r)
        banks.insert(descriptor_address(descriptor, row + r, 0) / 16 % 8);
      EXPECT_EQ(banks.size(), 8u) << "row " << row << " k " << k;
    }
  }
  EXPECT_EQ(met.size(), 64u * (plain ? 64 : width));
  EXPECT_EQ(*met.begin(), 2048u);
}

INSTANTIATE_TEST_SUITE_P(Modes, SwizzleTest,
                         testing::Values(SwizzleCase{SharedSwizzle::kNone, 128},
                                         SwizzleCase{SharedSwizzle::k128, 128},
                                         SwizzleCase{SharedSwizzle::k64, 64},
                                         SwizzleCase{SharedSwizzle::k32, 32}),
                         [](const auto& tested) {
                           return "Field" + std::to_string(static_cast<int>(tested.param.swizzle));
                         });

// @source PTX ISA, "Matrix Descriptor Format": bits 13-0, 29-16, 45-32 and 63-62
TEST(DescriptorTest, FieldsStandWhereTheManualHasThem) {
  const uint64_t d = shared_matrix_descriptor({.start = 0x12340,
                                               .leading_bytes = 0x80,
                                               .stride_bytes = 0x400,
                                               .swizzle = SharedSwizzle::k64});
  EXPECT_EQ(d & 0x3fff, 0x1234u);
  EXPECT_EQ(d >> 16 & 0x3fff, 0x8u);
  EXPECT_EQ(d >> 32 & 0x3fff, 0x40u);
  EXPECT_EQ(d >> 62, 2u);
  EXPECT_EQ(d >> 46 & 0xffff, 0u) << "base offset and the bits that must be 0";
  EXPECT_EQ(advance_descriptor(d, 256), d + 16);
}

// Rows as they stand in memory are the operand that a descriptor without swizzle describes.
TEST(DescriptorTest, RowsInMemoryAreTheOperand) {
  constexpr int kDepth = 128;
  const uint64_t d = shared_matrix_descriptor(
      {.start = kEmulatedSharedBase, .leading_bytes = 128, .stride_bytes = 16 * kDepth});
  for (int row = 0; row < 24; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      const uint64_t step = advance_descriptor(d, static_cast<uint32_t>(k / 16 * 256));
      EXPECT_EQ(descriptor_address(step, row, k % 16 * 2) - kEmulatedSharedBase,
                static_cast<uint32_t>(row_element(kDepth, row, k) * 2));
    }
  }
}

// Rows of e4m3: what the lanes have of 32 k of weights meets the same 32 k.
TEST(DescriptorTest, RowsOfE4M3MeetTheWeightsOfTheSameColumns) {
  constexpr int kDepth = 128;
  const uint64_t d = shared_matrix_descriptor(
      {.start = kEmulatedSharedBase, .leading_bytes = 128, .stride_bytes = 8 * kDepth});
  for (int lane = 0; lane < 32; ++lane) {
    for (int step = 0; step < 2; ++step) {
      for (int e = 0; e < 8; ++e) {
        const FragmentPlace weight = mma_a_place(lane, e);  // of DeviceMatrix
        // WgmmaGemm puts it into register 2 step + (second row), byte e % 2 + 2 (e >= 4).
        const int place = (2 * step + weight.row / 8) * 4 + e % 2 + (e >= 4 ? 2 : 0);
        const FragmentPlace wgmma = wgmma_a8_place(lane, place);
        EXPECT_EQ(wgmma.row, weight.row);
        const int k = 16 * step + weight.col;
        EXPECT_EQ(descriptor_address(d, 5, wgmma.col) - kEmulatedSharedBase,
                  static_cast<uint32_t>(row8_element(kDepth, 5, k)));
      }
    }
  }
}

TEST(WgmmaFragmentTest, EveryElementOf8BitsHasOnePlace) {
  std::set<std::pair<int, int>> places;
  for (int lane = 0; lane < 32; ++lane) {
    for (int e = 0; e < 16; ++e)
      places.emplace(wgmma_a8_place(lane, e).row, wgmma_a8_place(lane, e).col);
  }
  EXPECT_EQ(places.size(), 16u * 32);
  EXPECT_EQ(*places.rbegin(), std::pair(15, 31));
}

constexpr LaunchShape kWarpgroupBlock{.blocks = 1, .threads = 128, .shared_bytes = 8192};

// B of 64 rows x 16 k: B[row, k] = row + k / 16 in bf16 is exact.
void write_operand(EmulatedMachine& m) {
  auto* words = reinterpret_cast<uint16_t*>(m.shared());
  for (int i = m.thread(); i < 64 * 16; i += 128) {
    const int row = i / 16;
    const int k = i % 16;
    const int at = row / 8 * 128 + k / 8 * 64 + row % 8 * 8 + k % 8;
    words[at] = static_cast<uint16_t>(f32_to_bf16_bits(static_cast<float>(row % 4 + k)));
  }
}

uint64_t operand(const EmulatedMachine& m) {
  return shared_matrix_descriptor({m.shared_address(m.shared()), 128, 256, SharedSwizzle::kNone});
}

constexpr uint32_t kOnes = 0x3f803f80u;

TEST(EmulatedWgmmaTest, SumsAppearWhenTheyAreWaitedFor) {
  run_emulated(kWarpgroupBlock, 5, [](EmulatedMachine& m) {
    write_operand(m);
    m.sync();
    float d[32] = {};
    const uint32_t a[4] = {kOnes, kOnes, kOnes, kOnes};
    m.wgmma_fence();
    m.wgmma<WgmmaType::kBF16>(d, a, operand(m), false);
    m.wgmma<WgmmaType::kBF16>(d, a, operand(m), true);
    m.wgmma_commit();
    EXPECT_TRUE(std::isnan(d[0]));
    m.wgmma_wait<0>();
    for (int i = 0; i < 32; ++i) {
      const int column = i / 4 * 8 + mma_c_place(m.thread() % 32, i % 4).col;
      EXPECT_EQ(d[i], 2.0F * static_cast<float>(16 * (column % 4) + 120));
    }
  });
}

void expect_misuse(const char* text, const std::function<void(EmulatedMachine&)>& body) {
  expect_error([&] { run_emulated(kWarpgroupBlock, 5, body); }, ErrorCode::kInternal, {text});
}

TEST(EmulatedWgmmaTest, RefusesAProductWithoutAFence) {
  expect_misuse("without a wgmma.fence", [](EmulatedMachine& m) {
    float d[32] = {};
    const uint32_t a[4] = {};
    m.wgmma<WgmmaType::kBF16>(d, a, operand(m), false);
  });
}

TEST(EmulatedWgmmaTest, NoticesRegistersThatChangeInFlight) {
  expect_misuse("registers of A", [](EmulatedMachine& m) {
    float d[32] = {};
    uint32_t a[4] = {};
    m.wgmma_fence();
    m.wgmma<WgmmaType::kBF16>(d, a, operand(m), false);
    m.wgmma_commit();
    if (m.thread() == 77) a[2] = 1;
    m.wgmma_wait<0>();
  });
  expect_misuse("accumulators", [](EmulatedMachine& m) {
    float d[32] = {};
    const uint32_t a[4] = {};
    m.wgmma_fence();
    m.wgmma<WgmmaType::kBF16>(d, a, operand(m), false);
    m.wgmma_commit();
    d[3] = 0.0F;
    m.wgmma_wait<0>();
  });
}

TEST(EmulatedWgmmaTest, NoticesSharedMemoryThatChangesInFlight) {
  expect_misuse("shared memory changed", [](EmulatedMachine& m) {
    write_operand(m);
    m.sync();
    float d[32] = {};
    const uint32_t a[4] = {};
    m.wgmma_fence();
    m.wgmma<WgmmaType::kBF16>(d, a, operand(m), false);
    m.wgmma_commit();
    m.sync();
    if (m.thread() == 9) m.shared()[5] = std::byte{1};
    m.wgmma_wait<0>();
  });
}

TEST(EmulatedWgmmaTest, RefusesWarpgroupsThatDisagree) {
  expect_misuse("different products", [](EmulatedMachine& m) {
    float d[32] = {};
    const uint32_t a[4] = {};
    m.wgmma_fence();
    m.wgmma<WgmmaType::kBF16>(d, a, operand(m), m.thread() != 3);
    m.wgmma_commit();
    m.wgmma_wait<0>();
  });
  expect_misuse("wait for each other for ever", [](EmulatedMachine& m) {
    if (m.thread() >= 96) return;
    m.wgmma_wait<0>();
  });
  expect_misuse("in flight", [](EmulatedMachine& m) {
    float d[32] = {};
    const uint32_t a[4] = {};
    m.wgmma_fence();
    m.wgmma<WgmmaType::kBF16>(d, a, operand(m), false);
    m.wgmma_commit();
  });
}

TEST(EmulatedWgmmaTest, RefusesADescriptorThatLeadsOutside) {
  expect_misuse("outside shared memory", [](EmulatedMachine& m) {
    float d[32] = {};
    const uint32_t a[4] = {};
    m.wgmma_fence();
    m.wgmma<WgmmaType::kBF16>(
        d, a, shared_matrix_descriptor({m.shared_address(m.shared()), 128, 2048}), false);
    m.wgmma_commit();
    m.wgmma_wait<0>();
  });
}

// One thread copies, all wait: the bytes are there after the wait and not before.
TEST(EmulatedBarrierTest, BytesAreThereAfterThePhase) {
  alignas(16) static const std::array<uint32_t, 8> kSource = {1, 2, 3, 4, 5, 6, 7, 8};
  for (uint64_t seed = 1; seed < 20; ++seed) {
    run_emulated({.blocks = 2, .threads = 64, .shared_bytes = 1024}, seed, [](EmulatedMachine& m) {
      auto* barrier = reinterpret_cast<uint64_t*>(m.shared());
      auto* words = reinterpret_cast<uint32_t*>(m.shared() + 64);
      if (m.thread() == 0) {
        m.init_barrier(barrier, 1);
        m.publish_barriers();
      }
      m.sync();
      for (uint32_t phase = 0; phase < 3; ++phase) {
        if (m.thread() == 1) {
          m.arrive_expecting(barrier, 32);
          m.copy_bulk(words, kSource.data(), 16, barrier);
          m.copy_bulk(words + 4, kSource.data() + 4, 16, barrier);
          EXPECT_EQ(words[0], 0xffffffffu);
        }
        m.wait_barrier(barrier, phase & 1u);
        EXPECT_EQ(words[0], 1u);
        EXPECT_EQ(words[7], 8u);
        m.sync();
      }
    });
  }
}

void expect_barrier_misuse(const char* text,
                           const std::function<void(EmulatedMachine&, uint64_t*)>& body) {
  expect_error(
      [&] {
        run_emulated({.blocks = 1, .threads = 32, .shared_bytes = 1024}, 3,
                     [&](EmulatedMachine& m) {
                       auto* barrier = reinterpret_cast<uint64_t*>(m.shared());
                       if (m.thread() == 0) m.init_barrier(barrier, 1);
                       m.sync();
                       if (m.thread() == 0) body(m, barrier);
                     });
      },
      ErrorCode::kInternal, {text});
}

TEST(EmulatedBarrierTest, NoticesMisuse) {
  alignas(16) static const std::array<uint32_t, 4> kSource = {};
  expect_barrier_misuse("published",
                        [](EmulatedMachine& m, uint64_t* barrier) { m.arrive(barrier); });
  expect_barrier_misuse(
      "initialised", [](EmulatedMachine& m, uint64_t* barrier) { m.wait_barrier(barrier + 1, 0); });
  expect_barrier_misuse("for ever", [](EmulatedMachine& m, uint64_t* barrier) {
    m.publish_barriers();
    m.wait_barrier(barrier, 0);
  });
  expect_barrier_misuse("expects", [](EmulatedMachine& m, uint64_t* barrier) {
    m.publish_barriers();
    m.copy_bulk(m.shared() + 64, kSource.data(), 16, barrier);
  });
  expect_barrier_misuse("multiples of 16", [](EmulatedMachine& m, uint64_t* barrier) {
    m.publish_barriers();
    m.arrive_expecting(barrier, 16);
    m.copy_bulk(m.shared() + 68, kSource.data(), 16, barrier);
  });
  expect_barrier_misuse("outside shared", [](EmulatedMachine& m, uint64_t* barrier) {
    m.publish_barriers();
    m.arrive_expecting(barrier, 16);
    m.copy_bulk(m.shared() + 1024, kSource.data(), 16, barrier);
  });
  expect_barrier_misuse("bytes that never came", [](EmulatedMachine& m, uint64_t* barrier) {
    m.publish_barriers();
    m.arrive_expecting(barrier, 32);
    m.copy_bulk(m.shared() + 64, kSource.data(), 16, barrier);
  });
  expect_barrier_misuse("more arrivals", [](EmulatedMachine& m, uint64_t* barrier) {
    m.publish_barriers();
    m.arrive_expecting(barrier, 16);
    m.arrive(barrier);
  });
}

}  // namespace
}  // namespace gantry::test
