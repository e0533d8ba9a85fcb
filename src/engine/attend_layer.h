// One layer's attention over one sequence, as a selection says: in pieces of rows, and of some rows only where the
// selection names them.
#pragma once

#include <functional>

#include "attention/device.h"
#include "methods/method.h"

namespace winnow {

struct LayerCall {
  HeadsView o{};                        // [n_rows, n_head, head_dim]; may be the site's q
  const float* skip = nullptr;          // see AttnArgs
  AttnCounts* counts = nullptr;         // added to
  std::function<void()> after_piece{};  // what must not wait for a whole layer; may throw
};

/// Attention of the site's rows. Rows that the selection leaves out get o = 0, and what they might have seen counts as
/// permitted.
void attend_layer(Device& device, const Site& site, const Selection& selection, const LayerCall& call);

}  // namespace winnow
