// Whether a prompt will fit into memory, guessed before hours are spent on it.
#pragma once

#include <cstdint>

#include "engine/engine.h"

namespace winnow {

/// Bytes that may still be taken where the engine's device computes: of the host, the least of the system's free
/// memory, the container's limit and the process's own; of a GPU, what is free there.
int64_t available_bytes(Engine& engine);

/// About what a sequence of `n_tokens` takes on top of the mapped weights: keys and values, the activations of one
/// layer, one layer's unpacked weights (on a GPU all weights that are not there yet), a row of logits.
int64_t needed_bytes(Engine& engine, int64_t n_tokens);

}  // namespace winnow
