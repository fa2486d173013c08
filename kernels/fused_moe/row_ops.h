#pragma once

// Plain data only, as in panel_gemm.h.

#include <cstddef>
#include <cstdint>

namespace gantry {

/// Copies rows of x into the order and the format that a GEMM kernel reads.
/// rows[r, i] = x[token[r], order[i]] * factors[i] * scale[choice[r]], rounded to bf16 if wanted;
/// zero from n to padded.
struct GatherRows {
  const float* x;         ///< [T, n]
  const int32_t* token;   ///< [num_rows], or null: row r is token r
  const int32_t* choice;  ///< [num_rows] index into scale; null like token
  const float* scale;     ///< or null for 1
  std::byte* rows;        ///< [num_rows, stride bytes], written
  int64_t stride;         ///< bytes from row to row
  int64_t num_rows;
  int64_t n;
  int64_t padded;                  ///< columns written, at least n
  bool round_bf16;                 ///< values are rounded to bf16 ...
  bool store_bf16;                 ///< ... and stored as bf16 (implies round_bf16), else as f32
  const int32_t* order = nullptr;  ///< [n] columns of x; or null: column i is i
  const float* factors = nullptr;  ///< [n], by column of the row; or null for 1
};

/// Applies an activation to a block of w13 sums: out[r, i] = f(gate, up) * factors[i], as f32 or
/// bf16.
/// Gated: gate is c[r, i], up is c[r, 16 + i], i < 16. Else: gate is c[r, i], i < 32.
struct ActivateBlock {
  const float* c;  ///< [num_rows, 32]
  int64_t num_rows;
  const float* bias_gate;  ///< [n] or null
  const float* bias_up;    ///< [n] or null
  std::byte* out;          ///< column 0 of this panel in row 0
  int64_t out_stride;      ///< bytes
  bool gated;
  int64_t n;       ///< columns that exist, at most 16 (gated) or 32
  int64_t padded;  ///< columns to write: those from n on become zero
  bool round_bf16;
  bool store_bf16;
  // The constants of the two activations that ISA files know (see Activation).
  enum class Kind : uint8_t { kSilu, kSwigluOai, kSiluNoMul, kRelu2NoMul, kOther };
  Kind kind;
  float limit;  ///< infinity for none
  float alpha;
  float beta;
  /// Everything else, one row at a time: out[i] = f(gate[i], up[i]) for n values in f32.
  void (*other)(const void* context, int64_t n, const float* gate, const float* up, float* out);
  const void* other_context;
  const float* factors = nullptr;  ///< [n] or null for 1
};

/// Adds a block of w2 sums to its tokens: out[token[r], i] += weight[choice[r]] * (c[r, i] +
/// bias[i]) in ascending r, by one multiplication and one addition (each rounded).
struct AccumulateBlock {
  const float* c;  ///< [num_rows, 32]
  int64_t num_rows;
  const float* bias;      ///< [n] or null
  const int32_t* token;   ///< [num_rows], or null: row r is token `first_token` + r
  const int32_t* choice;  ///< [num_rows], or null like token
  int64_t first_token;
  const float* weight;  ///< or null for 1
  float* out;           ///< column 0 of this panel in token 0
  int64_t out_stride;   ///< f32 elements
  int64_t n;            ///< columns that exist, at most 32
};

/// Rounds rows to int8, each with a scale of its own. Codes stand at the start of a row, its
/// Int8RowTail at `tail`. code = x / scale rounded to nearest even, with
///
///   scale = static_scale, codes saturate at -128 and 127; infinity saturates, too
///   scale = amax / 127 where that is 0; a row of zeros stays zeros
///
/// A row with NaN (and without static scale: or infinity) gets the scale NaN.
struct QuantizeInt8 {
  const float* x;         ///< row r: x + (token[r], or r) * x_stride. May be `rows`
  int64_t x_stride;       ///< f32 elements
  const int32_t* token;   ///< [num_rows], or null: row r is token r
  const int32_t* choice;  ///< [num_rows] index into factor; null like token
  const float* factor;    ///< that x is multiplied by; or null for 1
  int64_t n;              ///< columns of x
  std::byte* rows;        ///< [num_rows, stride bytes], written
  int64_t stride;
  int64_t num_rows;
  int64_t padded;      ///< codes of a row: zero from n on; a multiple of 32
  int64_t tail;        ///< bytes from the start of a row
  int64_t group;       ///< codes of one group sum behind the tail, a multiple of 8; 0: no sums
  bool nibble_order;   ///< codes in the order of codes of 4 bits, see Int8RowTail
  const float* amax;   ///< [num_rows] largest magnitudes; or null: those of x
  float static_scale;  ///< or 0
};

/// What surrounds the GEMMs, for one instruction set.
struct RowOps {
  void (*gather)(const GatherRows& call) noexcept;
  void (*activate)(const ActivateBlock& call) noexcept;
  void (*accumulate)(const AccumulateBlock& call) noexcept;
  void (*quantize_int8)(const QuantizeInt8& call) noexcept;
};

namespace scalar {
void quantize_int8(const QuantizeInt8& call) noexcept;
extern const RowOps kRowOps;
}  // namespace scalar
namespace avx2 {
extern const RowOps kRowOps;
}  // namespace avx2
namespace avx512 {
void quantize_int8(const QuantizeInt8& call) noexcept;
extern const RowOps kRowOps;
}  // namespace avx512

}  // namespace gantry
