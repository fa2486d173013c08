#pragma once

// What this process is doing, for the last words of a process that is told to end.

#include <string_view>

#include "parallel/communicator.h"

namespace gantry::cli {

/// From now on SIGTERM prints rank, phase, layer and the communicator's operation to stderr before
/// the process ends as it would have.
/// @param prefix of the line, at most 40 characters: "rank 3: "
void print_work_on_sigterm(std::string_view prefix);

/// Notes that a phase of a layer begins. Any thread.
/// @param phase a string literal
void note_work(const char* phase, int layer) noexcept;

/// The communicator whose operation is printed; null: none. It must be gone from here before it is
/// destroyed.
void note_communicator(const Communicator* world) noexcept;

}  // namespace gantry::cli
