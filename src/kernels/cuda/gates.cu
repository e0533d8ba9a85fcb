// Pooling of rows that are turned back while they are read, a thread for each pair of values; then a warp chooses for a
// block of rows.
#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/gates.h"
#include "kernels/cuda/kth.cuh"
#include "kernels/cuda/turn.cuh"
#include "kernels/cuda/vec_inl.h"

namespace winnow::cuda {
namespace {

constexpr int kPoolThreads = 64;
constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

unsigned blocks_of(int64_t n, int64_t unit) {
  return static_cast<unsigned>((n + unit - 1) / unit);
}

/// Two values of a head that turn together, or one that does not.
struct Pair {
  int32_t first, second;
  float frequency;
  bool turns;

  __device__ Pair(const GateCall& call, int32_t i) {
    turns = i < call.half;
    first = !turns ? call.half + i : call.neox ? i : 2 * i;
    second = !turns ? first : call.neox ? i + call.half : 2 * i + 1;
    frequency = turns ? call.frequency[i] : 0;
  }
  __device__ static int32_t n(const GateCall& call) { return call.q.head_dim - call.half; }

  template <typename T>
  __device__ float2 back(const GateCall& call, const T* row, int32_t position) const {
    const float a = to_float(row[first]);
    if (!turns) return {a, a};
    const float b = to_float(row[second]);
    const float2 turn = turn_of(position, frequency, 1 / call.magnitude);
    return {a * turn.x + b * turn.y, b * turn.x - a * turn.y};
  }
  __device__ float2 forth(const GateCall& call, float2 x, int32_t position) const {
    if (!turns) return x;
    const float2 turn = turn_of(position, frequency, call.magnitude);
    return {x.x * turn.x - x.y * turn.y, x.x * turn.y + x.y * turn.x};
  }
  __device__ void put(float* row, float2 x) const {
    row[first] = x.x;
    if (turns) row[second] = x.y;
  }
};

__device__ int32_t position_of(const GateCall& call, int32_t kv_head, int64_t slot) {
  return call.position == nullptr ? static_cast<int32_t>(slot) : call.position[kv_head * call.position_stride + slot];
}

/// Block blockIdx.x of the rows of head blockIdx.y.
template <typename T>
__global__ void __launch_bounds__(kPoolThreads) pool_queries(const __grid_constant__ GateCall call) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * call.block, end = min(begin + call.block, call.q.n_rows);
  const float share = 1 / static_cast<float>(end - begin);
  const T* head = static_cast<const T*>(call.q.data) + static_cast<int64_t>(blockIdx.y) * call.q.head_dim;
  float* out = call.queries + (static_cast<int64_t>(blockIdx.y) * call.n_block_q + blockIdx.x) * call.q.head_dim;
  for (int32_t i = threadIdx.x; i < Pair::n(call); i += kPoolThreads) {
    const Pair pair(call, i);
    float2 mean = {0, 0};
#pragma unroll 4
    for (int64_t row = begin; row < end; ++row) {
      const float2 x = pair.back(call, head + row * call.q.stride, call.limit[row]);
      mean.x += share * x.x;
      mean.y += share * x.y;
    }
    pair.put(out, pair.forth(call, mean, call.limit[begin]));
  }
}

/// Block blockIdx.x of the slots of kv head blockIdx.y: greatest, least and mean value.
__global__ void __launch_bounds__(kPoolThreads) pool_keys(const __grid_constant__ GateCall call) {
  const auto head = static_cast<int32_t>(blockIdx.y);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * call.block;
  const int64_t end = min(begin + call.block, static_cast<int64_t>(call.kv.n_slots[head]));
  const float share = begin < end ? 1 / static_cast<float>(end - begin) : 0;
  const __nv_bfloat16* keys = call.kv.k + head * call.kv.capacity * call.kv.dim;
  float* out = call.pooled + (static_cast<int64_t>(head) * call.n_block + blockIdx.x) * 3 * call.q.head_dim;
  for (int32_t i = threadIdx.x; i < Pair::n(call); i += kPoolThreads) {
    const Pair pair(call, i);
    float2 most = {0, 0}, least = {0, 0}, mean = {0, 0};
#pragma unroll 4
    for (int64_t slot = begin; slot < end; ++slot) {
      const float2 x = pair.back(call, keys + slot * call.kv.dim, position_of(call, head, slot));
      most = slot == begin ? x : float2{fmaxf(most.x, x.x), fmaxf(most.y, x.y)};
      least = slot == begin ? x : float2{fminf(least.x, x.x), fminf(least.y, x.y)};
      mean.x += share * x.x;
      mean.y += share * x.y;
    }
    pair.put(out, most);
    pair.put(out + call.q.head_dim, least);
    pair.put(out + 2 * call.q.head_dim, mean);
  }
}

/// The key of block blockIdx.x for head blockIdx.y.
__global__ void __launch_bounds__(kPoolThreads) turn_keys(const __grid_constant__ GateCall call) {
  const int32_t kv_head = static_cast<int32_t>(blockIdx.y) / call.group();
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * call.block;
  if (slot >= call.kv.n_slots[kv_head]) return;
  float* key = call.keys + (static_cast<int64_t>(blockIdx.y) * call.n_block + blockIdx.x) * call.q.head_dim;
  for (int32_t i = threadIdx.x; i < call.half; i += kPoolThreads) {
    const Pair pair(call, i);
    pair.put(key, pair.forth(call, {key[pair.first], key[pair.second]}, position_of(call, kv_head, slot)));
  }
}

struct GateKeys {
  const float* scores;
  int32_t n;
  __device__ uint32_t operator()(int32_t c) const { return ordered(scores[c]); }
};

/// A warp for each block of rows of head first + blockIdx.y.
__global__ void __launch_bounds__(kThreads) mark_kernel(const __grid_constant__ GateCall call, int32_t first) {
  __shared__ int32_t counts[kWarps][kKthDigits];
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32, lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t b = static_cast<int32_t>(blockIdx.x) * kWarps + warp;
  if (b >= call.n_block_q) return;
  const int64_t head = first + static_cast<int64_t>(blockIdx.y), kv_head = head / call.group();
  const int64_t row = static_cast<int64_t>(b) * call.block, end = min(row + call.block, call.q.n_rows);
  const int2* visible = call.visible + kv_head * call.q.n_rows;
  const int32_t own = (visible[row].y - 1) / call.block;
  const GateKeys keys = {call.scores + (static_cast<int64_t>(blockIdx.y) * call.n_block_q + b) * call.n_block,
                         (visible[end - 1].y - 1) / call.block + 1};
  float top = -INFINITY, sum = 0;
  for (int32_t c = lane; c < keys.n; c += 32) top = fmaxf(top, keys.scores[c]);
  top = warp_max(top);
  for (int32_t c = lane; c < keys.n; c += 32) sum += expf(keys.scores[c] - top);
  sum = warp_sum(sum);

  const bool all = call.last_dense && b + 2 >= call.n_block_q;
  const float bound = static_cast<float>(call.threshold) * sum;
  int64_t k = call.n_best[kv_head];
  const bool by_number = k > 0;
  const uint32_t border = by_number && k < keys.n ? kth_key(keys, k, counts[warp]) : 0;
  uint32_t* marks = call.marks + (head * call.n_block_q + b) * call.words();
  int64_t n_equal = 0;  // of those before
  float kept = 0;
  for (int32_t word = 0; word < call.words(); ++word) {
    const int32_t c = word * 32 + lane;
    const bool there = c < keys.n;
    const float weight = there ? expf(keys.scores[c] - top) : 0;
    const uint32_t key = there ? keys(c) : 0;
    const uint32_t equal = __ballot_sync(~0U, there && key == border);
    const int64_t rank = n_equal + __popc(equal & ((1U << lane) - 1));
    const bool best = by_number ? key > border || (key == border && rank < k) : weight > bound;
    const bool taken = there && (all || c >= own || best);
    const uint32_t bits = __ballot_sync(~0U, taken);
    n_equal += __popc(equal);
    if (taken) kept += weight;
    if (lane == 0) marks[word] = bits;
  }
  kept = warp_sum(kept);
  if (lane == 0) call.kept[head * call.n_block_q + b] = kept / sum;
}

}  // namespace

