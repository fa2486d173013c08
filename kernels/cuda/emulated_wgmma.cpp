#include "kernels/cuda/emulated_wgmma.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/cuda/float_bits.h"
#include "kernels/cuda/mma_fragments.h"

namespace gantry {
namespace {

constexpr uint32_t kPoison = 0xffffffffu;

bool poisoned(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(),
                     [](float v) { return f32_to_bits(v) == kPoison; });
}

std::byte shared_byte(std::span<const std::byte> shared, uint32_t address) {
  const uint32_t offset = address - kEmulatedSharedBase;
  GANTRY_CHECK(address >= kEmulatedSharedBase && offset < shared.size(), ErrorCode::kInternal,
               "emulated wgmma: a descriptor leads outside shared memory");
  return shared[offset];
}

// FNV-1a
uint64_t hash_operand(uint64_t descriptor, int rows, std::span<const std::byte> shared) {
  uint64_t hash = 1469598103934665603u;
  for (int row = 0; row < rows; ++row) {
    for (int byte = 0; byte < 32; ++byte) {
      hash ^= static_cast<uint64_t>(shared_byte(shared, descriptor_address(descriptor, row, byte)));
      hash *= 1099511628211u;
    }
  }
  return hash;
}

float value_of(WgmmaType type, uint32_t bits) {
  switch (type) {
    case WgmmaType::kBF16:
      return bf16_bits_to_f32(bits);
    case WgmmaType::kF16:
      return f16_bits_to_f32(bits);
    case WgmmaType::kE4M3:
      break;
  }
  return e4m3_bits_to_f32(bits);
}

// B [rows, k] as numbers.
std::vector<double> read_operand(uint64_t descriptor, WgmmaType type, int rows,
                                 std::span<const std::byte> shared) {
  const int depth = wgmma_depth(type);
  const int width = 32 / depth;
  std::vector<double> values;
  for (int row = 0; row < rows; ++row) {
    for (int k = 0; k < depth; ++k) {
      uint32_t bits = 0;
      for (int b = 0; b < width; ++b) {
        const uint32_t address = descriptor_address(descriptor, row, k * width + b);
        bits |= static_cast<uint32_t>(shared_byte(shared, address)) << (8 * b);
      }
      values.push_back(value_of(type, bits));
    }
  }
  return values;
}

}  // namespace

uint32_t descriptor_address(uint64_t descriptor, int row, int byte) {
  const auto field = [descriptor](int bit) {
    return static_cast<uint32_t>(descriptor >> bit & 0x3fffu) << 4;
  };
  const uint32_t start = field(0);
  const uint32_t leading = field(16);
  const uint32_t stride = field(32);
  const auto r = static_cast<uint32_t>(row);
  const auto b = static_cast<uint32_t>(byte);
  const auto mode = static_cast<uint32_t>(descriptor >> 62);
  if (mode == 0) return start + r / 8 * stride + b / 16 * leading + r % 8 * 16 + b % 16;
  const uint32_t width = 256u >> mode;  // 1: 128, 2: 64, 3: 32 bytes
  const uint32_t address = start + r / 8 * stride + r % 8 * width + b;
  return address ^ (address >> 7 & (width / 16 - 1)) << 4;
}

void EmulatedWgmma::issue(WgmmaType type, std::span<float> d, const uint32_t (&a)[4], uint64_t b,
                          bool accumulate, std::span<const std::byte> shared,
                          bool first_of_warpgroup) {
  GANTRY_CHECK(fenced_, ErrorCode::kInternal,
               "emulated wgmma: issued without a wgmma.fence after registers may have changed");
  Sums& sums = sums_of(d);
  if (sums.in_flight == 0) {
    sums.values.assign(d.begin(), d.end());
    std::fill(d.begin(), d.end(), bits_to_f32(kPoison));
  }
  GANTRY_CHECK(poisoned(d), ErrorCode::kInternal,
               "emulated wgmma: accumulators were written while a product was in flight");
  ++sums.in_flight;
  const uint64_t hash =
      first_of_warpgroup ? hash_operand(b, static_cast<int>(2 * d.size()), shared) : 0;
  open_.push_back({type, d, a, {a[0], a[1], a[2], a[3]}, b, accumulate, hash});
}

