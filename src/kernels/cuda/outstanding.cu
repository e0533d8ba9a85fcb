// Tiles of voters are multiplied by the keys, and nothing of the size rows x slots is stored: first by sink and local
// keys, which tells what a logit must exceed, then by the keys between, of which only comparisons leave the registers.
#include "kernels/cuda/outstanding.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/key_tiles.cuh"
#include "kernels/cuda/vec_inl.h"

namespace winnow::cuda {
namespace {

constexpr int kVoters = 2 * kTile;  // of a tile: both stages of keys together hold them
constexpr int kThreads = 256;       // warps have 32 voters and 32 keys of a tile

__device__ const int2* visible_of(const OutstandingCall& call, int head) {
  return call.visible + head / (call.q.n_head / call.kv.n_head_kv) * call.q.n_rows;
}

/// Key blocks [0, sink) and [local, ..) are marked in any case.
struct Edges {
  int32_t sink, local;
};

__device__ Edges edges_of(const OutstandingCall& call, int head, int64_t block) {
  const int32_t diagonal = (visible_of(call, head)[block * kBlockSlots].y - 1) / kBlockSlots;
  const int32_t local = call.log_tau[head] == -INFINITY ? 0 : max(0, diagonal - call.local_blocks);
  return {min(call.sink_blocks, local), local};
}

/// The bits of blocks [begin, end) in a word of marks.
__device__ uint32_t bits_between(int32_t word, int32_t begin, int32_t end) {
  const int32_t from = min(max(begin - 32 * word, 0), 32);
  const int32_t to = min(max(end - 32 * word, 0), 32);
  return from < to ? ~0U >> (32 - (to - from)) << from : 0;
}

/// A block of threads for each block of rows and each head.
__global__ void mark_edges(const __grid_constant__ OutstandingCall call) {
  const int head = blockIdx.y;
  const int64_t block = blockIdx.x;
  const Edges edges = edges_of(call, head, block);
  const int64_t end = min((block + 1) * kBlockSlots, call.q.n_rows);
  const int32_t last = (visible_of(call, head)[end - 1].y - 1) / kBlockSlots;
  uint32_t* to = call.marks + (int64_t{head} * call.n_block_q() + block) * call.mark_words();
  for (int32_t word = threadIdx.x; word < call.mark_words(); word += blockDim.x) {
    to[word] = bits_between(word, 0, edges.sink) | bits_between(word, edges.local, last + 1);
  }
}

/// Of one voter, in slots: it spends on [0, sink) and [local, end).
struct Range {
  int32_t sink, local, end;
};

template <int kDim, bool kPlain>
class VoterTile {
  static constexpr int kStride = kDim + kPad;

 public:
  __device__ VoterTile(const OutstandingCall& call, std::byte* stages)
      : call_(call),
        shared_(reinterpret_cast<__nv_bfloat16*>(stages)),
        head_(blockIdx.x),
        first_(static_cast<int64_t>(gridDim.y - 1 - blockIdx.y) * kVoters),  // the longest first
        n_(static_cast<int32_t>(min(call.voters.n() - first_, int64_t{kVoters}))),
        per_block_(kBlockSlots / call.voters.step),
        lane_(threadIdx.x % 32),
        first_row_(threadIdx.x / 64 * 32),
        first_key_(threadIdx.x / 32 % 2 * 32) {}

  __device__ void run() {
    const Edges low = edges_of(call_, head_, first_ / per_block_);
    const Edges high = edges_of(call_, head_, (first_ + n_ - 1) / per_block_);
    if (high.sink >= high.local) return;
    const int32_t end = visible_of(call_, head_)[call_.voters.row(first_ + n_ - 1)].y;
    n_sink_ = high.sink;
    local_ = max(low.local, n_sink_);
    n_edge_ = n_sink_ + (end + kTile - 1) / kTile - local_;
    between_ = low.sink;
    n_tile_ = n_edge_ + high.local - low.sink;
    load_queries();
    load_keys(block_of(0), 0);
    for_tiles(0, n_edge_, [this](int32_t, int32_t block, const Products& x) { spend(block, x); });
    find_least();
    for_tiles(n_edge_, n_tile_, [this](int32_t t, int32_t block, const Products& x) {
      compare(block, x);
      if (block % 32 == 31 || t + 1 == n_tile_) write_marks(block / 32);
    });
  }

 private:
  /// Calls use(t, block, products) for tiles [t, end) of the tile's keys, whose copies go on behind `end`.
  template <typename Use>
  __device__ __forceinline__ void for_tiles(int32_t t, int32_t end, const Use& use) {
    for (; t < end; ++t) {
      copy_async_wait<0>();
      __syncthreads();  // the tile is there, and nobody reads the one before it any more
      if (t + 1 < n_tile_) load_keys(block_of(t + 1), (t + 1) % 2);
      const int row = t % 2 * kTile + first_key_ + lane_ / 16 * 8 + lane_ % 8;
      Products x;
      multiply<kDim>(q_, shared_address(shared_ + row * kStride + lane_ / 8 % 2 * 8), x);
      use(t, block_of(t), x);
    }
  }

