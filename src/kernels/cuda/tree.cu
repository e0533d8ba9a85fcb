// A block of threads searches for a block of rows. Its branches lie in shared memory; the keys that stand for their
// halves are gathered by each warp, 16 at a time, and multiplied with all sampled rows on the tensor cores.
#include "kernels/cuda/tree.h"

#include <mma.h>

#include <algorithm>
#include <cub/device/device_scan.cuh>

#include "kernels/cuda/check.h"
#include "kernels/cuda/stored.cuh"

namespace winnow::cuda {

int32_t TreeCall::n_block_q() const {
  return static_cast<int32_t>((q.n_rows + kTreeBlock - 1) / kTreeBlock);
}

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTile = 16;  // keys of a warp at a time, and queries of one product
constexpr int kPad = 8;    // bf16 values behind a row in shared memory, against bank conflicts
constexpr size_t kMostShared = 200 * 1024;

struct Branches {
  int32_t* start;  // key blocks [start, start + size) of the searched slots
  int32_t* size;
};

struct Shared {
  bf16* q;          // [kTreeBlock, dim + kPad]
  bf16* k;          // [kWarps][kTile, dim + kPad]
  float* product;   // [kWarps][kTile, kTile]
  Branches branch;  // [n_keep]
  Branches half;    // [2 n_keep]
  uint32_t* score;  // [2 n_keep] of halves, as keys that order as scores do; 0: none
};

size_t shared_bytes(const TreeCall& call) {
  const auto dim = static_cast<size_t>(call.kv.dim + kPad);
  return (kTreeBlock + kWarps * kTile) * dim * sizeof(bf16) + kWarps * kTile * kTile * sizeof(float) +
         8 * static_cast<size_t>(call.n_keep) * sizeof(int32_t);
}

__device__ Shared carve(std::byte* bytes, const TreeCall& call) {
  const int dim = call.kv.dim + kPad;
  Shared shared;
  shared.q = reinterpret_cast<bf16*>(bytes);
  shared.k = shared.q + kTreeBlock * dim;
  shared.product = reinterpret_cast<float*>(shared.k + kWarps * kTile * dim);
  auto* words = reinterpret_cast<int32_t*>(shared.product + kWarps * kTile * kTile);
  shared.branch = {words, words + call.n_keep};
  words += 2 * call.n_keep;
  shared.half = {words, words + 2 * call.n_keep};
  shared.score = reinterpret_cast<uint32_t*>(words + 4 * call.n_keep);
  return shared;
}

/// Orders as x does; above 0 for every number.
__device__ uint32_t order_of(float x) {
  const uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

/// How many threads before this one say yes; `total`: how many at all. All threads.
__device__ int32_t rank_in_block(bool mine, int32_t& total) {
  __shared__ int32_t of_warp[kWarps];
  const uint32_t votes = __ballot_sync(~0U, mine);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  __syncthreads();  // the last use's readers are done
  if (lane == 0) of_warp[warp] = __popc(votes);
  __syncthreads();
  int32_t before = __popc(votes & ((1U << lane) - 1));
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += of_warp[w];
    total += of_warp[w];
  }
  return before;
}

class Search {
 public:
  __device__ Search(const TreeCall& call, const Shared& shared, int head, int32_t block)
      : call_(call),
        shared_(shared),
        head_(head),
        kv_head_(head / (call.q.n_head / call.kv.n_head_kv)),
        row_(static_cast<int64_t>(block) * kTreeBlock),
        n_rows_(static_cast<int32_t>(min(call.q.n_rows - row_, int64_t{kTreeBlock}))),
        n_query_((n_rows_ + call.query_stride - 1) / call.query_stride) {
    const int2* visible = call.visible + kv_head_ * call.q.n_rows + row_;
    end_ = max(0, visible[0].y - call.window);
    begin_ = min(call.sinks, end_);
    window_end_ = visible[n_rows_ - 1].y + call.n_later;
    n_block_ = (end_ - begin_ + call.key_block - 1) / call.key_block;
  }

  __device__ bool takes_all() const { return end_ - begin_ <= call_.n_keys; }

