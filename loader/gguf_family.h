#pragma once

#include "loader/family_spec.h"

namespace gantry {

/// The row of the family table that serves GGUF files: llama.cpp names tensors alike in every
/// architecture. Internal.
FamilySpec gguf_family();

}  // namespace gantry
