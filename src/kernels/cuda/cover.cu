// A head's probe is looked at by one block of threads. What is chosen, there or in a pooled map (cover_map.cu), becomes
// bits, and these become lists.
#include "kernels/cuda/cover.h"

#include <cub/device/device_scan.cuh>

#include "kernels/cuda/check.h"
#include "kernels/cuda/cover_rows.cuh"
#include "kernels/cuda/cut.cuh"
#include "kernels/cuda/over_block.cuh"
#include "kernels/cuda/vec_inl.h"

namespace winnow::cuda {
namespace {

constexpr int kPoolThreads = 128;
constexpr int kThreads = 256;

/// One block for each mean; threads run along the head.
template <typename T>
__global__ void pool_kernel(const __grid_constant__ PoolArgs args) {
  const int64_t head = blockIdx.y;
  const int64_t n = args.n_slots == nullptr ? args.n_rows : args.n_slots[head];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * args.block;
  const int64_t end = min(begin + args.block, n);
  const T* rows = static_cast<const T*>(args.data) + head * args.head_stride;
  for (int d = static_cast<int>(threadIdx.x); d < args.head_dim; d += kPoolThreads) {
    float sum = 0;
#pragma unroll 8
    for (int64_t row = begin; row < end; ++row) sum += to_float(rows[row * args.row_stride + d]);
    args.out[(head * args.n_block + blockIdx.x) * args.head_dim + d] =
        begin < end ? sum / static_cast<float>(end - begin) : 0.0F;
  }
}

__device__ double block_sum(double x) {
  return over_block(x, [](double a, double b) { return a + b; });
}

/// One head's probe.
class Decision {
 public:
  __device__ Decision(const CoverCall& call, CutShared& shared)
      : call_(call),
        shared_(shared),
        head_(static_cast<int32_t>(blockIdx.x)),
        n_(slots_seen(call, head_, call.n_rows - 1)),
        n_block_((n_ + call.block - 1) / call.block),
        vertical_(call.vertical + head_ * call.max_slots),
        slash_(call.slash + head_ * call.max_slots),
        by_block_(call.work + static_cast<int64_t>(head_) * 3 * call.n_block),
        by_distance_(by_block_ + call.n_block),
        estimate_(by_distance_ + call.n_block) {}

  __device__ void run() {
    uint8_t* blocks = call_.lines + static_cast<int64_t>(head_) * 2 * call_.n_block;
    uint8_t* distances = blocks + call_.n_block;
    const bool all = n_ <= max(2, call_.least) * call_.block;
    for (int32_t c = threadIdx.x; c < call_.n_block; c += kCutThreads) {
      blocks[c] = all ? 1 : 0;
      distances[c] = 0;
    }
    if (threadIdx.x == 0) call_.pooled[head_] = 0;
    if (all) return;
    join_mass();
    sum_blocks();
    estimate();
    const bool pooled = root_divergence() < call_.distance;
    if (threadIdx.x == 0) call_.pooled[head_] = pooled ? 1 : 0;
    const int32_t n_vertical = pooled ? call_.least : n_cover(vertical_);
    const int32_t n_slash = pooled ? call_.least : n_cover(slash_);
    take(by_block_, 0, n_vertical, [&](int32_t c) { blocks[c] = 1; });
    take(by_distance_, n_block_ - 1, n_slash, [&](int32_t i) { distances[n_block_ - 1 - i] = 1; });
  }

 private:
  /// Shares of the mass, in place.
  __device__ void join_mass() {
    const int64_t at = head_ * call_.max_slots;
    const float factor = 1 / static_cast<float>(call_.n_probe);
    for (int32_t i = threadIdx.x; i < n_; i += kCutThreads) {
      const bool more = call_.more_vertical != nullptr;
      vertical_[i] = (vertical_[i] + (more ? call_.more_vertical[at + i] : 0.0F)) * factor;
      slash_[i] = (slash_[i] + (more ? call_.more_slash[at + i] : 0.0F)) * factor;
    }
    __syncthreads();
  }

  /// Distances are counted from the far end, so that the last block may be a broken one. A warp for each block.
  __device__ void sum_blocks() {
    const auto lane = static_cast<int32_t>(threadIdx.x % 32);
    for (int32_t b = threadIdx.x / 32; b < n_block_; b += kCutThreads / 32) {
      float v = 0, s = 0;
      for (int32_t i = b * call_.block + lane; i < min((b + 1) * call_.block, n_); i += 32) {
        v += vertical_[i];
        s += slash_[n_ - 1 - i];
      }
      v = warp_sum(v);
      s = warp_sum(s);
      if (lane == 0) by_block_[b] = v, by_distance_[b] = s;
    }
    __syncthreads();
  }

  /// Attention of the probe's mean query to the pooled keys.
  __device__ void estimate() {
    const auto lane = static_cast<int32_t>(threadIdx.x % 32);
    const float* q = call_.probe_mean + static_cast<int64_t>(head_) * call_.head_dim;
    const float* keys = call_.keys + static_cast<int64_t>(head_ / call_.group) * call_.n_block * call_.head_dim;
    for (int32_t b = threadIdx.x / 32; b < n_block_; b += kCutThreads / 32) {
      float dot = 0;
      for (int32_t d = lane; d < call_.head_dim; d += 32) {
        dot = fmaf(q[d], keys[static_cast<int64_t>(b) * call_.head_dim + d], dot);
      }
      dot = warp_sum(dot);
      if (lane == 0) estimate_[b] = dot * call_.scale;
    }
    __syncthreads();
    float top = -INFINITY;
    for (int32_t b = threadIdx.x; b < n_block_; b += kCutThreads) top = fmaxf(top, estimate_[b]);
    top = over_block(top, [](float x, float y) { return fmaxf(x, y); });
    double sum = 0;
    for (int32_t b = threadIdx.x; b < n_block_; b += kCutThreads) sum += estimate_[b] = expf(estimate_[b] - top);
    sum = block_sum(sum);
    for (int32_t b = threadIdx.x; b < n_block_; b += kCutThreads) estimate_[b] = static_cast<float>(estimate_[b] / sum);
  }

