// Before attention of many rows: K and V of a layer gathered from the cache's blocks into contiguous bf16, and the
// slots that each row sees. Both are bound by memory.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/search.cuh"
#include "kernels/cuda/stored.cuh"

namespace winnow::cuda {
namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kPiece = 8;  // values that a thread converts at a time: 16 bytes of bf16

/// Block blockIdx.x of kv head blockIdx.y, of K or V.
template <Type kType, int32_t kDim>
__global__ void __launch_bounds__(kThreads)
    stage_kernel(const __grid_constant__ StageArgs args, const std::byte* const* blocks, __nv_bfloat16* out) {
  constexpr int32_t kPieces = kDim / kPiece;  // of a row
  constexpr int32_t kRounds = kBlockSlots * kPieces / kThreads;
  const auto head = static_cast<int32_t>(blockIdx.y);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockSlots;
  const int32_t n_slots = args.n_slots[head];
  const std::byte* block = first < n_slots ? blocks[args.first_block[head] + blockIdx.x] : nullptr;
  Stored<kType> values[kRounds];
  bool real[kRounds];
#pragma unroll
  for (int32_t i = 0; i < kRounds; ++i) {
    const int32_t piece = i * kThreads + static_cast<int32_t>(threadIdx.x);
    const int32_t slot = piece / kPieces;
    const int32_t at = piece % kPieces * kPiece;
    real[i] = first + slot < n_slots && at < args.head_dim;
    if (real[i]) values[i].load(block + slot * row_bytes(kType, args.head_dim), at);
  }
  auto* to = reinterpret_cast<uint4*>(out + (head * args.capacity + first) * kDim);
#pragma unroll
  for (int32_t i = 0; i < kRounds; ++i) {
    to[i * kThreads + static_cast<int32_t>(threadIdx.x)] = real[i] ? values[i].convert() : uint4{0, 0, 0, 0};
  }
}

template <Type kType>
void stage(const StageArgs& args, const std::byte* const* blocks, __nv_bfloat16* out) {
  const dim3 grid(static_cast<uint32_t>(args.capacity / kBlockSlots), static_cast<uint32_t>(args.n_head_kv));
  const auto kernel = args.dim == 64    ? stage_kernel<kType, 64>
                      : args.dim == 128 ? stage_kernel<kType, 128>
                                        : stage_kernel<kType, 256>;
  kernel<<<grid, kThreads, 0, args.stream>>>(args, blocks, out);
  check(cudaGetLastError(), "stage_kv");
}

void stage(const StageArgs& args, Type type, const std::byte* const* blocks, __nv_bfloat16* out) {
  if (type == Type::f16) return stage<Type::f16>(args, blocks, out);
  if (type == Type::bf16) return stage<Type::bf16>(args, blocks, out);
  if (type == Type::q8_0) return stage<Type::q8_0>(args, blocks, out);
  if (type == Type::fp8) return stage<Type::fp8>(args, blocks, out);
  stage<Type::f32>(args, blocks, out);
}

/// Slots of [0, n) that stand before `position`; `positions` null: slot j stands at j.
__device__ int32_t slots_before(const int32_t* positions, int32_t n, int64_t position) {
  if (positions == nullptr) return static_cast<int32_t>(max(int64_t{0}, min(int64_t{n}, position)));
  return count_below(positions, n, position);
}

/// Row blockIdx.x * kThreads + threadIdx.x of kv head blockIdx.y.
__global__ void __launch_bounds__(kThreads) visible_kernel(const __grid_constant__ VisibleArgs args) {
  take_turn();
  const auto head = static_cast<int32_t>(blockIdx.y);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  int32_t n_seen = 0;
  if (row < args.n_rows) {
    const int32_t* positions = args.position == nullptr ? nullptr : args.position + head * args.capacity;
    const int32_t n_slots = args.n_slots[head];
    const int64_t limit = args.limit[row];
    const int32_t end = slots_before(positions, n_slots, limit + 1);
    const int32_t begin = args.window > 0 ? slots_before(positions, end, limit - args.window + 1) : 0;
    args.visible[head * args.n_rows + row] = {begin, end};
    n_seen = end - begin;
  }
  if (args.permitted == nullptr) return;
  // Sums of 32 stay below 2^32 for caches of up to 2^27 slots.
  const uint32_t sum = __reduce_add_sync(~0U, static_cast<uint32_t>(n_seen));
  if (threadIdx.x % 32 == 0 && sum > 0) {
    atomicAdd(args.permitted, static_cast<unsigned long long>(sum) * static_cast<unsigned long long>(args.group));
  }
}

}  // namespace

void stage_kv(const StageArgs& args) {
  if (args.capacity == 0) return;
  stage(args, args.k_type, args.k, args.k_out);
  stage(args, args.v_type, args.v, args.v_out);
}

void visible_slots(const VisibleArgs& args) {
  if (args.n_rows == 0) return;
  const dim3 grid(static_cast<uint32_t>((args.n_rows + kThreads - 1) / kThreads),
                  static_cast<uint32_t>(args.n_head_kv));
  launch_early({grid, kThreads, 0, args.stream, "visible_slots"}, visible_kernel, args);
}

}  // namespace winnow::cuda