  /// The t-th key block: sinks, local ones, and those between.
  __device__ int32_t block_of(int32_t t) const {
    if (t >= n_edge_) return between_ + t - n_edge_;
    return t < n_sink_ ? t : local_ + t - n_sink_;
  }

  /// Rows of the tile that a thread has, i < 4.
  __device__ int row(int i) const { return first_row_ + 8 * i + lane_ / 4; }

  __device__ void load_queries() {
    const HeadRows& q = call_.q;
    const bool wide = q.type == Type::bf16 && reinterpret_cast<uintptr_t>(q.data) % 16 == 0 && q.stride % 8 == 0 &&
                      q.head_dim % 8 == 0;
    for (int i = threadIdx.x; i < kVoters * kDim / 8; i += kThreads) {
      const int r = i / (kDim / 8);
      const int d = i % (kDim / 8) * 8;
      const int32_t n = r < n_ ? min(max(q.head_dim - d, 0), 8) : 0;
      const int64_t at =
          n > 0 ? call_.voters.row(first_ + r) * q.stride + static_cast<int64_t>(head_) * q.head_dim + d : 0;
      float v[8];
      if (q.type == Type::f32) {
        load_some(static_cast<const float*>(q.data) + at, n, false, v);
      } else {
        load_some(static_cast<const __nv_bfloat16*>(q.data) + at, n, wide && n == 8, v);
      }
      store8(shared_ + r * kStride + d, v);
    }
    if (threadIdx.x < kVoters) {
      Range& range = shared_ranges()[threadIdx.x];
      range = {0, 0, 0};
      if (static_cast<int32_t>(threadIdx.x) < n_) {
        const int64_t voter = first_ + threadIdx.x;
        const Edges edges = edges_of(call_, head_, voter / per_block_);
        range = {edges.sink * kBlockSlots, edges.local * kBlockSlots,
                 visible_of(call_, head_)[call_.voters.row(voter)].y};
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const __nv_bfloat16* from = shared_ + (first_row_ + i * 16 + lane_ % 16) * kStride + lane_ / 16 * 8;
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) load_matrices(q_[i][d], shared_address(from + d * 16));
    }
    __syncthreads();
  }

  /// A thread copies 16 bytes of every kStep-th key.
  __device__ void load_keys(int32_t block, int stage) const {
    constexpr int kPieces = kDim / 8;
    constexpr int kStep = kThreads / kPieces;
    const int key = static_cast<int>(threadIdx.x) / kPieces;
    const int d = static_cast<int>(threadIdx.x) % kPieces * 8;
    const int kv_head = head_ / (call_.q.n_head / call_.kv.n_head_kv);
    const __nv_bfloat16* from = call_.kv.k + (kv_head * call_.kv.capacity + int64_t{block} * kTile + key) * kDim + d;
    const uint32_t to = shared_address(shared_ + (stage * kTile + key) * kStride + d);
#pragma unroll
    for (int i = 0; i < kTile; i += kStep) {
      copy_async_run(to + static_cast<uint32_t>(i * kStride * sizeof(__nv_bfloat16)), from + i * kDim);
    }
    copy_async_commit();
  }

  __device__ static Range* shared_ranges() {
    __shared__ Range ranges[kVoters];
    return ranges;
  }

  /// What is compared: logits in base 2, or products where these tell the same.
  __device__ float value(float product, int32_t slot) const {
    if constexpr (kPlain) return product;
    float x = product * call_.scale;
    if (call_.kv.bias != nullptr) {
      const int kv_head = head_ / (call_.q.n_head / call_.kv.n_head_kv);
      x += call_.kv.bias[kv_head * call_.kv.capacity + slot];
    }
    if (call_.softcap > 0) x = call_.softcap * tanhf(x / call_.softcap);
    return x * kLog2E;
  }
  __device__ float value_scale() const {
    return kPlain ? call_.scale * kLog2E : 1.0F;
  }

  /// The slot of a lane's key at < 8 of a tile.
  __device__ int32_t slot_of(int32_t block, int at) const {
    return block * kTile + first_key_ + at / 2 * 8 + lane_ % 4 * 2 + at % 2;
  }

  __device__ void spend(int32_t block, const Products& x) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Range range = shared_ranges()[row(i)];
      float v[8];
      float largest = sums_[i].x;
#pragma unroll
      for (int at = 0; at < 8; ++at) {
        const int32_t slot = slot_of(block, at);
        const bool counts = slot < range.sink || (slot >= range.local && slot < range.end);
        v[at] = counts ? value(x[i / 2][at / 2][i % 2 * 2 + at % 2], slot) * value_scale() : kNothing;
        largest = fmaxf(largest, v[at]);
      }
      const float base = largest > kNothing ? largest : 0.0F;
      float sum = sums_[i].y * exp2_fast(sums_[i].x - base);
#pragma unroll
      for (const float logit : v) sum += exp2_fast(logit - base);
      sums_[i] = {largest, sum};
    }
  }

