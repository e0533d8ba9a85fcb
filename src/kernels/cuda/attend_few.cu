// Attention of few rows (decode) straight from the cache's blocks. It is bound by memory: every key and value is read
// once for all queries of its kv head, the keys are divided evenly over the whole machine, and each warp has chunks of
// 16 keys on their way while it multiplies the last ones by mma.sync. Partial results are merged in a fixed order.
//
// Skip-softmax needs the maxima of all earlier tiles before a tile's values are read. A dropped tile never holds a
// row's largest logit, so the running maximum is that of all earlier tiles, kept or not: logits first (one pass over
// K), then a scan for the votes, then the kept tiles' values. The same two passes serve K and V of different types.
#include <algorithm>
#include <atomic>
#include <cfloat>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/few_segment.cuh"
#include "kernels/cuda/launch.cuh"

namespace winnow::cuda {
namespace {

constexpr int32_t kScanThreads = 1024;

template <Type kType, int32_t kDim, int32_t kTiles>
constexpr int32_t kResident = kTiles == 1 && kDim <= 128 ? 4 : 2;  // blocks of a multiprocessor

template <Type kType, int32_t kDim, int32_t kTiles, Pass kPass>
__global__ void __launch_bounds__(kMaxWarps * 32, (kResident<kType, kDim, kTiles>))
    attend_kernel(const __grid_constant__ FewJob job) {
  extern __shared__ __align__(16) char memory[];
  using Work = Segment<kType, kDim, kTiles, kPass>;
  __shared__ typename Work::Shared shared;
  auto* shares = reinterpret_cast<Share*>(memory + job.shares_offset);
  if (job.has_lists) wait_for_last_kernel();  // the one that finds out their facts
  divide(job, shares);
  const auto part = static_cast<int32_t>(blockIdx.y);
  int32_t i = 0;
  while (i < job.n_items && part >= shares[i].first + shares[i].n) ++i;
  take_turn();
  if (i == job.n_items) return;
  const Share share = shares[i];
  const Item item = make_item(job, i);
  Work work(job, item, shared, memory);
  work.run(share.begin(part - share.first), share.begin(part - share.first + 1), part);
}

/// Lists of one kind: of blocks or of columns.
struct KindOfLists {
  const int32_t* begin;
  const int32_t* end;
  const int32_t* all;
  __device__ int32_t n(int64_t list) const { return end[list] - begin[list]; }
  /// Whether lists a and b are equal, as far as this thread looks.
  __device__ bool same(int64_t a, int64_t b) const {
    bool same = n(a) == n(b);
    for (int32_t i = threadIdx.x; same && i < n(a); i += blockDim.x) same = all[begin[a] + i] == all[begin[b] + i];
    return same;
  }
};

/// Fills `facts` of the query heads of kv head blockIdx.x.
__global__ void examine_lists(const __grid_constant__ FewJob job) {
  take_turn();
  const Lists& lists = job.lists;
  const KindOfLists blocks = {lists.block_ptr, lists.block_ptr + 1, lists.block_begin};
  const KindOfLists columns = {lists.column_ptr, lists.column_end, lists.column};
  const int32_t first = static_cast<int32_t>(blockIdx.x) * job.group;
  bool same = true;
  for (int32_t head = first + 1; lists.n_head > 1 && head < first + job.group; ++head) {
    same = same && blocks.same(list_of(job, first), list_of(job, head)) &&
           columns.same(list_of(job, first), list_of(job, head));
  }
  same = __syncthreads_and(same ? 1 : 0) != 0;
  for (int32_t i = threadIdx.x; i < job.group; i += blockDim.x) {
    job.facts[first + i] = facts_of(job, first + i, job.call.n_slots[blockIdx.x], same);
  }
}

/// The largest of the x of all threads before this one and of `carry`, to which the block's x are then added.
__device__ float largest_before(float x, float& carry) {
  __shared__ float totals[kScanThreads / 32];
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
  for (int32_t step = 1; step < 32; step *= 2) {
    const float left = __shfl_up_sync(~0U, x, step);
    if (lane >= step) x = fmaxf(x, left);
  }
  __syncthreads();  // the last call's totals have been read
  if (lane == 31) totals[warp] = x;
  __syncthreads();
  const float left = __shfl_up_sync(~0U, x, 1);
  float before = lane == 0 ? carry : fmaxf(carry, left);
  for (int32_t i = 0; i < kScanThreads / 32; ++i) {
    if (i < warp) before = fmaxf(before, totals[i]);
    carry = fmaxf(carry, totals[i]);
  }
  return before;
}

/// The votes of one item (blockIdx.x) and unit (blockIdx.y), a thread for each tile. Members' maxima so far are in
/// shared memory.
__global__ void __launch_bounds__(kScanThreads) vote(const __grid_constant__ FewJob job) {
  extern __shared__ float so_far[];
  const Item item = make_item(job, static_cast<int32_t>(blockIdx.x));
  const auto unit = static_cast<int32_t>(blockIdx.y);
  const auto n_rows = static_cast<int32_t>(job.call.q.n_rows);
  const int32_t first = n_rows == 1 ? 0 : unit * n_rows;
  const int32_t n_members = n_rows == 1 ? item.n_heads : unit < item.n_heads ? n_rows : 0;
  for (int32_t i = threadIdx.x; i < n_members; i += blockDim.x) so_far[i] = -INFINITY;
  __syncthreads();
  for (int32_t base = 0; n_members > 0 && base < item.n_tiles; base += kScanThreads) {
    const int32_t tile = base + static_cast<int32_t>(threadIdx.x);
    uint32_t real = 0;  // chunks with logits
    for (int32_t i = 0; tile < item.n_tiles && i < kTileChunks; ++i) {
      if (make_chunk(job, item, tile * kTileChunks + i).matters(item)) real |= 1U << i;
    }
    bool seen = false, seen_before = false, keep = false;
    for (int32_t member = 0; member < n_members; ++member) {
      float x = -INFINITY;
      for (int32_t i = 0; i < kTileChunks; ++i) {
        const int64_t at = operand_of(job, item, tile * kTileChunks + i, 0) * 8;
        if ((real >> i & 1) != 0) x = fmaxf(x, job.largest[at + first + member]);
      }
      float carry = so_far[member];
      const float before = largest_before(x, carry);
      if (threadIdx.x == 0) so_far[member] = carry;
      const float threshold = job.call.skip[item.head + (first + member) / n_rows] * kLog2e;
      seen |= x > -INFINITY;
      seen_before |= before > -INFINITY;
      keep |= x > -FLT_MAX && !(x - fmaxf(x, before) < threshold);
    }
    if (tile < item.n_tiles) {
      job.keep_of(item.index, tile)[unit] = seen && (keep || !seen_before);
    }
    __syncthreads();
  }
}

struct Limits {
  int32_t n_multiprocessors = 0;
  size_t block_memory = 0, multiprocessor_memory = 0;
};

const Limits& device_limits() {
  static const Limits kLimits = [] {
    int device = 0, n = 0, block = 0, multiprocessor = 0;
    check(cudaGetDevice(&device), "attend_few");
    check(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device), "attend_few");
    check(cudaDeviceGetAttribute(&block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "attend_few");
    check(cudaDeviceGetAttribute(&multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device), "attend_few");
    return Limits{n, static_cast<size_t>(block), static_cast<size_t>(multiprocessor)};
  }();
  return kLimits;
}

/// Tiles of 8 queries that one block takes; more are left to more blocks, which find the keys in the L2 cache.
int32_t query_tiles(const FewJob& job) {
  const int64_t n = job.group * job.call.q.n_rows;
  return n <= 8 ? 1 : n <= 16 || job.dim == 256 ? 2 : 4;
}

/// Calls f with the kernel's types: f.operator()<kType, kDim, kTiles>().
template <typename F>
void with_types(Type type, const FewJob& job, const F& f) {
  const auto with_tiles = [&]<Type kType, int32_t kDim>() {
    const int32_t n = query_tiles(job);
    if (n == 1) return f.template operator()<kType, kDim, 1>();
    if (n == 2 || kDim == 256) return f.template operator()<kType, kDim, 2>();
    if constexpr (kDim < 256) f.template operator()<kType, kDim, 4>();
  };
  const auto with_dim = [&]<Type kType>() {
    if (job.dim == 64) return with_tiles.template operator()<kType, 64>();
    if (job.dim == 128) return with_tiles.template operator()<kType, 128>();
    return with_tiles.template operator()<kType, 256>();
  };
  if (type == Type::f16) return with_dim.template operator()<Type::f16>();
  if (type == Type::bf16) return with_dim.template operator()<Type::bf16>();
  if (type == Type::q8_0) return with_dim.template operator()<Type::q8_0>();
  if (type == Type::fp8) return with_dim.template operator()<Type::fp8>();
  return with_dim.template operator()<Type::f32>();
}

bool takes_two_passes(const FewRows& call) {
  return call.skip != nullptr || call.k_type != call.v_type || call.k_type == Type::f32;
}

/// Chooses warps and stages; returns how many blocks a multiprocessor then holds.
template <Type kType, int32_t kDim, int32_t kTiles, Pass kPass>
int32_t fit(FewJob& job, const Limits& limits) {
  using L = Layout<kType, kDim, kTiles, kPass>;
  using Shared = typename Segment<kType, kDim, kTiles, kPass>::Shared;
  constexpr size_t kReserved = 1024;  // of each block, by CUDA
  const auto resident = [&](int32_t n_warps, int32_t n_stages) {
    job.n_warps = n_warps;
    job.n_stages = n_stages;
    job.shares_offset = L::kOperands + L::rings(job);
    const size_t bytes = job.shares_offset + padded(sizeof(Share) * static_cast<size_t>(job.n_items)) + sizeof(Shared);
    if (bytes > limits.block_memory) return 0;
    return static_cast<int32_t>(
        std::min<size_t>(limits.multiprocessor_memory / (bytes + kReserved), (kResident<kType, kDim, kTiles>)));
  };
  for (const int32_t n_warps : {kMaxWarps, kMaxWarps / 2}) {
    const int32_t fewer = resident(n_warps, kMaxStages - 1);
    const int32_t more = resident(n_warps, kMaxStages);
    if (more > 0 && more >= std::min(fewer, 2)) return more;
    if (fewer > 0) return resident(n_warps, kMaxStages - 1);
  }
  return 1;  // the launch will say what is missing
}

template <Pass kPass>
int32_t fit(FewJob& job, Type type) {
  const Limits& limits = device_limits();
  int32_t n_blocks = 0;
  with_types(type, job, [&]<Type kType, int32_t kDim, int32_t kTiles>() {
    if constexpr (kPass != Pass::all || kType != Type::f32) {
      n_blocks = fit<kType, kDim, kTiles, kPass>(job, limits) * limits.n_multiprocessors;
    }
  });
  return n_blocks;
}

template <Pass kPass>
void launch(FewJob job, Type type) {
  fit<kPass>(job, type);
  with_types(type, job, [&]<Type kType, int32_t kDim, int32_t kTiles>() {
    if constexpr (kPass != Pass::all || kType != Type::f32) {
      const auto kernel = attend_kernel<kType, kDim, kTiles, kPass>;
      const size_t bytes = job.shares_offset + padded(sizeof(Share) * static_cast<size_t>(job.n_items));
      static std::atomic<size_t> most = 0;  // that this kernel was allowed
      if (bytes > most) {
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
              "attend_few");
        most = bytes;
      }
      const dim3 grid(static_cast<uint32_t>(job.n_padded / (kTiles * 8)), static_cast<uint32_t>(job.n_split));
      launch_early({grid, static_cast<uint32_t>(job.n_warps * 32), bytes, job.call.stream, "attend_few"}, kernel, job);
    }
  });
}

/// Gives parts of the work memory away one after another.
class Cutter {
 public:
  explicit Cutter(std::byte* memory) : memory_(memory) {}

