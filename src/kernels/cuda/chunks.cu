// A block of threads chooses for a block of rows and leaves bits; a thread turns these into the runs of a list.
#include "kernels/cuda/chunks.h"

#include <cub/device/device_scan.cuh>

#include "attention/ops.h"
#include "kernels/cuda/check.h"

namespace winnow::cuda {
namespace {

constexpr int kThreads = 128;

unsigned blocks_of(int64_t n, int64_t unit) {
  return static_cast<unsigned>((n + unit - 1) / unit);
}

/// What the rows of a list's block may take.
struct Room {
  int32_t n_allowed;  // slots
  bool all;           // of them are taken
  int32_t recent;     // the first of the last slots
  int32_t n_chunk;    // before these
  int32_t left;       // slots for them

  __device__ Room(const ChunkCall& call, int32_t head, int64_t block) {
    const int64_t end = min((block + 1) * call.block, call.n_rows);
    n_allowed = call.visible[head / call.group * call.n_rows + end - 1].y;
    all = n_allowed <= call.budget;
    recent = n_allowed - call.recent;
    n_chunk = (recent + call.chunk - 1) / call.chunk;
    left = call.budget - call.recent;
  }
  __device__ int32_t length(const ChunkCall& call, int32_t chunk) const {
    return min(call.chunk, recent - chunk * call.chunk);
  }
};

__global__ void __launch_bounds__(kThreads)
    weigh_kernel(float* keys, const int32_t* n_slots, int32_t chunk, int32_t n_chunk, int32_t dim) {
  const int32_t length = min(chunk, n_slots[blockIdx.y] - static_cast<int32_t>(blockIdx.x) * chunk);
  if (length <= 0) return;
  float* mean = keys + (static_cast<int64_t>(blockIdx.y) * n_chunk + blockIdx.x) * dim;
  for (int d = static_cast<int>(threadIdx.x); d < dim; d += kThreads) mean[d] *= sqrtf(static_cast<float>(length));
}

__global__ void __launch_bounds__(kThreads) mean_kernel(float* values, int32_t n_head, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  float sum = 0;
  for (int32_t head = 0; head < n_head; ++head) sum += values[head * n + i];
  values[i] = sum / static_cast<float>(n_head);
}

/// Orders as x does.
__device__ uint32_t order_of(float x) {
  const uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

struct BestShared {
  int32_t of_warp[kThreads / 32];
  int32_t last;
};

/// The n best of a row of scores: those above a border, and of those at it the ones up to an index.
class Best {
 public:
  __device__ Best(const float* scores, int32_t n, BestShared& shared) : scores_(scores), n_(n), shared_(shared) {}

  /// All threads.
  __device__ void choose(int32_t n_best) {
    border_ = 0;
    for (int bit = 31; bit >= 0; --bit) {
      const uint32_t wanted = border_ | 1U << bit;
      if (count([wanted](uint32_t key) { return key >= wanted; }) >= n_best) border_ = wanted;
    }
    const uint32_t border = border_;
    int32_t n_ties = n_best - count([border](uint32_t key) { return key > border; });
    last_ = -1;
    for (int32_t strip = 0; strip < n_ && n_ties > 0; strip += kThreads) {
      const int32_t i = strip + static_cast<int32_t>(threadIdx.x);
      const bool tie = i < n_ && order_of(scores_[i]) == border;
      const int32_t before = rank_in_block(tie);
      if (tie && before == min(n_ties, total_) - 1) shared_.last = i;
      __syncthreads();
      if (total_ > 0) last_ = shared_.last;
      n_ties -= min(n_ties, total_);
      __syncthreads();
    }
  }
  __device__ bool takes(int32_t i) const {
    const uint32_t key = order_of(scores_[i]);
    return key > border_ || (key == border_ && i <= last_);
  }
  /// The lowest in rank.
  __device__ int32_t last() const { return last_; }

 private:
  template <typename Is>
  __device__ int32_t count(const Is& is) const {
    int32_t total = 0;
    for (int32_t strip = 0; strip < n_; strip += kThreads) {
      const int32_t i = strip + static_cast<int32_t>(threadIdx.x);
      total += __syncthreads_count(i < n_ && is(order_of(scores_[i])));
    }
    return total;
  }

  /// How many threads before this one say yes, and in total_ how many do at all.
  __device__ int32_t rank_in_block(bool mine) {
    const uint32_t votes = __ballot_sync(~0U, mine);
    const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
    if (lane == 0) shared_.of_warp[warp] = __popc(votes);
    __syncthreads();
    int32_t before = __popc(votes & ((1U << lane) - 1));
    total_ = 0;
    for (int w = 0; w < kThreads / 32; ++w) {
      if (w < warp) before += shared_.of_warp[w];
      total_ += shared_.of_warp[w];
    }
    return before;
  }

  const float* scores_;
  int32_t n_;
  BestShared& shared_;
  uint32_t border_ = 0;
  int32_t last_ = -1;
  int32_t total_ = 0;
};

__global__ void __launch_bounds__(kThreads)
    choose_kernel(const __grid_constant__ ChunkCall call, int32_t head, const float* scores) {
  __shared__ BestShared shared;
  const Room room(call, head, blockIdx.x);
  if (room.all) return;
  const int64_t list = static_cast<int64_t>(head) * call.n_block_q + blockIdx.x;
  Best best(scores + static_cast<int64_t>(blockIdx.x) * call.n_chunk, room.n_chunk, shared);
  int32_t n = (room.left + call.chunk - 1) / call.chunk;
  if (n > 0) best.choose(n);
  // Of the last chunk there may be less: then one more is needed.
  const int32_t short_by = call.chunk - room.length(call, room.n_chunk - 1);
  const auto missing = [&] { return best.takes(room.n_chunk - 1) ? short_by : 0; };
  if (n > 0 && n < room.n_chunk && n * call.chunk - missing() < room.left) best.choose(++n);
  for (int32_t word = static_cast<int32_t>(threadIdx.x) / 32; word < call.words(); word += kThreads / 32) {
    const int32_t i = word * 32 + static_cast<int32_t>(threadIdx.x) % 32;
    const uint32_t bits = __ballot_sync(~0U, n > 0 && i < room.n_chunk && best.takes(i));
    if (threadIdx.x % 32 == 0) call.chosen[list * call.words() + word] = bits;
  }
  if (threadIdx.x != 0 || n == 0) return;
  const int32_t own = room.length(call, best.last());
  const int32_t others = n * call.chunk - missing() - own;
  call.last[list] = {best.last(), min(own, room.left - others)};
}

/// Calls block(slot) and column(slot) for what a list holds, each ascending.
template <typename Block, typename Column>
__device__ void walk(const ChunkCall& call, int64_t list, Block block, Column column) {
  const Room room(call, static_cast<int32_t>(list / call.n_block_q), list % call.n_block_q);
  int32_t begin = 0, end = room.all ? room.n_allowed : call.sinks;  // of the run so far
  const auto flush = [&] {
    for (; begin + kChunkBlock <= end; begin += kChunkBlock) block(begin);
    for (; begin < end; ++begin) column(begin);
  };
  int32_t to_drop = call.sinks;
  const auto add = [&](int32_t from, int32_t to) {
    const int32_t dropped = min(to_drop, to - from);
    to_drop -= dropped;
    from += dropped;
    if (from == to) return;
    if (from != end) {
      flush();
      begin = from;
    }
    end = to;
  };
  if (!room.all) {
    const uint32_t* chosen = call.chosen + list * call.words();
    const int2 last = call.last[list];
    for (int32_t word = 0; room.left > 0 && word * 32 < room.n_chunk; ++word) {
      for (uint32_t bits = chosen[word]; bits != 0; bits &= bits - 1) {
        const int32_t i = word * 32 + __ffs(static_cast<int>(bits)) - 1;
        add(i * call.chunk, i * call.chunk + (i == last.x ? last.y : room.length(call, i)));
      }
    }
    add(room.recent, room.n_allowed);
  }
  flush();
}

/// How long each list is, written one behind its place.
__global__ void __launch_bounds__(kThreads) measure_kernel(const __grid_constant__ ChunkCall call) {
  const int64_t list = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (list >= call.n_list()) return;
  int32_t n_block = 0, n_column = 0;
  walk(
      call, list, [&](int32_t) { ++n_block; }, [&](int32_t) { ++n_column; });
  call.block_ptr[list + 1] = n_block;
  call.column_ptr[list + 1] = n_column;
  if (list == 0) call.block_ptr[0] = call.column_ptr[0] = 0;
}

__global__ void __launch_bounds__(kThreads)
    write_kernel(const __grid_constant__ ChunkCall call, int32_t* block_begin, int32_t* columns) {
  const int64_t list = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (list >= call.n_list()) return;
  int32_t* block = block_begin + call.block_ptr[list];
  int32_t* column = columns + call.column_ptr[list];
  walk(
      call, list, [&](int32_t slot) { *block++ = slot; }, [&](int32_t slot) { *column++ = slot; });
}

}  // namespace

void weigh_means(float* keys, const int32_t* n_slots, int32_t n_head_kv, const ChunkCall& call, int32_t dim) {
  const dim3 grid(static_cast<unsigned>(call.n_chunk), static_cast<unsigned>(n_head_kv));
  weigh_kernel<<<grid, kThreads, 0, call.stream>>>(keys, n_slots, call.chunk, call.n_chunk, dim);
  check(cudaGetLastError(), "weights of chunks");
}

void mean_of_heads(float* values, int32_t n_head, int64_t n, Stream stream) {
  if (n == 0) return;
  mean_kernel<<<blocks_of(n, kThreads), kThreads, 0, stream>>>(values, n_head, n);
  check(cudaGetLastError(), "means over heads");
}

void choose_chunks(const ChunkCall& call, int32_t head, const float* scores) {
  choose_kernel<<<static_cast<unsigned>(call.n_block_q), kThreads, 0, call.stream>>>(call, head, scores);
  check(cudaGetLastError(), "choice of chunks");
}

size_t chunk_work_bytes(const ChunkCall& call) {
  size_t bytes = 0;
  int32_t* none = nullptr;
  check(cub::DeviceScan::InclusiveSum(nullptr, bytes, none, none, call.n_list()), "size of a scan");
  return bytes;
}

void measure_chunks(const ChunkCall& call, std::byte* work) {
  measure_kernel<<<blocks_of(call.n_list(), kThreads), kThreads, 0, call.stream>>>(call);
  check(cudaGetLastError(), "lengths of lists");
  size_t bytes = chunk_work_bytes(call);
  for (int32_t* ptr : {call.block_ptr, call.column_ptr}) {
    check(cub::DeviceScan::InclusiveSum(work, bytes, ptr + 1, ptr + 1, call.n_list(), call.stream),
          "ends of the lists");
  }
}

void write_chunks(const ChunkCall& call, int32_t* block_begin, int32_t* column) {
  write_kernel<<<blocks_of(call.n_list(), kThreads), kThreads, 0, call.stream>>>(call, block_begin, column);
  check(cudaGetLastError(), "lists of chunks");
}

}  // namespace winnow::cuda