void EmulatedWgmma::commit() {
  groups_.push_back(std::exchange(open_, {}));
  fenced_ = false;
}

EmulatedWgmma::Sums& EmulatedWgmma::sums_of(std::span<float> d) {
  for (Sums& sums : sums_) {
    if (sums.d.data() == d.data() && sums.d.size() == d.size()) return sums;
  }
  sums_.push_back({d, {}, 0});
  return sums_.back();
}

void EmulatedWgmma::finish(const Call& call) {
  GANTRY_CHECK(std::equal(call.bits.begin(), call.bits.end(), call.a), ErrorCode::kInternal,
               "emulated wgmma: registers of A were written while a product was in flight");
  Sums& sums = sums_of(call.d);
  if (--sums.in_flight > 0) return;
  GANTRY_CHECK(poisoned(call.d), ErrorCode::kInternal,
               "emulated wgmma: accumulators were written while a product was in flight");
  std::copy(sums.values.begin(), sums.values.end(), call.d.begin());
}

void EmulatedWgmma::land(const std::array<EmulatedWgmma*, kWarpgroup>& threads, int newest,
                         std::span<const std::byte> shared) {
  const EmulatedWgmma& first = *threads[0];
  for (const EmulatedWgmma* thread : threads) {
    GANTRY_CHECK(thread->groups_.size() == first.groups_.size(), ErrorCode::kInternal,
                 "emulated wgmma: threads of a warpgroup committed different numbers of groups");
  }
  while (first.groups_.size() > static_cast<size_t>(newest)) {
    for (size_t i = 0; i < first.groups_.front().size(); ++i) {
      const Call& call = first.groups_.front()[i];
      const int depth = wgmma_depth(call.type);
      const auto columns = static_cast<int>(2 * call.d.size());
      GANTRY_CHECK(hash_operand(call.b, columns, shared) == call.b_hash, ErrorCode::kInternal,
                   "emulated wgmma: shared memory changed while a product read it");
      const std::vector<double> b = read_operand(call.b, call.type, columns, shared);
      for (size_t warp = 0; warp < 4; ++warp) {
        std::array<std::array<double, 32>, 16> a{};
        for (int lane = 0; lane < 32; ++lane) {
          const auto& group = threads[warp * 32 + static_cast<size_t>(lane)]->groups_.front();
          GANTRY_CHECK(i < group.size() && group[i].b == call.b && group[i].type == call.type &&
                           group[i].d.size() == call.d.size() &&
                           group[i].accumulate == call.accumulate,
                       ErrorCode::kInternal,
                       "emulated wgmma: threads of a warpgroup issued different products");
          for (int e = 0; e < depth / 2; ++e) {
            const bool bytes = call.type == WgmmaType::kE4M3;
            const FragmentPlace place = bytes ? wgmma_a8_place(lane, e) : mma_a_place(lane, e);
            const uint32_t word = group[i].bits[static_cast<size_t>(bytes ? e / 4 : e / 2)];
            const uint32_t bits =
                bytes ? word >> (8 * (e % 4)) & 0xffu : word >> (16 * (e % 2)) & 0xffffu;
            a[static_cast<size_t>(place.row)][static_cast<size_t>(place.col)] =
                value_of(call.type, bits);
          }
        }
        for (int lane = 0; lane < 32; ++lane) {
          EmulatedWgmma& thread = *threads[warp * 32 + static_cast<size_t>(lane)];
          const Call& own = thread.groups_.front()[i];
          std::vector<float>& values = thread.sums_of(own.d).values;
          for (size_t v = 0; v < values.size(); ++v) {
            const FragmentPlace place = mma_c_place(lane, static_cast<int>(v % 4));
            const size_t column = v / 4 * 8 + static_cast<size_t>(place.col);
            double sum = call.accumulate ? values[v] : 0.0;
            const auto& row = a[static_cast<size_t>(place.row)];
            for (int k = 0; k < depth; ++k) {
              sum += row[static_cast<size_t>(k)] *
                     b[column * static_cast<size_t>(depth) + static_cast<size_t>(k)];
            }
            values[v] = static_cast<float>(sum);
          }
        }
      }
    }
    for (EmulatedWgmma* thread : threads) {
      for (const Call& call : thread->groups_.front())
        thread->finish(call);
      thread->groups_.pop_front();
    }
  }
}

}  // namespace gantry
