// estimate_blocks by mma.sync and cp.async, compute capability 8.0 and later: a thread block for each tile, a warp for
// 16 of its row groups and all of its slot groups.
#include "kernels/cuda/check.h"
#include "kernels/cuda/estimate_tiles.cuh"

namespace winnow::cuda {
namespace {

constexpr int kWarps = kTileRows / kWarpRows;
constexpr int kThreads = 32 * kWarps;
constexpr int kDepth = 32;  // values of a step
constexpr int kSlots = 3;   // steps in shared memory
constexpr int kStride = kDepth + kPad;
constexpr int kRows = kTileRows + kEstimateColumns;  // of a step: row groups, and behind them slot groups
constexpr int kPieces = kDepth / 8;                  // copies of a row
constexpr size_t kBytes = size_t{kSlots} * kRows * kStride * sizeof(__nv_bfloat16);

using TileProducts = float[kEstimateColumns / 8][4];

class Steps {
 public:
  __device__ Steps(const EstimateCall& call, const EstimateTile& tile, __nv_bfloat16* shared)
      : depth_(call.depth), shared_(shared) {
    queries_ = call.queries + (tile.head * call.n_q + tile.row) * depth_;
    keys_ = call.keys + (call.kv_head(tile.head) * call.n_k + tile.column) * depth_;
    n_queries_ = static_cast<int>(tile.end - tile.row);
    n_keys_ = static_cast<int>(min(call.n_k - tile.column, int64_t{kEstimateColumns}));
    row_ = static_cast<int>(threadIdx.x) / kPieces;
    d_ = static_cast<int>(threadIdx.x) % kPieces * 8;
  }

  __device__ int n() const { return static_cast<int>(depth_ / kDepth); }

  /// Begins to load a step, if there is one of this number.
  __device__ void load(int step) const {
    constexpr int kTogether = kThreads / kPieces;  // rows
    if (step < n()) {
#pragma unroll
      for (int first = 0; first < kRows; first += kTogether) {
        const bool query = first < kTileRows;
        const int row = first + row_, at = query ? row : row - kTileRows;
        const bool there = at < (query ? n_queries_ : n_keys_);
        const __nv_bfloat16* from = query ? queries_ : keys_;
        if (there) from += at * depth_ + step * kDepth + d_;
        copy_async_16(shared_address(slot(step) + row * kStride + d_), from, there ? 16 : 0);
      }
    }
    copy_async_commit();
  }

  /// The warp's products of a step, added.
  __device__ __forceinline__ void multiply(int step, TileProducts& x) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const uint32_t rows = shared_address(slot(step) + (warp * kWarpRows + lane % 16) * kStride + lane / 16 * 8);
    const uint32_t keys =
        shared_address(slot(step) + (kTileRows + lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8);
#pragma unroll
    for (int d = 0; d < kDepth; d += 16) {
      uint32_t q[4];
      load_matrices(q, rows + static_cast<uint32_t>(d * sizeof(__nv_bfloat16)));
#pragma unroll
      for (int n = 0; n < kEstimateColumns / 8; n += 2) {
        uint32_t k[4];
        load_matrices(k, keys + static_cast<uint32_t>((n * 8 * kStride + d) * sizeof(__nv_bfloat16)));
        mma<true>(x[n], q, k[0], k[1]);
        mma<true>(x[n + 1], q, k[2], k[3]);
      }
    }
  }

 private:
  __device__ __nv_bfloat16* slot(int step) const {
    return shared_ + step % kSlots * kRows * kStride;
  }

  int64_t depth_;
  __nv_bfloat16* shared_;
  const __nv_bfloat16 *queries_, *keys_;
  int n_queries_, n_keys_;
  int row_, d_;  // what the thread copies
};

template <bool kMaxima>
__global__ void __launch_bounds__(kThreads, 1) estimate_kernel(const __grid_constant__ EstimateCall call) {
  extern __shared__ __align__(16) std::byte memory[];
  const EstimateTile tile(call, static_cast<int32_t>(blockIdx.x));
  if (!tile.is_seen<kMaxima>(call)) return;
  const Steps steps(call, tile, reinterpret_cast<__nv_bfloat16*>(memory));
  TileProducts x = {};
  for (int step = 0; step < kSlots - 1; ++step) steps.load(step);
  for (int step = 0; step < steps.n(); ++step) {
    copy_async_wait<kSlots - 2>();
    __syncthreads();  // the step is there, and nobody reads the one before it any more
    steps.load(step + kSlots - 1);
    steps.multiply(step, x);
  }
  const int warp = static_cast<int>(threadIdx.x) / 32;
  WarpParts<kMaxima>(call, tile, tile.row + warp * kWarpRows).keep(reinterpret_cast<float(&)[kEstimateColumns / 2]>(x));
}

}  // namespace

void estimate_portable(const EstimateCall& call) {
  const auto kernel = call.maxima ? estimate_kernel<true> : estimate_kernel<false>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes)),
        "estimate_portable");
  kernel<<<static_cast<unsigned>(n_estimate_tiles(call)), kThreads, kBytes, call.rows.stream>>>(call);
  check(cudaGetLastError(), "estimate_portable");
}

}  // namespace winnow::cuda
