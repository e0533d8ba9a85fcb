// The last rows of a prompt hold what is asked about it. Wherever a selection would keep these few from what they look
// for, letting them see everything costs little: 128 of 32,768 rows are 0.8 % of the attention. StreamingLLM's pattern
// with this is what is elsewhere called Tri-shape.
#pragma once

#include "methods/method.h"

namespace winnow {

/// The selection with the prompt's last `n` rows seeing everything, and with them the rows that share a query block
/// with one of them. Of a chunk, those of these rows that it holds. Rows that did not attend do so now.
Selection with_full_rows(Selection selection, const Site& site, int64_t n);

}  // namespace winnow