  /// The list's lengths: sinks and found slots, and blocks of the window.
  __device__ int2 lengths(const int32_t* found) const {
    int32_t n = end_ - begin_;
    if (!takes_all()) {
      n = call_.n_keep * call_.key_block;
      // The last key block may be a shorter one.
      if (found[call_.n_keep - 1] == n_block_ - 1) n -= n_block_ * call_.key_block - (end_ - begin_);
    }
    return {begin_ + n, (window_end_ - end_ + kTreeBlock - 1) / kTreeBlock};
  }

  __device__ void write(const int32_t* found, int32_t* block, int32_t* column) const {
    for (int32_t i = threadIdx.x; end_ + i * kTreeBlock < window_end_; i += kThreads) block[i] = end_ + i * kTreeBlock;
    const int32_t n_all = takes_all() ? end_ : begin_;
    for (int32_t i = threadIdx.x; i < n_all; i += kThreads) column[i] = i;
    if (takes_all()) return;
    for (int32_t i = threadIdx.x; i < call_.n_keep * call_.key_block; i += kThreads) {
      const int32_t slot = begin_ + found[i / call_.key_block] * call_.key_block + i % call_.key_block;
      if (slot < end_) column[begin_ + i] = slot;
    }
  }

  /// Into `found`, ascending.
  __device__ void run(int32_t* found) {
    load_queries();
    for (int32_t j = threadIdx.x; j < call_.n_keep; j += kThreads) {
      shared_.branch.start[j] = start(j);
      shared_.branch.size[j] = start(j + 1) - start(j);
    }
    __syncthreads();
    while (any_wide()) {
      const int32_t n_half = halve();
      score(n_half);
      keep_best(n_half);
    }
    for (int32_t j = threadIdx.x; j < call_.n_keep; j += kThreads) found[j] = shared_.branch.start[j];
  }

 private:
  __device__ int32_t start(int64_t j) const { return static_cast<int32_t>(j * n_block_ / call_.n_keep); }

  __device__ void load_queries() {
    const int dim = call_.kv.dim;
    for (int i = threadIdx.x; i < kTreeBlock * dim; i += kThreads) {
      const int query = i / dim, d = i % dim;
      float x = 0;
      if (query < n_query_ && d < call_.q.head_dim) {
        const int64_t at =
            (row_ + query * call_.query_stride) * call_.q.stride + static_cast<int64_t>(head_) * call_.q.head_dim + d;
        x = call_.q.type == Type::f32 ? static_cast<const float*>(call_.q.data)[at]
                                      : to_float(static_cast<const bf16*>(call_.q.data)[at]);
      }
      shared_.q[query * (dim + kPad) + d] = from_float<bf16>(x);
    }
  }

  __device__ bool any_wide() const {
    bool mine = false;
    for (int32_t j = threadIdx.x; j < call_.n_keep; j += kThreads) mine |= shared_.branch.size[j] > 1;
    return __syncthreads_or(mine) != 0;
  }

  /// -> how many halves there are
  __device__ int32_t halve() {
    int32_t n_wide = 0;  // of the strips so far
    for (int32_t strip = 0; strip < call_.n_keep; strip += kThreads) {
      const int32_t j = strip + static_cast<int32_t>(threadIdx.x);
      const bool there = j < call_.n_keep;
      const int32_t first = there ? shared_.branch.start[j] : 0, size = there ? shared_.branch.size[j] : 0;
      int32_t total = 0;
      int32_t at = j + n_wide + rank_in_block(size > 1, total);
      n_wide += total;
      if (!there) continue;
      if (size > 1) set_half(at++, first, size / 2);
      set_half(at, first + size / 2, size - size / 2);
    }
    __syncthreads();
    return call_.n_keep + n_wide;
  }

  __device__ void set_half(int32_t at, int32_t first, int32_t size) {
    shared_.half.start[at] = first;
    shared_.half.size[at] = size;
    shared_.score[at] = 0;
  }

  /// The slot of entry e: keys of a half's middle block one behind the other, half after half.
  __device__ int32_t slot_of(int32_t e, int32_t n_key) const {
    const int32_t half = e / n_key;
    const int32_t middle = shared_.half.start[half] + shared_.half.size[half] / 2;
    return min(begin_ + middle * call_.key_block + e % n_key * call_.key_stride, end_ - 1);
  }

