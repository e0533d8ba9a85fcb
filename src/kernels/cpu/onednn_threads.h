// oneDNN spreads a primitive over OpenMP's threads. winnow has its own, each of which runs primitives of its own.
#pragma once

namespace winnow::cpu {

/// From now on oneDNN's primitives that the calling thread runs stay on that thread. Cheap after the first call.
void keep_onednn_on_this_thread();

}  // namespace winnow::cpu
