#pragma once

// The two matrix products of MoE experts by cuBLAS' grouped GEMM: what a bench compares with.
// cuBLAS is looked for when it is asked for; nothing links to it.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/device.h"

namespace gantry::cli {

/// Experts of one layer, plain bf16, with the weights in device memory:
///
///   mid[r, 0 .. S J) = x[r] W13[e]^T,   y[r] = mid[r, 0 .. J) W2[e]^T   for the rows r of expert e
///
/// No activation, no routing, no sum over a token's experts: less than what a layer does.
/// All pointers are the device's; row-major bf16.
struct CublasExpertsShape {
  int64_t num_experts = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t parts = 2;  ///< S: 2 with gate and up, else 1
  int64_t max_rows = 0;
};

class CublasExperts {
 public:
  /// Loads the library and makes weights up: multiples of 2^-6 from -1 to 1, the same for each
  /// `seed`.
  /// @param library file name or path for dlopen; empty: libcublas.so.13, then .12
  /// @throws Error kUnsupported if there is no such library, or it has no grouped GEMM
  CublasExperts(std::shared_ptr<Device> device, const std::string& library,
                const CublasExpertsShape& shape, uint64_t seed);
  CublasExperts(const CublasExperts&) = delete;
  CublasExperts& operator=(const CublasExperts&) = delete;
  ~CublasExperts();

  /// Prepares a batch: pointers and sizes are copied to the device.
  /// @param rows of each expert, in this order one after the other
  /// @throws Error kInvalidArgument if there are more than max_rows
  void set_rows(const std::vector<int64_t>& rows);
  /// Enqueues both products. @throws Error kCuda if cuBLAS refuses
  void run(StreamHandle stream);

  // What it multiplies, for tests.
  [[nodiscard]] uint16_t* x() const;
  [[nodiscard]] const uint16_t* w13() const;
  [[nodiscard]] const uint16_t* w2() const;
  [[nodiscard]] const uint16_t* y() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace gantry::cli
