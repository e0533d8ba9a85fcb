// estimate_blocks on Hopper: wgmma and bulk tensor copies. A thread block stays on its multiprocessor and walks through
// tiles; one warpgroup loads 64 values of 128 row groups and of 256 slot groups at a time into a ring, two multiply, 64
// row groups each. What one of them does with its logits runs beside the other's products: the ring lets it be four
// steps ahead.
#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/estimate_tiles.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/hopper_boxes.h"

namespace winnow::cuda {
namespace {

constexpr int kWarpgroup = 128;  // threads
constexpr int kThreads = 3 * kWarpgroup;
constexpr int kGroupRows = kTileRows / 2;  // wgmma's m
constexpr int kDepth = 64;                 // values of a step: the width of the swizzle
constexpr int kSlots = 4;                  // steps of the ring
constexpr uint32_t kRowBytes = kDepth * sizeof(__nv_bfloat16);
constexpr uint32_t kComputingWarps = 8;  // arrivals that make a slot empty

struct Params {
  CUtensorMap queries, keys;
  EstimateCall call;
  int32_t n_tiles;
};

struct Shared {
  std::byte queries[kSlots][kTileRows * kRowBytes];
  std::byte keys[kSlots][kEstimateColumns * kRowBytes];
  hopper::Barrier full[kSlots];
  hopper::Barrier empty[kSlots];
};
static_assert(sizeof(Shared) <= 227 * 1024);

/// A place in the ring; its parity turns with every round.
struct Place {
  int32_t slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++slot == kSlots) slot = 0, parity ^= 1;
  }
};

template <bool kMaxima>
__device__ void load_tiles(const Params& p, Shared& shared) {
  Place place;
  for (auto index = static_cast<int32_t>(blockIdx.x); index < p.n_tiles; index += static_cast<int32_t>(gridDim.x)) {
    const EstimateTile tile(p.call, index);
    if (!tile.is_seen<kMaxima>(p.call)) continue;
    const auto row = static_cast<int32_t>(tile.head * p.call.n_q + tile.row);
    const auto key = static_cast<int32_t>(p.call.kv_head(tile.head) * p.call.n_k + tile.column);
    for (int32_t step = 0; step < p.call.depth / kDepth; ++step) {
      hopper::wait(shared.empty[place.slot], place.parity ^ 1);
      hopper::Barrier& full = shared.full[place.slot];
      hopper::expect_bytes(full, (kTileRows + kEstimateColumns) * kRowBytes);
      hopper::copy_box(shared.queries[place.slot], p.queries, full, row, step);
      hopper::copy_box(shared.keys[place.slot], p.keys, full, key, step);
      hopper::arrive(full);
      place.advance();
    }
  }
}

/// The warp has read what lies in the slot.
__device__ __forceinline__ void leave(Shared& shared, int32_t slot) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) hopper::arrive(shared.empty[slot]);
}

/// The warpgroup's logits of a tile, products of all steps.
__device__ __forceinline__ void multiply_tile(const Params& p, Shared& shared, Place& place, int32_t group,
                                              float (&x)[kEstimateColumns / 2]) {
  const auto n_steps = static_cast<int32_t>(p.call.depth / kDepth);
  int32_t last = 0;
  for (int32_t step = 0; step < n_steps; ++step) {
    hopper::wait(shared.full[place.slot], place.parity);
    const uint64_t rows = hopper::rows_descriptor(hopper::shared_address(shared.queries[place.slot]) +
                                                  static_cast<uint32_t>(group) * kGroupRows * kRowBytes);
    const uint64_t keys = hopper::rows_descriptor(hopper::shared_address(shared.keys[place.slot]));
    hopper::begin_products();
#pragma unroll
    for (uint32_t d = 0; d < kRowBytes; d += 32) {
      hopper::multiply_rows(x, rows + hopper::descriptor_offset(d), keys + hopper::descriptor_offset(d),
                            step > 0 || d > 0);
    }
    hopper::commit_products();
    if (step > 0) {
      hopper::wait_products<1>();
      leave(shared, last);
    }
    last = place.slot;
    place.advance();
  }
  hopper::wait_products<0>();
  hopper::pin(x);
  leave(shared, last);
}

template <bool kMaxima>
__global__ void __launch_bounds__(kThreads, 1) estimate_kernel(const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) std::byte memory[];
  auto& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    for (hopper::Barrier& barrier : shared.full) hopper::init_barrier(barrier, 1);
    for (hopper::Barrier& barrier : shared.empty) hopper::init_barrier(barrier, kComputingWarps);
    hopper::publish_barriers();
  }
  __syncthreads();
  const int32_t warp = hopper::first_lane(static_cast<int32_t>(threadIdx.x) / 32);
  if (warp < 4) {
    hopper::release_registers<40>();
    if (threadIdx.x == 0) load_tiles<kMaxima>(p, shared);
    return;
  }
  hopper::claim_registers<232>();
  const int32_t group = warp / 4 - 1;
  Place place;
  for (auto index = static_cast<int32_t>(blockIdx.x); index < p.n_tiles; index += static_cast<int32_t>(gridDim.x)) {
    const EstimateTile tile(p.call, index);
    if (!tile.is_seen<kMaxima>(p.call)) continue;
    float x[kEstimateColumns / 2];
    multiply_tile(p, shared, place, group, x);
    WarpParts<kMaxima>(p.call, tile, tile.row + (warp - 4) * kWarpRows).keep(x);
  }
}

}  // namespace

void estimate_hopper(const EstimateCall& call) {
  const Params params{.queries = hopper::row_boxes(call.queries, {call.n_head * call.n_q, call.depth}, {kTileRows, 1}),
                      .keys = hopper::row_boxes(call.keys, {call.n_kv * call.n_k, call.depth}, {kEstimateColumns, 1}),
                      .call = call,
                      .n_tiles = n_estimate_tiles(call)};
  const auto kernel = call.maxima ? estimate_kernel<true> : estimate_kernel<false>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)), "estimate_hopper");
  kernel<<<std::min(call.n_sm, params.n_tiles), kThreads, sizeof(Shared), call.rows.stream>>>(params);
  check(cudaGetLastError(), "estimate_hopper");
}

}  // namespace winnow::cuda
