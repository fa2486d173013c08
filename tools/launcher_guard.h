#pragma once

// Ends a launcher that locks itself up. When a rank dies while it connects to the PMIx server
// inside mpirun (Open MPI 4.1), mpirun ends the other ranks and then, in about one of ten such
// deaths, waits for its own server for ever: neither SIGTERM nor mpirun --timeout end it, and no
// rank is left that could.

#include <sys/types.h>

namespace gantry::cli {

/// While this object lives (MPI_Init), a small process of its own watches. If this process dies
/// meanwhile, and mpirun (or orted) that started it is still there 5 s after its last child, the
/// guard says so on mpirun's stderr and kills it. Does nothing where the parent is no such
/// launcher, or where GANTRY_KEEP_LAUNCHER is set. Make it before threads are started.
class LauncherGuard {
 public:
  explicit LauncherGuard(int rank);
  LauncherGuard(const LauncherGuard&) = delete;
  LauncherGuard& operator=(const LauncherGuard&) = delete;
  /// The dangerous time is over: the guard ends.
  ~LauncherGuard();

 private:
  pid_t guard_ = -1;
  int line_ = -1;
};

}  // namespace gantry::cli
