// Attention on the GPU, below the Device interface: plain pointers into device memory and launches on a stream. The
// contract (what a row sees, how tiles vote, what is counted) is that of attention/types.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "attention/types.h"
#include "kernels/cuda/stream.h"

namespace winnow::cuda {

/// Keys and values of one layer as the kernels for many rows read them: bf16, each kv head contiguous, whatever the
/// cache stores. Rows from n_slots on, and values from head_dim on, are zero.
struct StagedKv {
  const __nv_bfloat16* k = nullptr;  // [n_head_kv, capacity, dim]
  const __nv_bfloat16* v = nullptr;  // the same
  const float* bias = nullptr;       // [n_head_kv, capacity] natural log, added to the logit; null: 0
  const int32_t* n_slots = nullptr;  // [n_head_kv], device memory
  int64_t capacity = 0;              // slots of each head, a multiple of 128; at least the longest head's n_slots
  int32_t n_head_kv = 0;
  int32_t dim = 0;  // 64, 128 or 256: head_dim rounded up
};

/// A Selection's lists in device memory; see attention/types.h.
struct Lists {
  int32_t block_q = 64, block_k = 64;
  int32_t n_head = 0;
  int32_t n_block_q = 0;
  const int32_t* block_ptr = nullptr;
  const int32_t* block_begin = nullptr;
  const int32_t* column_ptr = nullptr;
  const int32_t* column_end = nullptr;  // [n_head * n_block_q]: column_ptr + 1 where lists follow one another
  const int32_t* column = nullptr;
  int32_t group = 1;  // query heads that share a list

  __host__ __device__ int64_t list(int32_t head, int32_t block) const {
    return static_cast<int64_t>(n_head == 1 ? 0 : head / group) * n_block_q + block;
  }
};

/// Rows of several heads in device memory, float or bf16; see HeadsView.
struct HeadRows {
  void* data = nullptr;
  Type type = Type::bf16;
  int64_t n_rows = 0;
  int32_t n_head = 0;
  int32_t head_dim = 0;
  int64_t stride = 0;  // values from one row to the next
};

/// 64, 128 or 256: StagedKv::dim of heads of this size. Throws Error where it is none that kernels take.
int32_t padded_head(int32_t head_dim);

inline HeadRows rows_of(const HeadsView& view) {
  return {view.data, view.type, view.n_rows, view.n_head, view.head_dim, view.stride};
}

/// Attention of many rows. All pointers are device memory.
struct ManyRows {
  HeadRows q, o;  // o may be q itself: a row's heads are read before they are written
  StagedKv kv;
  const int2* visible = nullptr;  // [n_head_kv, n_rows]: the row sees slots [x, y); both ascend with the row
  const Lists* lists = nullptr;   // null: everything. The struct itself is host memory, its pointers device memory
  int64_t first_row = 0;          // q's row 0 is this row of the lists
  float scale = 1, softcap = 0;
  const float* skip = nullptr;             // [n_head] ln(lambda); null: off
  float* lse = nullptr;                    // [n_rows, n_head] natural log; null: not wanted
  unsigned long long* computed = nullptr;  // one counter, added to: (row, slot, head) triples; null: not wanted
  Stream stream = {};
};

/// wgmma and TMA, compute capability 9.0 only.
void attend_hopper(const ManyRows& call);
/// mma.sync and cp.async, compute capability 8.0 and later. Same results.
void attend_portable(const ManyRows& call);

/// Attention of few rows (1 to 16) straight from the cache's blocks, split over slots and merged in order.
struct FewRows {
  HeadRows q, o;
  Type k_type = Type::f16, v_type = Type::f16;
  const std::byte* const* k = nullptr;  // device memory: block addresses of all kv heads, head h's from first_block[h]
  const std::byte* const* v = nullptr;
  const int32_t* first_block = nullptr;  // [n_head_kv]
  const int32_t* n_slots = nullptr;      // [n_head_kv]
  const float* bias = nullptr;           // [n_head_kv, bias_stride] or null
  int64_t bias_stride = 0;
  int32_t n_head_kv = 0;
  int32_t max_slots = 0;          // host's knowledge: the longest head
  const int2* visible = nullptr;  // [n_head_kv, n_rows]
  const Lists* lists = nullptr;
  int64_t first_row = 0;
  float scale = 1, softcap = 0;
  const float* skip = nullptr;
  float* lse = nullptr;
  unsigned long long* computed = nullptr;
  std::byte* work = nullptr;  // few_rows_work_bytes(call) of device memory
  Stream stream = {};
};
size_t few_rows_work_bytes(const FewRows& call);
void attend_few(const FewRows& call);

/// What of a cache is staged: blocks as in FewRows, all types of KvView.
struct StageArgs {
  Type k_type = Type::f16, v_type = Type::f16;
  const std::byte* const* k = nullptr;
  const std::byte* const* v = nullptr;
  const int32_t* first_block = nullptr;  // [n_head_kv]
  const int32_t* n_slots = nullptr;      // [n_head_kv]
  int32_t n_head_kv = 0;
  int32_t head_dim = 0;
  int32_t dim = 0;       // padded
  int64_t capacity = 0;  // of `k_out` and `v_out` [n_head_kv, capacity, dim]
  __nv_bfloat16* k_out = nullptr;
  __nv_bfloat16* v_out = nullptr;
  Stream stream = {};
};
void stage_kv(const StageArgs& args);

/// Slots that rows see. position [n_head_kv, capacity] ascending, or null: slot j stands at j; limit [n_rows].
struct VisibleArgs {
  const int32_t* position = nullptr;
  const int32_t* n_slots = nullptr;  // [n_head_kv]
  int64_t capacity = 0;
  int32_t n_head_kv = 0;
  const int32_t* limit = nullptr;
  int64_t n_rows = 0;
  int32_t window = 0;
  int2* visible = nullptr;                  // [n_head_kv, n_rows], written
  unsigned long long* permitted = nullptr;  // one counter: group * sum over heads and rows of y - x is added; or null
  int32_t group = 1;
  Stream stream = {};
};
void visible_slots(const VisibleArgs& args);

/// into = merge(into, from) by log-sum-exp, from's mass times gain; see Ops::merge. lse [n_rows, n_head].
void merge(const HeadRows& into, float* into_lse, const HeadRows& from, const float* from_lse, float gain,
           cudaStream_t stream);

}  // namespace winnow::cuda
