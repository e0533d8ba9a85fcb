// Attention of many rows on Hopper: wgmma, bulk tensor copies, one warpgroup that loads and two that compute.
//
// Each multiprocessor runs one thread block, which walks through tiles of 128 rows of one query head; each computing
// warpgroup has 64 of them. What they read goes through a ring in shared memory, piece by piece: 64 slots of K and V,
// an interval (copied by the tensor copy engine) or single columns (gathered by the loading warps). A warpgroup takes
// the pieces that it wants, two at a time where registers allow, multiplies Q K^T of the next ones while it works on
// the softmax of the last ones, and passes over the others. Pieces are the tiles of kVoteSlots in types.h, in their
// order.
//
// Where all rows of a tile want the same pieces, these come in pairs: a slot of the ring holds two, and one wait, one
// read and half as many products do. What a warpgroup does between its products is what bounds the speed, more than the
// products: with pairs dense attention at 32K went from 594 to 705 TFLOP/s.
#include <algorithm>
#include <atomic>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/hopper_boxes.h"
#include "kernels/cuda/hopper_compute.cuh"
#include "kernels/cuda/hopper_load.cuh"

namespace winnow::cuda {
namespace {

using hopper::Logits;
using hopper::Params;

template <int kDim, Logits kLogits, bool kPairs>
__global__ void __launch_bounds__(hopper::kThreads, 1) attend_kernel(const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) std::byte memory[];
  auto& shared = *reinterpret_cast<hopper::Shared<kDim, kPairs>*>(memory);
  if (threadIdx.x == 0) {
    for (hopper::Barrier& barrier : shared.full) hopper::init_barrier(barrier, hopper::kLoadingWarps);
    for (hopper::Barrier& barrier : shared.empty) hopper::init_barrier(barrier, hopper::kComputingWarps);
    hopper::publish_barriers();
  }
  __syncthreads();
  if (threadIdx.x < hopper::kWarpgroup) {
    hopper::release_registers<40>();
    hopper::Loader<kDim, kPairs>(p, shared).run();
  } else {
    hopper::claim_registers<232>();
    hopper::Computer<kDim, kLogits, kPairs>(p, shared).run();
  }
}

/// Boxes of one piece, or of a half of it.
CUtensorMap piece_map(const __nv_bfloat16* data, const StagedKv& kv, int32_t halves) {
  if (kv.capacity == 0) return {};  // nothing is loaded
  return hopper::row_boxes(data, {kv.n_head_kv * kv.capacity, kv.dim}, {hopper::kPiece, halves});
}

// Counters of tiles taken. A launch uses one and leaves it at 0; so many launches may run side by side.
constexpr unsigned kCounters = 4096;
__device__ int32_t n_tiles_taken[kCounters];

int32_t* next_counter() {
  static std::atomic<unsigned> n_launches = 0;
  void* counters = nullptr;
  check(cudaGetSymbolAddress(&counters, n_tiles_taken), "attend_hopper");
  return static_cast<int32_t*>(counters) + n_launches++ % kCounters;
}

template <int kDim, Logits kLogits, bool kPairs>
void launch(const Params& params, cudaStream_t stream) {
  constexpr int kBytes = sizeof(hopper::Shared<kDim, kPairs>);
  const auto kernel = attend_kernel<kDim, kLogits, kPairs>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "attend_hopper");
  int device = 0;
  int n_processors = 0;
  check(cudaGetDevice(&device), "attend_hopper");
  check(cudaDeviceGetAttribute(&n_processors, cudaDevAttrMultiProcessorCount, device), "attend_hopper");
  const int n_blocks = std::min(n_processors, params.n_tiles);
  kernel<<<n_blocks, hopper::kThreads, kBytes, stream>>>(params);
  check(cudaGetLastError(), "attend_hopper");
}

template <int kDim, bool kPairs>
void launch(const Params& params, cudaStream_t stream) {
  if (params.softcap > 0 || params.kv.bias != nullptr || params.scale <= 0) {
    launch<kDim, Logits::general, kPairs>(params, stream);
  } else if (params.skip != nullptr) {
    launch<kDim, Logits::voting, kPairs>(params, stream);
  } else {
    launch<kDim, Logits::plain, kPairs>(params, stream);
  }
}

/// Whether all rows of a tile follow one list.
bool in_pairs(const ManyRows& call) {
  const bool one_list = call.lists == nullptr || call.lists->block_q % hopper::kTileRows == 0;
  return one_list && call.kv.dim <= 128 && call.kv.capacity > 0;
}

}  // namespace

void attend_hopper(const ManyRows& call) {
  const bool pairs = in_pairs(call);
  const int32_t halves = pairs ? 1 : call.kv.dim / 64;
  const Params params{
      .k = piece_map(call.kv.k, call.kv, halves),
      .v = piece_map(call.kv.v, call.kv, halves),
      .q = call.q,
      .o = call.o,
      .kv = call.kv,
      .lists = call.lists == nullptr ? Lists{} : *call.lists,
      .visible = call.visible,
      .first_row = call.first_row,
      .scale = call.scale,
      .softcap = call.softcap,
      .skip = call.skip,
      .lse = call.lse,
      .computed = call.computed,
      .n_tiles = static_cast<int32_t>((call.q.n_rows + hopper::kTileRows - 1) / hopper::kTileRows) * call.q.n_head,
      .n_taken = next_counter()};
  switch (call.kv.dim) {
    case 64:
      return pairs ? launch<64, true>(params, call.stream) : launch<64, false>(params, call.stream);
    case 128:
      return pairs ? launch<128, true>(params, call.stream) : launch<128, false>(params, call.stream);
    default:
      return launch<256, false>(params, call.stream);
  }
}

}  // namespace winnow::cuda