  __device__ void score(int32_t n_half) {
    const int32_t n_key = (call_.key_block + call_.key_stride - 1) / call_.key_stride, n = n_half * n_key;
    const int warp = static_cast<int>(threadIdx.x / 32);
    for (int32_t first = warp * kTile; first < n; first += kWarps * kTile) {
      gather(first, n, n_key);
      const float largest = multiply();
      const auto lane = static_cast<int32_t>(threadIdx.x % 32);
      if (lane < kTile && first + lane < n) atomicMax(&shared_.score[(first + lane) / n_key], order_of(largest));
    }
    __syncthreads();
  }

  /// Keys of the entries [first, first + kTile) into the warp's rows.
  __device__ void gather(int32_t first, int32_t n, int32_t n_key) {
    const int dim = call_.kv.dim, chunks = dim / 8;
    bf16* to = shared_.k + static_cast<int>(threadIdx.x / 32) * kTile * (dim + kPad);
    __syncwarp();
    for (int i = static_cast<int>(threadIdx.x % 32); i < kTile * chunks; i += 32) {
      const int row = i / chunks, d = i % chunks * 8;
      const int32_t slot = slot_of(min(first + row, n - 1), n_key);
      *reinterpret_cast<uint4*>(to + row * (dim + kPad) + d) = key8(slot, d);
    }
    __syncwarp();
  }

  /// Values d to d + 7 of a key.
  __device__ uint4 key8(int32_t slot, int32_t d) const {
    if (call_.k == nullptr) {
      const int64_t row = static_cast<int64_t>(kv_head_) * call_.kv.capacity + slot;
      return *reinterpret_cast<const uint4*>(call_.kv.k + row * call_.kv.dim + d);
    }
    if (d >= call_.q.head_dim) return {0, 0, 0, 0};
    const std::byte* block = call_.k[call_.first_block[kv_head_] + slot / kBlockSlots];
    return stored8(call_.k_type, block + slot % kBlockSlots * row_bytes(call_.k_type, call_.q.head_dim), d);
  }

  /// -> in lane i, up to kTile, the largest logit of the warp's key i
  __device__ float multiply() {
    namespace wmma = nvcuda::wmma;
    const int stride = call_.kv.dim + kPad, warp = static_cast<int>(threadIdx.x / 32);
    const int lane = static_cast<int>(threadIdx.x % 32);
    const bf16* keys = shared_.k + warp * kTile * stride;
    float* product = shared_.product + warp * kTile * kTile;  // [query, key]
    float largest = -INFINITY;
    for (int query = 0; query < n_query_; query += kTile) {
      wmma::fragment<wmma::accumulator, kTile, kTile, kTile, float> sum;
      wmma::fill_fragment(sum, 0.0F);
      for (int d = 0; d < call_.kv.dim; d += kTile) {
        wmma::fragment<wmma::matrix_a, kTile, kTile, kTile, bf16, wmma::row_major> a;
        wmma::fragment<wmma::matrix_b, kTile, kTile, kTile, bf16, wmma::col_major> b;
        wmma::load_matrix_sync(a, shared_.q + query * stride + d, stride);
        wmma::load_matrix_sync(b, keys + d, stride);
        wmma::mma_sync(sum, a, b, sum);
      }
      wmma::store_matrix_sync(product, sum, kTile, wmma::mem_row_major);
      __syncwarp();
      for (int i = 0; i < min(kTile, n_query_ - query) && lane < kTile; ++i) {
        largest = fmaxf(largest, product[i * kTile + lane] * call_.scale);
      }
      __syncwarp();
    }
    return largest;
  }

  /// How many scores are at least `least`.
  __device__ int32_t count(int32_t n, uint32_t least) const {
    int32_t total = 0;
    for (int32_t strip = 0; strip < n; strip += kThreads) {
      const int32_t i = strip + static_cast<int32_t>(threadIdx.x);
      total += __syncthreads_count(i < n && shared_.score[i] >= least);
    }
    return total;
  }

