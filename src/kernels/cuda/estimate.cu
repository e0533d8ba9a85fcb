#include "kernels/cuda/estimate.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/cut.cuh"
#include "kernels/cuda/estimate_tiles.cuh"
#include "kernels/cuda/over_block.cuh"
#include "kernels/cuda/vec_inl.h"

namespace winnow::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks_of(int64_t n, int64_t unit) {
  return static_cast<unsigned>((n + unit - 1) / unit);
}

/// A thread for each eight values.
template <typename T>
__global__ void __launch_bounds__(kThreads) gather_kernel(const __grid_constant__ GatherArgs args) {
  const int32_t in_group = args.only_first ? 1 : args.stride, chunks = args.dim / 8;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t at = i / chunks, group = at / in_group;
  if (group >= args.n_out) return;
  const auto in = static_cast<int32_t>(at % in_group);
  const int64_t row = group * args.stride + (args.only_first ? 0 : args.stride - 1 - in);
  const int64_t d = i % chunks * 8;
  float sum[8] = {};
  for (int32_t head = 0; head < args.n_head && row < args.n_rows && d < args.head_dim; ++head) {
    const T* from = static_cast<const T*>(args.data) + head * args.head_stride + row * args.row_stride + d;
    float v[8];
    load_some(from, 8, reinterpret_cast<uintptr_t>(from) % 16 == 0, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum[j] += v[j];
  }
#pragma unroll
  for (float& x : sum) x /= static_cast<float>(args.n_head);
  store8(args.out + at * args.dim + d, sum);
}

template <typename T>
__device__ T largest_of(T x) {
  return over_block(x, [](T a, T b) { return a > b ? a : b; });
}

template <typename T>
__device__ T sum_of(T x) {
  return over_block(x, [](T a, T b) { return a + b; });
}

constexpr int32_t kMostGroups = 128;  // of a block of rows

/// One block of threads for each block of rows of head blockIdx.y.
template <bool kMaxima>
__global__ void __launch_bounds__(kThreads) score_kernel(const __grid_constant__ EstimateCall call) {
  __shared__ float total[kMostGroups];     // what to take off a row group's logits, in base 2
  __shared__ int32_t n_seen[kMostGroups];  // blocks
  const BlockRows& rows = call.rows;
  const auto head = static_cast<int32_t>(blockIdx.y), lane = static_cast<int32_t>(threadIdx.x % 32);
  const int32_t per_block = rows.block / rows.stride;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * per_block;  // of the parts
  const auto n = static_cast<int32_t>(min(call.n - begin, int64_t{per_block}));
  const float* parts = call.parts + (head * call.n + begin) * call.ld;
  for (auto i = static_cast<int32_t>(threadIdx.x / 32); i < n; i += kThreads / 32) {
    const int32_t groups = groups_seen<kMaxima>(call, head, call.first + begin + i);
    const int32_t blocks = (groups + per_block - 1) / per_block;
    const float* sums = parts + i * call.ld + (kMaxima ? rows.n_block : 0);
    const int32_t n_sums = kMaxima ? (groups + kEstimateColumns - 1) / kEstimateColumns : blocks;
    float2 all = {kNothing, 0};
    for (int32_t c = lane; c < n_sums; c += 32) all = join(all, {sums[c], 1});
    for (int other = 16; other > 0; other /= 2) {
      all = join(all, {__shfl_xor_sync(~0U, all.x, other), __shfl_xor_sync(~0U, all.y, other)});
    }
    if (lane == 0) total[i] = all.x + log2f(all.y), n_seen[i] = blocks;
  }
  __syncthreads();
  const int64_t n_block_q = (rows.n_rows + rows.block - 1) / rows.block;
  float* out = call.scores + (head * n_block_q + (call.first + begin) / per_block) * rows.n_block;
  for (auto c = static_cast<int32_t>(threadIdx.x); c < rows.n_block; c += kThreads) {
    float score = kMaxima ? kNothing : 0;
    for (int32_t i = 0; i < n; ++i) {
      if (c >= n_seen[i]) continue;
      const float share = parts[i * call.ld + c] - total[i];
      score = kMaxima ? fmaxf(score, share) : score + exp2f(share);
    }
    out[c] = kMaxima ? fminf(score, 0.0F) / kLog2E : score;
  }
}

/// One block of threads for each block of rows.
__global__ void __launch_bounds__(kCutThreads)
    heaviest_kernel(const __grid_constant__ BlockRows rows, const float* scores, double share, uint32_t* marks) {
  __shared__ CutShared shared;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * rows.block;
  const float* own_scores = scores + static_cast<int64_t>(blockIdx.x) * rows.n_block;
  const int64_t end = min(row + rows.block, rows.n_rows);
  const int32_t own = (rows.visible[row].y - 1) / rows.block;
  const int32_t n = (rows.visible[end - 1].y - 1) / rows.block + 1;
  const auto forced = [own](int32_t c) { return c == 0 || c >= own; };
  double total = 0, mass = 0;
  for (int32_t c = threadIdx.x; c < n; c += kCutThreads) {
    total += own_scores[c];
    if (forced(c)) mass += own_scores[c];
  }
  total = sum_of(total);
  mass = sum_of(mass);
  Cut cut = {~0U, -1};  // nothing else
  if (mass < share * total) {
    const auto keys = [&](int32_t c) { return forced(c) ? 0U : __float_as_uint(own_scores[c]); };
    cut = find_cut<true>(keys, n, static_cast<unsigned long long>((share * total - mass) * kUnit), shared);
    // The one that passes the limit is taken too.
    unsigned long long next = 0;
    for (int32_t c = threadIdx.x; c < n; c += kCutThreads) {
      const unsigned long long order = static_cast<unsigned long long>(keys(c)) << 32 | static_cast<uint32_t>(~c);
      if (!forced(c) && !takes(cut, keys(c), c) && order > next) next = order;
    }
    next = largest_of(next);
    if (next > 0) cut = {static_cast<uint32_t>(next >> 32), static_cast<int32_t>(~static_cast<uint32_t>(next))};
  }
  const int32_t words = (rows.n_block + 31) / 32;
  uint32_t* out = marks + static_cast<int64_t>(blockIdx.x) * words;
  for (int32_t word = static_cast<int32_t>(threadIdx.x) / 32; word < words; word += kCutThreads / 32) {
    const int32_t c = word * 32 + static_cast<int32_t>(threadIdx.x) % 32;
    const bool taken = c < n && (forced(c) || takes(cut, __float_as_uint(own_scores[c]), c));
    const uint32_t bits = __ballot_sync(~0U, taken);
    if (threadIdx.x % 32 == 0) out[word] = bits;
  }
}

}  // namespace

