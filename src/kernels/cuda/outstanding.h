// select_outstanding on the GPU: attention/outstanding.h for all heads at once, below the Device interface.
#pragma once

#include "kernels/cuda/attention.h"

namespace winnow::cuda {

/// The rows that vote in select_outstanding: the last of every `step` rows of a whole block; of the last, shorter block
/// the last row and every step-th before it.
struct Voters {
  int64_t n_rows = 0;
  int32_t step = 1;
  __host__ __device__ int64_t in_whole_blocks() const { return n_rows / kBlockSlots * (kBlockSlots / step); }
  /// The first of the last, shorter block's.
  __host__ __device__ int64_t tail_row() const {
    const int64_t n = n_rows % kBlockSlots;
    return n_rows - 1 - ((n + step - 1) / step - 1) * step;
  }
  __host__ __device__ int64_t n() const { return in_whole_blocks() + (n_rows % kBlockSlots + step - 1) / step; }
  __host__ __device__ int64_t row(int64_t voter) const {
    const int64_t n_whole = in_whole_blocks();
    return voter < n_whole ? voter * step + step - 1 : tail_row() + (voter - n_whole) * step;
  }
};

/// All pointers are device memory. Logits are products in bf16, with the slots' bias, which is added before the cap.
struct OutstandingCall {
  HeadRows q;
  StagedKv kv;
  const int2* visible = nullptr;  // [n_head_kv, n_rows]: the row sees slots [.., y)
  Voters voters;
  float scale = 1, softcap = 0;
  int32_t sink_blocks = 0, local_blocks = 0;
  const float* log_tau = nullptr;  // [n_head]; -infinity: everything is marked
  int32_t n_block = 0;             // of kBlockSlots slots
  uint32_t* marks = nullptr;       // [n_head, blocks of rows, ceil(n_block / 32)], written
  Stream stream = {};

  __host__ __device__ int32_t mark_words() const { return (n_block + 31) / 32; }
  __host__ __device__ int32_t n_block_q() const {
    return static_cast<int32_t>((q.n_rows + kBlockSlots - 1) / kBlockSlots);
  }
};
void mark_outstanding(const OutstandingCall& call);

}  // namespace winnow::cuda
