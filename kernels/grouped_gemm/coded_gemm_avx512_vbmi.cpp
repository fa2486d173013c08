// FP8 panels by vdpbf16ps. Both bytes of a code's bf16 are looked up in tables of 128 entries
// (VBMI), which takes 5 instructions for 64 codes where shifting and adding takes 14.

#include "kernels/grouped_gemm/coded_gemm_avx512.h"
#include "kernels/grouped_gemm/dot_multiply_avx512.h"

namespace gantry::avx512 {
namespace {

struct Tables {
  alignas(64) uint8_t low[128];
  alignas(64) uint8_t high[128];
};

constexpr Tables make_tables() {
  Tables tables = {};
  for (unsigned code = 0; code < 128; ++code) {
    unsigned bits = ((code >> 3) + 120) << 7 | (code & 7) << 4;
    if (code < 8) {  // m * 2^-9
      unsigned exponent = 127 - 9;
      unsigned mantissa = code;
      while (mantissa > 1) {
        mantissa >>= 1;
        ++exponent;
      }
      const unsigned leading = 1u << (exponent - 118);
      bits = code == 0 ? 0 : exponent << 7 | ((code - leading) << 7) / leading;
    }
    tables.low[code] = static_cast<uint8_t>(bits & 0xff);
    tables.high[code] = static_cast<uint8_t>(bits >> 8);
  }
  return tables;
}

constexpr Tables kTables = make_tables();

struct E4M3TableCodes {
  static constexpr int kPairs = 2;
  struct Line {
    __m512i pairs[2];
  };

  [[nodiscard]] Line load(const std::byte* p) const {
    const __m512i line = _mm512_load_si512(p);
    const __m512i low = _mm512_permutex2var_epi8(low_[0], line, low_[1]);
    const __m512i magnitude = _mm512_permutex2var_epi8(high_[0], line, high_[1]);
    constexpr int kMagnitudeOrSign = 0xf8;  // a | (b & c)
    const __m512i high = _mm512_ternarylogic_epi32(
        magnitude, line, _mm512_set1_epi8(static_cast<char>(0x80)), kMagnitudeOrSign);
    return {{_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)}};
  }
  template <int kPair>
  [[nodiscard]] __m512i pair(const Line& line) const {
    return line.pairs[kPair];
  }

 private:
  __m512i low_[2] = {_mm512_load_si512(kTables.low), _mm512_load_si512(kTables.low + 64)};
  __m512i high_[2] = {_mm512_load_si512(kTables.high), _mm512_load_si512(kTables.high + 64)};
};

}  // namespace

void panel_gemm_e4m3_dot(const PanelGemm& call) noexcept {
  coded_gemm<DotMultiply, E4M3TableCodes>(call);
}

void panel_gemm_e4m3_few_rows(const PanelGemm& call) noexcept {
  few_rows_gemm<DotMultiply, E4M3TableCodes>(call);
}

}  // namespace gantry::avx512