void gather(const GatherArgs& args) {
  if (args.n_out == 0) return;
  const int64_t n = args.n_out * (args.only_first ? 1 : args.stride) * (args.dim / 8);
  if (args.type == Type::f32) {
    gather_kernel<float><<<blocks_of(n, kThreads), kThreads, 0, args.stream>>>(args);
  } else {
    gather_kernel<bf16><<<blocks_of(n, kThreads), kThreads, 0, args.stream>>>(args);
  }
  check(cudaGetLastError(), "gathering rows");
}

void score_parts(const EstimateCall& call) {
  const dim3 grid(blocks_of(call.n, call.rows.block / call.rows.stride), static_cast<unsigned>(call.n_head));
  const auto kernel = call.maxima ? score_kernel<true> : score_kernel<false>;
  kernel<<<grid, kThreads, 0, call.rows.stream>>>(call);
  check(cudaGetLastError(), "scores of blocks");
}

void mark_heaviest(const BlockRows& rows, const float* scores, double share, uint32_t* marks) {
  heaviest_kernel<<<blocks_of(rows.n_rows, rows.block), kCutThreads, 0, rows.stream>>>(rows, scores, share, marks);
  check(cudaGetLastError(), "choice of the heaviest blocks");
}

}  // namespace winnow::cuda