  /// What a voter's values must exceed, from what its quads in two warps have summed.
  __device__ void find_least() {
    __shared__ float2 second[kVoters];  // of the warps with the second half of the keys
    __shared__ float least[kVoters];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int other = 1; other < 4; other *= 2) {
        sums_[i] = join(sums_[i], {__shfl_xor_sync(~0U, sums_[i].x, other), __shfl_xor_sync(~0U, sums_[i].y, other)});
      }
      if (first_key_ > 0 && lane_ % 4 == 0) second[row(i)] = sums_[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (first_key_ > 0 || lane_ % 4 > 0) continue;
      const float2 all = join(sums_[i], second[row(i)]);
      const float logit = all.x + log2f(all.y) + call_.log_tau[head_] * kLog2E;
      least[row(i)] = all.y > 0 ? logit / value_scale() : INFINITY;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; ++i) least_[i] = least[row(i)];
  }

  __device__ void compare(int32_t block, const Products& x) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float most = kNothing;
#pragma unroll
      for (int at = 0; at < 8; ++at) {
        most = fmaxf(most, value(x[i / 2][at / 2][i % 2 * 2 + at % 2], slot_of(block, at)));
      }
      found_[i] |= (most > least_[i] ? 1U : 0U) << (block % 32);
    }
  }

  /// Of the voters of one block of rows those that are neighbours here speak through their first.
  __device__ void write_marks(int32_t word) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t bits = found_[i];
      found_[i] = 0;
      bits |= __shfl_xor_sync(~0U, bits, 1);
      bits |= __shfl_xor_sync(~0U, bits, 2);
      for (int other = 1; other < min(per_block_, 8); other *= 2) bits |= __shfl_xor_sync(~0U, bits, 4 * other);
      const int r = row(i);
      if (lane_ % 4 > 0 || lane_ / 4 % min(per_block_, 8) > 0 || r >= n_) continue;
      const Range range = shared_ranges()[r];
      bits &= bits_between(word, range.sink / kBlockSlots, range.local / kBlockSlots);
      const int64_t block = (first_ + r) / per_block_;
      if (bits != 0)
        atomicOr(call_.marks + (head_ * int64_t{call_.n_block_q()} + block) * call_.mark_words() + word, bits);
    }
  }

  const OutstandingCall& call_;
  __nv_bfloat16* shared_;
  int head_;
  int64_t first_;  // voter
  int32_t n_;      // voters
  int32_t per_block_;
  int lane_, first_row_, first_key_;
  int32_t n_sink_ = 0, local_ = 0, n_edge_ = 0, between_ = 0, n_tile_ = 0;
  uint32_t q_[2][kDim / 16][4];
  float2 sums_[4] = {{kNothing, 0}, {kNothing, 0}, {kNothing, 0}, {kNothing, 0}};
  float least_[4] = {};
  uint32_t found_[4] = {};
};

template <int kDim, bool kPlain>
__global__ void __launch_bounds__(kThreads, kDim == 256 ? 1 : 2)
    find_outstanding(const __grid_constant__ OutstandingCall call) {
  extern __shared__ __align__(16) std::byte stages[];
  VoterTile<kDim, kPlain>(call, stages).run();
}

/// Neighbouring blocks have the heads of a tile, so that query heads of one kv head find its keys in the cache.
template <int kDim>
void launch(const OutstandingCall& call) {
  constexpr size_t kBytes = 2 * stage_bytes(kDim);
  const bool plain = !(call.softcap > 0) && call.kv.bias == nullptr && call.scale > 0;
  const auto kernel = plain ? find_outstanding<kDim, true> : find_outstanding<kDim, false>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes)),
        "shared memory of voters");
  const dim3 grid(static_cast<unsigned>(call.q.n_head),
                  static_cast<unsigned>((call.voters.n() + kVoters - 1) / kVoters));
  kernel<<<grid, kThreads, kBytes, call.stream>>>(call);
}

}  // namespace

void mark_outstanding(const OutstandingCall& call) {
  const dim3 blocks(static_cast<unsigned>(call.n_block_q()), static_cast<unsigned>(call.q.n_head));
  mark_edges<<<blocks, 64, 0, call.stream>>>(call);
  const auto chosen = call.kv.dim == 64 ? launch<64> : call.kv.dim == 128 ? launch<128> : launch<256>;
  chosen(call);
  check(cudaGetLastError(), "outstanding blocks");
}

}  // namespace winnow::cuda
