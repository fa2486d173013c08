#pragma once

// Plain data only: files that are compiled for one instruction set include this and nothing else of
// ours, so that no shared inline code is compiled with their flags.

#include <cstddef>
#include <cstdint>

namespace gantry {

/// `peak_read` takes whole blocks of this many bytes.
inline constexpr int64_t kPeakReadBlock = 512;

// Loops that keep one unit of one core as busy as it can be, on the calling thread. Their results
// are thrown away, in a way that the compiler cannot see.
//
// peak_read: reads `bytes`, a multiple of kPeakReadBlock, once and in order, from a 64-byte aligned
// address.
// peak_fma, peak_dot_*: `steps` times some FLOP, all independent enough to hide their latency; the
// constant beside each is the FLOP of one step.

namespace scalar {
void peak_read(const std::byte* begin, int64_t bytes) noexcept;
inline constexpr int64_t kPeakFmaFlop = int64_t{14} * 4 * 2;
void peak_fma(int64_t steps) noexcept;
}  // namespace scalar

namespace avx2 {
void peak_read(const std::byte* begin, int64_t bytes) noexcept;
inline constexpr int64_t kPeakFmaFlop = int64_t{12} * 8 * 2;
void peak_fma(int64_t steps) noexcept;
}  // namespace avx2

namespace avx512 {
void peak_read(const std::byte* begin, int64_t bytes) noexcept;
inline constexpr int64_t kPeakFmaFlop = int64_t{16} * 16 * 2;
void peak_fma(int64_t steps) noexcept;
/// Needs AVX512_BF16.
inline constexpr int64_t kPeakDotFlop = int64_t{16} * 32 * 2;
void peak_dot_bf16(int64_t steps) noexcept;
/// Needs AVX512_VNNI. A step is 16 products of 64 bytes.
inline constexpr int64_t kPeakInt8Op = int64_t{16} * 64 * 2;
void peak_dot_int8(int64_t steps) noexcept;
}  // namespace avx512

namespace amx {
/// Needs AMX-BF16 and the kernel's permission to use tiles.
inline constexpr int64_t kPeakDotFlop = int64_t{4} * 16 * 16 * 32 * 2;
void peak_dot_bf16(int64_t steps) noexcept;
}  // namespace amx

}  // namespace gantry