void pool_for_gate(const GateCall& call) {
  with_type(call.q.type, [&](auto* tag) {
    const dim3 rows(static_cast<unsigned>(call.n_block_q), static_cast<unsigned>(call.q.n_head));
    pool_queries<std::remove_pointer_t<decltype(tag)>><<<rows, kPoolThreads, 0, call.stream>>>(call);
  });
  const dim3 slots(static_cast<unsigned>(call.n_block), static_cast<unsigned>(call.kv.n_head_kv));
  pool_keys<<<slots, kPoolThreads, 0, call.stream>>>(call);
  check(cudaGetLastError(), "pooling for a gate");
}

void turn_gate_keys(const GateCall& call) {
  if (call.half == 0) return;
  const dim3 grid(static_cast<unsigned>(call.n_block), static_cast<unsigned>(call.q.n_head));
  turn_keys<<<grid, kPoolThreads, 0, call.stream>>>(call);
  check(cudaGetLastError(), "turning a gate's keys");
}

void mark_gated(const GateCall& call, int32_t first, int32_t n) {
  const dim3 grid(blocks_of(call.n_block_q, kWarps), static_cast<unsigned>(n));
  mark_kernel<<<grid, kThreads, 0, call.stream>>>(call, first);
  check(cudaGetLastError(), "choice of a gate");
}

}  // namespace winnow::cuda