  /// The n_keep best halves become branches; of equal ones the lower.
  __device__ void keep_best(int32_t n) {
    uint32_t border = 0;  // the n_keep-th largest score
    for (int bit = 31; bit >= 0; --bit) {
      const uint32_t wanted = border | 1U << bit;
      if (count(n, wanted) >= call_.n_keep) border = wanted;
    }
    const int32_t n_ties = call_.n_keep - (border == ~0U ? 0 : count(n, border + 1));
    int32_t n_equal = 0, n_kept = 0;  // of the strips so far
    for (int32_t strip = 0; strip < n; strip += kThreads) {
      const int32_t i = strip + static_cast<int32_t>(threadIdx.x);
      const uint32_t score = i < n ? shared_.score[i] : 0;
      int32_t total = 0;
      const bool equal = i < n && score == border;
      const int32_t tie = n_equal + rank_in_block(equal, total);
      const bool kept = i < n && (score > border || (equal && tie < n_ties));
      n_equal += total;
      const int32_t at = n_kept + rank_in_block(kept, total);
      n_kept += total;
      if (!kept) continue;
      shared_.branch.start[at] = shared_.half.start[i];
      shared_.branch.size[at] = shared_.half.size[i];
    }
    __syncthreads();
  }

  const TreeCall& call_;
  const Shared& shared_;
  int head_, kv_head_;
  int64_t row_;
  int32_t n_rows_, n_query_;
  int32_t begin_, end_;  // slots that are searched
  int32_t window_end_, n_block_;
};

__global__ void __launch_bounds__(kThreads) search_kernel(const __grid_constant__ TreeCall call) {
  extern __shared__ __align__(16) std::byte bytes[];
  const Shared shared = carve(bytes, call);
  const int64_t list = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  int32_t* found = call.found + list * call.n_keep;
  Search search(call, shared, static_cast<int>(blockIdx.y), static_cast<int32_t>(blockIdx.x));
  if (!search.takes_all()) search.run(found);
  __syncthreads();
  if (threadIdx.x != 0) return;
  const int2 lengths = search.lengths(found);
  call.column_ptr[list + 1] = lengths.x;
  call.block_ptr[list + 1] = lengths.y;
  if (list == 0) call.column_ptr[0] = call.block_ptr[0] = 0;
}

__global__ void __launch_bounds__(kThreads)
    write_kernel(const __grid_constant__ TreeCall call, int32_t* block_begin, int32_t* column) {
  const Shared none{};
  const int64_t list = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const Search search(call, none, static_cast<int>(blockIdx.y), static_cast<int32_t>(blockIdx.x));
  search.write(call.found + list * call.n_keep, block_begin + call.block_ptr[list], column + call.column_ptr[list]);
}

dim3 grid_of(const TreeCall& call) {
  return {static_cast<unsigned>(call.n_block_q()), static_cast<unsigned>(call.q.n_head)};
}

int64_t lists_of(const TreeCall& call) {
  return int64_t{call.n_block_q()} * call.q.n_head;
}

}  // namespace

bool tree_fits(const TreeCall& call) {
  return shared_bytes(call) <= kMostShared;
}

size_t tree_work_bytes(const TreeCall& call) {
  size_t bytes = 0;
  int32_t* none = nullptr;
  check(cub::DeviceScan::InclusiveSum(nullptr, bytes, none, none, lists_of(call)), "size of a scan");
  return bytes;
}

void search_tree(const TreeCall& call, std::byte* work) {
  const size_t shared = shared_bytes(call);
  check(cudaFuncSetAttribute(search_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "shared memory of a tree search");
  search_kernel<<<grid_of(call), kThreads, shared, call.stream>>>(call);
  check(cudaGetLastError(), "tree search");
  size_t bytes = tree_work_bytes(call);
  for (int32_t* ptr : {call.block_ptr, call.column_ptr}) {
    check(cub::DeviceScan::InclusiveSum(work, bytes, ptr + 1, ptr + 1, lists_of(call), call.stream),
          "ends of the lists");
  }
}

void write_tree(const TreeCall& call, int32_t* block_begin, int32_t* column) {
  write_kernel<<<grid_of(call), kThreads, 0, call.stream>>>(call, block_begin, column);
  check(cudaGetLastError(), "lists of found keys");
}

}  // namespace winnow::cuda