  template <typename T>
  void cut(T*& part, int64_t n) {
    part = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += (sizeof(T) * static_cast<size_t>(n) + 255) / 256 * 256;
  }
  size_t used() const { return used_; }

 private:
  std::byte* memory_;
  size_t used_ = 0;
};

/// The division of a call and its work memory, whose size is put into `bytes`.
FewJob make_job(const FewRows& call, size_t& bytes) {
  FewJob job;
  job.call = call;
  job.call.max_slots = 0;  // the device goes by n_slots: so a step's launch is like that of the step before
  job.has_lists = call.lists != nullptr;
  if (job.has_lists) job.lists = *call.lists;
  job.group = call.q.n_head / call.n_head_kv;
  const bool by_head = job.has_lists && job.lists.n_head > 1;
  job.n_items = by_head ? call.q.n_head : call.n_head_kv;
  job.dim = call.q.head_dim <= 64 ? 64 : call.q.head_dim <= 128 ? 128 : 256;
  const auto n_rows = static_cast<int32_t>(call.q.n_rows);
  const int32_t width = query_tiles(job) * 8;
  job.n_padded = (job.group * n_rows + width - 1) / width * width;
  job.item_operands = ((by_head ? 1 : job.group) * n_rows + 7) / 8;
  job.votes = call.skip != nullptr;
  job.n_units = job.votes && n_rows > 1 ? job.group : 1;
  const int32_t n_blocks =
      takes_two_passes(call) ? fit<Pass::values>(job, call.v_type) : fit<Pass::all>(job, call.v_type);
  job.n_split = std::max(n_blocks / (job.n_padded / width), job.n_items);

  Cutter cutter(call.work);
  const int64_t n_partial = static_cast<int64_t>(job.n_split) * job.n_padded;
  cutter.cut(job.o, n_partial * job.dim);
  cutter.cut(job.mass, n_partial);
  if (by_head && job.group > 1) cutter.cut(job.facts, call.q.n_head);
  if (takes_two_passes(call)) {
    job.max_tiles = call.max_slots / kVoteSlots + 4;  // lists are disjoint; each kind may end in a broken tile
    const int64_t n = (static_cast<int64_t>(job.n_items) * job.max_tiles * kTileChunks) * job.item_operands;
    cutter.cut(job.logits, n * 32);
    cutter.cut(job.largest, n * 8);
    cutter.cut(job.keep, static_cast<int64_t>(job.n_items) * job.max_tiles * job.n_units);
  }
  bytes = cutter.used();
  return job;
}

}  // namespace

size_t few_rows_work_bytes(const FewRows& call) {
  size_t bytes = 0;
  make_job(call, bytes);
  return bytes;
}

void attend_few(const FewRows& call) {
  size_t bytes = 0;
  const FewJob job = make_job(call, bytes);
  if (call.q.n_rows == 0) return;
  if (job.facts != nullptr) {
    launch_early({static_cast<uint32_t>(call.n_head_kv), 256, 0, call.stream, "attend_few: lists"}, examine_lists, job);
  }
  if (takes_two_passes(call)) {
    launch<Pass::keys>(job, call.k_type);
    if (job.votes) {
      const dim3 grid(static_cast<uint32_t>(job.n_items), static_cast<uint32_t>(job.n_units));
      const size_t members = static_cast<size_t>(std::max<int64_t>(job.group, call.q.n_rows)) * sizeof(float);
      vote<<<grid, kScanThreads, members, call.stream>>>(job);
      check(cudaGetLastError(), "attend_few: votes");
    }
    launch<Pass::values>(job, call.v_type);
  } else {
    launch<Pass::all>(job, call.k_type);
  }
  merge_few(job);
}

}  // namespace winnow::cuda