  /// Of the estimate from the exact attention, by key blocks.
  __device__ double root_divergence() {
    const auto term = [](double x, double mean) { return x > 0 ? x * log(x / mean) : 0.0; };
    double sum = 0;
    for (int32_t b = threadIdx.x; b < n_block_; b += kCutThreads) {
      const double p = by_block_[b], q = estimate_[b], mean = (p + q) / 2;
      sum += term(p, mean) + term(q, mean);
    }
    return sqrt(fmax(0.0, block_sum(sum) / 2));
  }

  __device__ int32_t n_cover(const float* mass) {
    const auto keys = [mass](int32_t i) { return __float_as_uint(mass[i]); };
    const Cut cut = find_cut<true>(keys, n_, static_cast<unsigned long long>(call_.share * kUnit), shared_);
    int32_t n_taken = 0;
    for (int32_t i = threadIdx.x; i < n_; i += kCutThreads) n_taken += takes(cut, keys(i), i) ? 1 : 0;
    n_taken = min(over_block(n_taken, [](int32_t a, int32_t b) { return a + b; }) + 1, n_);
    return min(max(n_taken / call_.block + 1, call_.least), min(call_.most, n_block_));
  }

  /// Calls f with the indices of the k heaviest blocks; `forced` is one of them whatever it weighs.
  template <typename F>
  __device__ void take(const float* mass, int32_t forced, int32_t k, const F& f) {
    const auto keys = [=](int32_t i) { return i == forced ? 0x7f800000U : __float_as_uint(mass[i]); };
    const Cut cut = find_cut<false>(keys, n_block_, static_cast<unsigned long long>(k), shared_);
    for (int32_t i = threadIdx.x; i < n_block_; i += kCutThreads) {
      if (takes(cut, keys(i), i)) f(i);
    }
    __syncthreads();
  }

  const CoverCall& call_;
  CutShared& shared_;
  int32_t head_;
  int32_t n_;  // slots that the last row sees
  int32_t n_block_;
  float *vertical_, *slash_;
  float *by_block_, *by_distance_, *estimate_;
};

__global__ void __launch_bounds__(kCutThreads) decide_kernel(const __grid_constant__ CoverCall call) {
  __shared__ CutShared shared;
  Decision(call, shared).run();
}

/// How many blocks each list has, written one behind its place.
__global__ void __launch_bounds__(kThreads) count_kernel(const __grid_constant__ CoverCall call) {
  const int64_t list = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (list >= static_cast<int64_t>(call.n_head) * call.n_block_q) return;
  int32_t n = 0;
  for (int32_t word = 0; word < call.mark_words(); ++word) n += __popc(call.marks[list * call.mark_words() + word]);
  call.block_ptr[list + 1] = n;
  if (list == 0) call.block_ptr[0] = 0;
}

__global__ void __launch_bounds__(kThreads) write_kernel(const __grid_constant__ CoverCall call, int32_t* block_begin) {
  const int64_t list = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (list >= static_cast<int64_t>(call.n_head) * call.n_block_q) return;
  int32_t* to = block_begin + call.block_ptr[list];
  for (int32_t word = 0; word < call.mark_words(); ++word) {
    for (uint32_t bits = call.marks[list * call.mark_words() + word]; bits != 0; bits &= bits - 1) {
      *to++ = (word * 32 + __ffs(static_cast<int>(bits)) - 1) * call.block;
    }
  }
}

unsigned blocks_of(int64_t n, int64_t unit) {
  return static_cast<unsigned>((n + unit - 1) / unit);
}

}  // namespace

void pool_heads(const PoolArgs& args) {
  const dim3 grid(static_cast<unsigned>(args.n_block), static_cast<unsigned>(args.n_head));
  with_type(args.type, [&](auto* tag) {
    pool_kernel<std::remove_pointer_t<decltype(tag)>><<<grid, kPoolThreads, 0, args.stream>>>(args);
  });
  check(cudaGetLastError(), "means of blocks");
}

void decide_cover(const CoverCall& call) {
  decide_kernel<<<static_cast<unsigned>(call.n_head), kCutThreads, 0, call.stream>>>(call);
  check(cudaGetLastError(), "choice of blocks");
}

size_t cover_scan_bytes(const CoverCall& call) {
  size_t bytes = 0;
  int32_t* none = nullptr;
  check(cub::DeviceScan::InclusiveSum(nullptr, bytes, none, none, int64_t{call.n_head} * call.n_block_q), "a scan");
  return bytes;
}

void measure_cover(const CoverCall& call, std::byte* scan_work) {
  const int64_t n = int64_t{call.n_head} * call.n_block_q;
  count_kernel<<<blocks_of(n, kThreads), kThreads, 0, call.stream>>>(call);
  check(cudaGetLastError(), "lengths of lists");
  size_t bytes = cover_scan_bytes(call);
  int32_t* ends = call.block_ptr + 1;
  check(cub::DeviceScan::InclusiveSum(scan_work, bytes, ends, ends, n, call.stream), "ends of the lists");
}

void write_cover(const CoverCall& call, int32_t* block_begin) {
  const int64_t n = int64_t{call.n_head} * call.n_block_q;
  write_kernel<<<blocks_of(n, kThreads), kThreads, 0, call.stream>>>(call, block_begin);
  check(cudaGetLastError(), "lists of blocks");
}

}  // namespace winnow::cuda
