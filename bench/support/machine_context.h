#pragma once

namespace gantry::bench {

/// Adds what a number depends on to the report: CPU, instruction sets, threads.
void add_machine_context();

}  // namespace gantry::bench
