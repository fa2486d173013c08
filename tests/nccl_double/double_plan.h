#pragma once

#include <string>

#include "parallel/nccl_abi.h"

namespace gantry::nccl_double {

/// What goes wrong at one point.
struct Fault {
  enum Kind {
    kNone,
    kProgress,  ///< nothing moves for `polls` polls
    kHang,      ///< nothing ever moves
    kError,     ///< a poll finds `result`
    kCall,      ///< the call itself returns `result`
  };
  Kind kind = kNone;
  int polls = 0;
  nccl::Result result = nccl::kSuccess;
};

/// What a rank's library does, from a text of the form "key=value,...":
///   version=22000         what ncclGetVersion says
///   rank=1                the faults are those of this rank only
///   init=F, op=3:F, finalize=F
/// where a fault F is progress:20, hang, error:2 or call:2 (results as NCCL numbers them), and op=3
/// is the fourth group of operations of the communicator.
struct Plan {
  int version = 22809;
  int rank = -1;
  Fault init;
  int op_index = -1;
  Fault op;
  Fault finalize;
};

/// @return what is wrong with the text, or nothing
std::string parse_plan(const std::string& text, Plan& plan);

/// The plan of this thread (nccl_double_set_plan), else that of the environment variable
/// GANTRY_NCCL_DOUBLE. Ends the process with a message if that cannot be read.
Plan current_plan();

}  // namespace gantry::nccl_double
