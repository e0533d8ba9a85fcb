// The probe is multiplied by the keys twice: once for each row's softmax denominator, once for the probabilities, which
// are then summed along columns and diagonals of a tile in shared memory. So nothing of the size rows x slots is
// stored.
#include "kernels/cuda/lines.h"

#include <mma.h>

#include <cub/block/block_scan.cuh>
#include <cub/device/device_scan.cuh>

#include "kernels/cuda/check.h"

namespace winnow::cuda {
namespace {

constexpr int kRows = kMaxProbeRows;
constexpr int kTile = 64;        // keys
constexpr int kChunkTiles = 16;  // of one thread block
constexpr int kChunk = kTile * kChunkTiles;
constexpr int kThreads = 128;                  // four warps of 16 rows each
constexpr int kPad = 8;                        // bf16 values behind a row in shared memory, against bank conflicts
constexpr int kScoreStride = 68;               // floats
constexpr int kDiagonals = kTile + kRows - 1;  // of one tile
constexpr float kLog2E = 1.4426950408889634F;
constexpr float kNothing = -INFINITY;

struct Shared {
  __nv_bfloat16* q;  // [kRows, dim + kPad]
  __nv_bfloat16* k;  // [kTile, dim + kPad]
  float* s;          // [kRows, kScoreStride]
};

__host__ __device__ constexpr size_t shared_bytes(int dim) {
  return static_cast<size_t>(kRows + kTile) * (dim + kPad) * sizeof(__nv_bfloat16) +
         kRows * kScoreStride * sizeof(float);
}

__device__ Shared carve(std::byte* bytes, int dim) {
  auto* q = reinterpret_cast<__nv_bfloat16*>(bytes);
  __nv_bfloat16* k = q + kRows * (dim + kPad);
  return {q, k, reinterpret_cast<float*>(k + kTile * (dim + kPad))};
}

__device__ float value_of(const HeadRows& q, int64_t row, int head, int d) {
  const int64_t at = row * q.stride + static_cast<int64_t>(head) * q.head_dim + d;
  if (q.type == Type::f32) return static_cast<const float*>(q.data)[at];
  return __bfloat162float(static_cast<const __nv_bfloat16*>(q.data)[at]);
}

/// The probe's queries of one head; rows and values that there are not become zero.
__device__ void load_queries(const LineProbe& probe, int head, const Shared& shared) {
  const int dim = probe.kv.dim;
  for (int i = threadIdx.x; i < kRows * dim; i += kThreads) {
    const int row = i / dim;
    const int d = i % dim;
    const bool there = row < probe.q.n_rows && d < probe.q.head_dim;
    shared.q[row * (dim + kPad) + d] = __float2bfloat16(there ? value_of(probe.q, row, head, d) : 0.0F);
  }
}

/// Products of a warp's 16 rows with a tile's keys.
__device__ void multiply_tile(int first_row, int dim, const Shared& shared) {
  namespace wmma = nvcuda::wmma;
  const int stride = dim + kPad;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums[kTile / 16];
  for (auto& sum : sums) wmma::fill_fragment(sum, 0.0F);
  for (int d = 0; d < dim; d += 16) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> a;
    wmma::load_matrix_sync(a, shared.q + first_row * stride + d, stride);
#pragma unroll
    for (int n = 0; n < kTile / 16; ++n) {
      wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::col_major> b;
      wmma::load_matrix_sync(b, shared.k + n * 16 * stride + d, stride);
      wmma::mma_sync(sums[n], a, b, sums[n]);
    }
  }
#pragma unroll
  for (int n = 0; n < kTile / 16; ++n) {
    wmma::store_matrix_sync(shared.s + first_row * kScoreStride + n * 16, sums[n], kScoreStride, wmma::mem_row_major);
  }
}

/// Products of the probe's rows with the keys [begin, begin + kTile).
__device__ void score_tile(const LineProbe& probe, int kv_head, int64_t begin, const Shared& shared) {
  const int dim = probe.kv.dim;
  const int stride = dim + kPad;
  const __nv_bfloat16* keys = probe.kv.k + (static_cast<int64_t>(kv_head) * probe.kv.capacity + begin) * dim;
  for (int i = threadIdx.x; i < kTile * dim / 8; i += kThreads) {
    const int key = i / (dim / 8);
    const int at = i % (dim / 8) * 8;
    uint4 eight = {};
    if (begin + key < probe.kv.capacity)
      eight = *reinterpret_cast<const uint4*>(keys + static_cast<int64_t>(key) * dim + at);
    *reinterpret_cast<uint4*>(shared.k + key * stride + at) = eight;
  }
  __syncthreads();
  const int first_row = static_cast<int>(threadIdx.x) / 32 * 16;
  if (first_row < probe.q.n_rows) multiply_tile(first_row, dim, shared);
  __syncthreads();
}

/// In base 2; -infinity where the row does not see the slot.
__device__ float logit(const LineProbe& probe, int kv_head, int64_t slot, int2 visible, float product) {
  if (slot < visible.x || slot >= visible.y) return kNothing;
  float x = product * probe.scale;
  if (probe.softcap > 0) x = probe.softcap * tanhf(x / probe.softcap);
  if (probe.kv.bias != nullptr) x += probe.kv.bias[static_cast<int64_t>(kv_head) * probe.kv.capacity + slot];
  return x * kLog2E;
}

__device__ int2 visible_of(const LineProbe& probe, int kv_head, int row) {
  return row < probe.q.n_rows ? probe.visible[kv_head * probe.q.n_rows + row] : int2{0, 0};
}

/// partial [n_head, n_chunk, kRows]: largest logit of a row in a chunk, and the sum of 2^(logit - largest).
__global__ void __launch_bounds__(kThreads) row_sums(const LineProbe probe, float2* partial) {
  extern __shared__ std::byte bytes[];
  const Shared shared = carve(bytes, probe.kv.dim);
  const int head = blockIdx.y;
  const int kv_head = head / (probe.q.n_head / probe.kv.n_head_kv);
  load_queries(probe, head, shared);
  // Two threads a row, each for half of a tile's keys.
  const int row = static_cast<int>(threadIdx.x) / 2;
  const int half = static_cast<int>(threadIdx.x) % 2 * (kTile / 2);
  const int2 visible = visible_of(probe, kv_head, row);
  float largest = kNothing;
  float sum = 0;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk;
  for (int64_t begin = first; begin < first + kChunk && begin < probe.max_slots; begin += kTile) {
    score_tile(probe, kv_head, begin, shared);
    for (int i = 0; i < kTile / 2; ++i) {
      const int key = half + (i + row) % (kTile / 2);
      const float x = logit(probe, kv_head, begin + key, visible, shared.s[row * kScoreStride + key]);
      if (x == kNothing) continue;
      if (x > largest) {
        sum *= exp2f(largest - x);
        largest = x;
      }
      sum += exp2f(x - largest);
    }
    __syncthreads();
  }
  const float other_largest = __shfl_xor_sync(0xffffffffU, largest, 1);
  const float other_sum = __shfl_xor_sync(0xffffffffU, sum, 1);
  if (half != 0) return;
  const float both = fmaxf(largest, other_largest);
  float total = 0;
  if (both > kNothing) total = sum * exp2f(largest - both) + other_sum * exp2f(other_largest - both);
  partial[(static_cast<int64_t>(head) * gridDim.x + blockIdx.x) * kRows + row] = {both, total};
}

/// denominator [n_head, kRows]: log2 of each row's softmax denominator.
__global__ void join_sums(const float2* partial, int n_chunk, float* denominator) {
  const float2* from = partial + static_cast<int64_t>(blockIdx.x) * n_chunk * kRows + threadIdx.x;
  float largest = kNothing;
  for (int i = 0; i < n_chunk; ++i) largest = fmaxf(largest, from[static_cast<int64_t>(i) * kRows].x);
  float sum = 0;
  for (int i = 0; i < n_chunk && largest > kNothing; ++i) {
    const float2 part = from[static_cast<int64_t>(i) * kRows];
    sum += part.y * exp2f(part.x - largest);
  }
  denominator[blockIdx.x * kRows + threadIdx.x] = largest > kNothing ? largest + log2f(sum) : INFINITY;
}

/// Turns a tile's products into probabilities.
__device__ void softmax_tile(const LineProbe& probe, int kv_head, int64_t begin, const float* denominator,
                             const Shared& shared) {
  const int key = static_cast<int>(threadIdx.x) % kTile;
  for (int row = static_cast<int>(threadIdx.x) / kTile; row < probe.q.n_rows; row += kThreads / kTile) {
    float& s = shared.s[row * kScoreStride + key];
    s = exp2f(logit(probe, kv_head, begin + key, visible_of(probe, kv_head, row), s) - denominator[row]);
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads)
    sum_lines(const LineProbe probe, const float* all_denominators, const LineSums sums) {
  extern __shared__ std::byte bytes[];
  __shared__ float denominator[kRows];
  __shared__ float diagonal[kChunk + kRows];  // by key - row + kRows - 1, counted from the chunk's first key
  const Shared shared = carve(bytes, probe.kv.dim);
  const int n_rows = static_cast<int>(probe.q.n_rows);
  const int head = blockIdx.y;
  const int kv_head = head / (probe.q.n_head / probe.kv.n_head_kv);
  load_queries(probe, head, shared);
  if (threadIdx.x < kRows) denominator[threadIdx.x] = all_denominators[head * kRows + threadIdx.x];
  for (int i = threadIdx.x; i < kChunk + kRows; i += kThreads) diagonal[i] = 0;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk;
  for (int64_t begin = first; begin < first + kChunk && begin < probe.max_slots; begin += kTile) {
    score_tile(probe, kv_head, begin, shared);
    softmax_tile(probe, kv_head, begin, denominator, shared);
    const int d = static_cast<int>(threadIdx.x);
    if (d < kTile && begin + d < probe.max_slots) {
      float sum = 0;
      for (int row = 0; row < n_rows; ++row) sum += shared.s[row * kScoreStride + d];
      float& to = sums.vertical[static_cast<int64_t>(head) * probe.max_slots + begin + d];
      to = sums.adds ? to + sum : sum;
    }
    if (sums.slash != nullptr && d < kDiagonals) {
      float sum = 0;
      for (int row = max(0, kRows - 1 - d); row < min(n_rows, kRows - 1 - d + kTile); ++row) {
        sum += shared.s[row * kScoreStride + d - (kRows - 1) + row];
      }
      diagonal[begin - first + d] += sum;
    }
    __syncthreads();
  }
  if (sums.slash == nullptr) return;
  // A diagonal that crosses the border of two chunks gets two addends, whose order does not matter.
  const int64_t own = probe.visible[kv_head * probe.q.n_rows].y - 1;  // row 0's slot
  for (int i = threadIdx.x; i < kChunk + kRows; i += kThreads) {
    const int64_t distance = own - first + kRows - 1 - i;
    if (distance < 0 || distance >= probe.max_slots || diagonal[i] == 0) continue;
    atomicAdd(sums.slash + static_cast<int64_t>(head) * probe.max_slots + distance, diagonal[i]);
  }
}

constexpr int kSelectThreads = 1024;
constexpr int kItems = 8;  // scores of one thread in a strip
constexpr int kDigits = 2048;

struct Scores {
  const float* at;
  int n, n_forced;
  /// Scores are not negative, so their bits order as they do.
  __device__ uint32_t key(int i) const { return i < n_forced ? 0x7f800000U : __float_as_uint(at[i]); }
};

using SelectScan = cub::BlockScan<int, kSelectThreads>;

struct SelectShared {
  int count[kDigits];
  uint32_t digit;
  int above;
  typename SelectScan::TempStorage scan;
};

/// One digit of the k-th largest key, and how many keys lie above it: `prefix` holds the digits found so far.
__device__ void find_digit(const Scores& scores, int shift, int bits, uint32_t& prefix, int& k, SelectShared& shared) {
  for (int i = threadIdx.x; i < kDigits; i += kSelectThreads) shared.count[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < scores.n; i += kSelectThreads) {
    const uint32_t key = scores.key(i);
    if (shift + bits < 32 && (key >> (shift + bits)) != prefix) continue;
    atomicAdd(&shared.count[key >> shift & ((1U << bits) - 1)], 1);
  }
  __syncthreads();
  // From the largest digit down: two to a thread.
  const int high = kDigits - 1 - 2 * static_cast<int>(threadIdx.x);
  const int counts[2] = {shared.count[high], shared.count[high - 1]};
  int before = 0;
  SelectScan(shared.scan).ExclusiveSum(counts[0] + counts[1], before);
  for (int i = 0; i < 2; ++i) {
    if (before < k && before + counts[i] >= k) {
      shared.digit = static_cast<uint32_t>(high - i);
      shared.above = before;
    }
    before += counts[i];
  }
  __syncthreads();
  prefix = prefix << bits | shared.digit;
  k -= shared.above;
  __syncthreads();
}

/// Indices of the k largest scores, ascending, or descending where `backwards`.
__device__ void select_largest(const Scores& scores, int k, bool backwards, int32_t* out, SelectShared& shared) {
  uint32_t threshold = 0;
  int ties = k;  // how many of the keys equal to the threshold are taken
  find_digit(scores, 21, 11, threshold, ties, shared);
  find_digit(scores, 10, 11, threshold, ties, shared);
  find_digit(scores, 0, 10, threshold, ties, shared);
  int n_above = 0;  // of the strips so far
  int n_equal = 0;
  for (int strip = 0; strip < scores.n; strip += kSelectThreads * kItems) {
    const int first = strip + static_cast<int>(threadIdx.x) * kItems;
    int own = 0;  // above in the high half, equal in the low half: both at most 8192
    for (int i = first; i < min(first + kItems, scores.n); ++i) {
      const uint32_t key = scores.key(i);
      own += key > threshold ? 1 << 16 : key == threshold ? 1 : 0;
    }
    int before = 0;
    int all = 0;
    SelectScan(shared.scan).ExclusiveSum(own, before, all);
    int above = n_above + (before >> 16);
    int equal = n_equal + (before & 0xffff);
    for (int i = first; i < min(first + kItems, scores.n); ++i) {
      const uint32_t key = scores.key(i);
      if (key > threshold || (key == threshold && equal < ties)) {
        const int at = above + min(equal, ties);
        out[backwards ? k - 1 - at : at] = i;
      }
      above += key > threshold ? 1 : 0;
      equal += key == threshold ? 1 : 0;
    }
    n_above += all >> 16;
    n_equal += all & 0xffff;
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kSelectThreads)
    select_lines(const LineProbe probe, const float* vertical, const float* slash, const LineBudget* budgets,
                 const ChosenLines chosen) {
  __shared__ SelectShared shared;
  const int head = blockIdx.x;
  const bool slashes = blockIdx.y == 1;
  const int kv_head = head / (probe.q.n_head / probe.kv.n_head_kv);
  const LineBudget budget = budgets[head];
  const int n = probe.visible[(kv_head + 1) * probe.q.n_rows - 1].y;
  const int k = min(slashes ? budget.n_slash : budget.n_vertical, n);
  const Scores scores = {(slashes ? slash : vertical) + static_cast<int64_t>(head) * probe.max_slots, n,
                         slashes ? budget.forced_slashes : budget.forced_verticals};
  int32_t* out = slashes ? chosen.slash + static_cast<int64_t>(head) * chosen.most_slash
                         : chosen.vertical + static_cast<int64_t>(head) * chosen.most_vertical;
  if (threadIdx.x == 0) chosen.n[head * 2 + (slashes ? 1 : 0)] = k;
  if (k > 0) select_largest(scores, k, slashes, out, shared);
}

/// push_lines of attention/lines.h for one query block; `block` and `column` take the entries.
template <typename Block, typename Column>
__device__ void push_lines(const LayArgs& args, int head, int own, int n_seen, Block block, Column column) {
  const int32_t* verticals = args.chosen.vertical + static_cast<int64_t>(head) * args.chosen.most_vertical;
  const int32_t* slashes = args.chosen.slash + static_cast<int64_t>(head) * args.chosen.most_slash;
  const int n_vertical = args.chosen.n[head * 2];
  const int n_slash = args.chosen.n[head * 2 + 1];
  const int end_of_rows = own + kLineBlock;
  int vertical = 0;
  int begin = -1;
  int end = -1;
  const auto flush = [&] {
    for (; vertical < n_vertical && verticals[vertical] < end; ++vertical) {
      if (verticals[vertical] < begin) column(verticals[vertical]);
    }
    for (int slot = begin; slot < min(end, n_seen); slot += kLineBlock) block(slot);
  };
  int low = 0;  // the first distance that is not longer than the last row stands deep
  for (int high = n_slash; low < high;) {
    const int middle = (low + high) / 2;
    if (slashes[middle] >= end_of_rows) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  constexpr int kAhead = 8;  // distances that are fetched together: each by itself would be waited for
  for (int first = low; first < n_slash; first += kAhead) {
    int distance[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) distance[i] = slashes[min(first + i, n_slash - 1)];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {  // the last one again changes nothing
      const int e = max(end_of_rows - distance[i], kLineBlock);
      if (end < 0 || e > end + kLineBlock) {
        if (end >= 0) flush();
        begin = e - kLineBlock;
        end = e;
      } else if (e > end) {
        end += kLineBlock;
      }
    }
  }
  if (end >= 0) flush();
}

/// Without block_begin: how long each list is, written one behind its place. With it: the lists.
__global__ void lay(const LayArgs args, int n_block_q) {
  const int block_q = blockIdx.x * blockDim.x + threadIdx.x;
  if (block_q >= n_block_q) return;
  const int head = blockIdx.y;
  const int2* visible = args.visible + head / args.group * args.n_rows;
  const int64_t row = static_cast<int64_t>(block_q) * kLineBlock;
  const int own = visible[row].y - 1;
  const int n_seen = visible[min(row + kLineBlock, args.n_rows) - 1].y;
  const int64_t list = static_cast<int64_t>(head) * n_block_q + block_q;
  if (args.block_begin == nullptr) {
    int n_block = 0;
    int n_column = 0;
    push_lines(
        args, head, own, n_seen, [&](int) { ++n_block; }, [&](int) { ++n_column; });
    args.block_ptr[list + 1] = n_block;
    args.column_ptr[list + 1] = n_column;
    if (list == 0) args.block_ptr[0] = args.column_ptr[0] = 0;
    return;
  }
  int32_t* block = args.block_begin + args.block_ptr[list];
  int32_t* column = args.column + args.column_ptr[list];
  push_lines(
      args, head, own, n_seen, [&](int slot) { *block++ = slot; }, [&](int slot) { *column++ = slot; });
}

int n_chunk_of(const LineProbe& probe) {
  return (probe.max_slots + kChunk - 1) / kChunk;
}

size_t partial_bytes(const LineProbe& probe) {
  return static_cast<size_t>(probe.q.n_head) * n_chunk_of(probe) * kRows * sizeof(float2);
}

size_t scan_bytes(int64_t n) {
  size_t bytes = 0;
  int32_t* none = nullptr;
  check(cub::DeviceScan::InclusiveSum(nullptr, bytes, none, none, n), "size of a scan");
  return bytes;
}

}  // namespace

size_t line_work_bytes(const LineProbe& probe) {
  return partial_bytes(probe) + static_cast<size_t>(probe.q.n_head) * kRows * sizeof(float);
}

void line_mass(const LineProbe& probe, const LineSums& sums, std::byte* work) {
  const size_t shared = shared_bytes(probe.kv.dim);
  for (const auto* kernel : {reinterpret_cast<const void*>(row_sums), reinterpret_cast<const void*>(sum_lines)}) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
          "shared memory of the probe");
  }
  auto* partial = reinterpret_cast<float2*>(work);
  auto* denominator = reinterpret_cast<float*>(work + partial_bytes(probe));
  const dim3 grid(static_cast<unsigned>(n_chunk_of(probe)), static_cast<unsigned>(probe.q.n_head));
  if (sums.slash != nullptr) {
    const size_t bytes = static_cast<size_t>(probe.q.n_head) * static_cast<size_t>(probe.max_slots) * sizeof(float);
    check(cudaMemsetAsync(sums.slash, 0, bytes, probe.stream), "clearing the slashes");
  }
  row_sums<<<grid, kThreads, shared, probe.stream>>>(probe, partial);
  join_sums<<<static_cast<unsigned>(probe.q.n_head), kRows, 0, probe.stream>>>(partial, n_chunk_of(probe), denominator);
  sum_lines<<<grid, kThreads, shared, probe.stream>>>(probe, denominator, sums);
  check(cudaGetLastError(), "mass of lines");
}

void choose_lines(const LineProbe& probe, const float* vertical, const float* slash, const LineBudget* budget,
                  const ChosenLines& chosen) {
  const dim3 grid(static_cast<unsigned>(probe.q.n_head), 2);
  select_lines<<<grid, kSelectThreads, 0, probe.stream>>>(probe, vertical, slash, budget, chosen);
  check(cudaGetLastError(), "choice of lines");
}

size_t lay_work_bytes(int32_t n_head, int64_t n_rows) {
  return scan_bytes(n_head * ((n_rows + kLineBlock - 1) / kLineBlock));
}

void lay_lines(const LayArgs& args) {
  constexpr int kLayThreads = 64;
  const auto n_block_q = static_cast<int>((args.n_rows + kLineBlock - 1) / kLineBlock);
  const dim3 grid(static_cast<unsigned>((n_block_q + kLayThreads - 1) / kLayThreads),
                  static_cast<unsigned>(args.n_head));
  lay<<<grid, kLayThreads, 0, args.stream>>>(args, n_block_q);
  check(cudaGetLastError(), "lists of lines");
  if (args.block_begin != nullptr) return;
  const int64_t n = int64_t{args.n_head} * n_block_q;
  size_t bytes = scan_bytes(n);
  for (int32_t* ptr : {args.block_ptr, args.column_ptr}) {
    check(cub::DeviceScan::InclusiveSum(args.work, bytes, ptr + 1, ptr + 1, n, args.stream), "ends of the lists");
  }
}

}  // namespace winnow::cuda
