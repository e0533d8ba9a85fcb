// A budget of slots for each block of rows, given to the chunks of keys whose means score best (DHSA, arXiv
// 2510.24606).
#pragma once

#include <vector>

#include "attention/lists.h"
#include "attention/ops.h"

namespace winnow {

/// What blocks of rows are scored by.
struct ChunkMeans {
  std::vector<float> queries;  // [n_block_q, head_dim] means
  std::vector<float> keys;     // [n_chunk, head_dim] means times the root of a chunk's length
};

/// -> [n_kv_head] of ChunkMeans::keys
std::vector<std::vector<float>> chunk_keys(Ops& ops, const ChunkArgs& args);
/// The lists of query head `head`, or of all that share its slots.
void push_chunks(Ops& ops, const ChunkArgs& args, int32_t head, const ChunkMeans& means, HeadLists& lists);

}  // namespace winnow
