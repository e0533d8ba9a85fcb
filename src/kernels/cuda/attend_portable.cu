// Attention of many rows by mma.sync and cp.async, for every GPU from compute capability 8.0 on. A block takes 64 or
// 128 rows of one head, a warp 16 of them with all keys: S = Q K^T stays in its registers, becomes P there and the
// first operand of O += P V. The next tile of 64 keys is on its way while one is multiplied.
//
// Rows of shared memory are unpadded; piece c of 16 bytes of row r lies at c ^ (r % 8), which keeps ldmatrix free of
// bank conflicts.
#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/mma_sm80.cuh"
#include "kernels/cuda/portable_keys.cuh"

namespace winnow::cuda {
namespace portable {
namespace {

constexpr float kLog2e = 1.44269504088896F;
constexpr float kLn2 = 0.693147180559945F;
constexpr int32_t kKeyTiles = kTile / 8;

/// One block: kRows rows of one head.
template <int32_t kDim, int32_t kRows>
class RowBlock {
 public:
  static constexpr int32_t kThreads = kRows * 2;
  static constexpr int32_t kSteps = kDim / 16;
  static constexpr int32_t kStride = kDim * 2;            // bytes of a row
  static constexpr bool kQueriesStay = kDim == 256;       // in shared memory, for want of registers
  static constexpr int32_t kTileBytes = kTile * kStride;  // of K or V
  static constexpr int32_t kQueryBytes = kRows * kStride;

  static int32_t bytes(int32_t n_stages) {
    const int32_t rings = n_stages * 2 * kTileBytes;
    return kQueriesStay ? rings + kQueryBytes : std::max(rings, kQueryBytes);
  }

  __device__ RowBlock(const Job& job, char* memory, int32_t (*slots)[kTile])
      : job_(job),
        call_(job.call),
        memory_(memory),
        slots_(slots),
        warp_(static_cast<int32_t>(threadIdx.x) / 32),
        lane_(static_cast<int32_t>(threadIdx.x) % 32),
        head_(static_cast<int32_t>(blockIdx.x)),
        head_kv_(head_ / (call_.q.n_head / call_.kv.n_head_kv)),
        first_row_(static_cast<int64_t>(gridDim.y - 1 - blockIdx.y) * kRows),
        threshold_(call_.skip == nullptr ? -INFINITY : call_.skip[head_] * kLog2e),
        factor_(remaining_factor()) {
    const int64_t last = min(first_row_ + kRows, call_.q.n_rows) - 1;
    const int2 first_sees = seen_by(first_row_), last_sees = seen_by(last);
    any_ = {first_sees.x, last_sees.y};
    all_ = {last_sees.x, first_sees.y};
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      const int64_t row = row_of(half);
      seen_[half] = row < call_.q.n_rows ? seen_by(row) : int2{0, 0};
      max_[half] = -INFINITY;
    }
  }

  __device__ void run() {
    load_queries();
    Walk walk(job_, head_, first_row_, any_);
    Keys keys, next;
    bool more = walk.next(keys);
    if (more) load(keys, 0);
    copy_async_commit();
    for (int32_t stage = 0; more; keys = next) {
      copy_async_wait<0>();
      __syncthreads();  // the tile is there, and nobody reads the one before it
      more = walk.next(next);
      const int32_t other = job_.n_stages == 2 ? stage ^ 1 : 0;
      if (job_.n_stages == 2) {
        if (more) load(next, other);
        copy_async_commit();
      }
      compute(keys, stage);
      if (job_.n_stages == 1) {
        __syncthreads();
        if (more) load(next, other);
        copy_async_commit();
      }
      stage = other;
    }
    finish();
  }

 private:
  __device__ int2 seen_by(int64_t row) const {
    return call_.visible[head_kv_ * call_.q.n_rows + row];
  }
  __device__ int64_t row_of(int32_t half) const {
    return first_row_ + warp_ * 16 + lane_ / 4 + 8 * half;
  }
  __device__ char* tile_at(int32_t stage, bool values) const {
    return memory_ + (kQueriesStay ? kQueryBytes : 0) + (stage * 2 + (values ? 1 : 0)) * kTileBytes;
  }

  __device__ float2 query_pair(int64_t row, int32_t i) const {
    const HeadRows& q = call_.q;
    if (row >= q.n_rows || i >= q.head_dim) return {0, 0};
    const int64_t at = row * q.stride + static_cast<int64_t>(head_) * q.head_dim + i;
    if (q.type == Type::bf16) {
      return __bfloat1622float2(
          *reinterpret_cast<const __nv_bfloat162*>(static_cast<const __nv_bfloat16*>(q.data) + at));
    }
    return *reinterpret_cast<const float2*>(static_cast<const float*>(q.data) + at);
  }

  __device__ void load_queries() {
    for (int32_t i = threadIdx.x; i < kRows * kDim / 2; i += kThreads) {
      const int32_t row = i / (kDim / 2);
      const int32_t at = i % (kDim / 2) * 4;  // byte of the row
      const float2 x = query_pair(first_row_ + row, at / 2);
      *reinterpret_cast<uint32_t*>(memory_ + row * kStride + (at ^ (row % 8 * 16))) = pack<true>(x.x, x.y);
    }
    __syncthreads();
    if constexpr (!kQueriesStay) {
#pragma unroll
      for (int32_t step = 0; step < kSteps; ++step) load_matrices(q_[step], query_address(step));
      __syncthreads();  // the memory is used for keys from now on
    }
  }

  __device__ uint32_t query_address(int32_t step) const {
    const uint32_t row = shared_address(memory_) + (warp_ * 16 + lane_ % 16) * kStride;
    return row + ((32 * step + lane_ / 16 * 16) ^ (lane_ % 8 * 16));
  }

  /// Sends for the keys and values of a tile.
  __device__ void load(const Keys& keys, int32_t stage) {
    constexpr int32_t kPieces = kStride / 16;
    const int64_t head_begin = head_kv_ * call_.kv.capacity;
    const uint32_t k_to = shared_address(tile_at(stage, false));
    const uint32_t v_to = shared_address(tile_at(stage, true));
#pragma unroll
    for (int32_t i = 0; i < kTile * kPieces / kThreads; ++i) {
      const int32_t piece = i * kThreads + static_cast<int32_t>(threadIdx.x);
      const int32_t row = piece / kPieces;
      const int32_t column = piece % kPieces;
      const int32_t slot = keys.slot(row);
      const bool real = slot >= 0 && slot < call_.kv.capacity;
      const int64_t from = (head_begin + (real ? slot : 0)) * kDim + column * 8;
      const uint32_t at = row * kStride + ((column ^ (row % 8)) * 16);
      copy_async_16(k_to + at, call_.kv.k + from, real ? 16 : 0);
      copy_async_16(v_to + at, call_.kv.v + from, real ? 16 : 0);
    }
    if (keys.column != nullptr && threadIdx.x < kTile) slots_[stage][threadIdx.x] = keys.slot(threadIdx.x);
  }

  __device__ void multiply_keys(const char* tile, float (&s)[kKeyTiles][4]) {
    const int32_t row = lane_ / 16 * 8 + lane_ % 8;
    const uint32_t base = shared_address(tile) + row * kStride;
    const uint32_t column = (lane_ & 8) * 2 ^ (lane_ % 8 * 16);
#pragma unroll
    for (int32_t j = 0; j < kKeyTiles; ++j) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll
    for (int32_t step = 0; step < kSteps; ++step) {
      if constexpr (kQueriesStay) load_matrices(q_[0], query_address(step));
      const uint32_t(&q)[4] = q_[kQueriesStay ? 0 : step];
#pragma unroll
      for (int32_t j = 0; j < kKeyTiles; j += 2) {
        uint32_t k[4];
        load_matrices(k, base + j * 8 * kStride + (column ^ (32 * step)));
        mma<true>(s[j], q, k[0], k[1]);
        mma<true>(s[j + 1], q, k[2], k[3]);
      }
    }
  }

  /// What is left to do to a logit: products are only scaled, unless there is more to be done than that.
  __device__ float remaining_factor() const {
    const bool plain = call_.softcap <= 0 && call_.kv.bias == nullptr && call_.scale > 0;
    return plain ? call_.scale * kLog2e : 1;
  }

  /// From products to logits in base 2, where a factor is not enough.
  __device__ void make_logits(const Keys& keys, int32_t stage, float (&s)[kKeyTiles][4]) const {
    const float scale = call_.softcap > 0 ? call_.scale : call_.scale * kLog2e;
#pragma unroll
    for (int32_t i = 0; i < kKeyTiles * 4; ++i) s[i / 4][i % 4] *= scale;
    if (call_.softcap > 0) {
#pragma unroll
      for (int32_t i = 0; i < kKeyTiles * 4; ++i) {
        float& x = s[i / 4][i % 4];
        const float y = __expf(-2 * fabsf(x) / call_.softcap);  // tanh
        x = copysignf(kLog2e * call_.softcap * __fdividef(1 - y, 1 + y), x);
      }
    }
    if (call_.kv.bias == nullptr) return;
    const float* bias = call_.kv.bias + head_kv_ * call_.kv.capacity;
#pragma unroll
    for (int32_t j = 0; j < kKeyTiles; ++j) {
#pragma unroll
      for (int32_t i = 0; i < 2; ++i) {
        const int32_t slot = slot_at(keys, stage, j * 8 + lane_ % 4 * 2 + i);
        const float x = slot >= 0 && slot < call_.kv.capacity ? bias[slot] * kLog2e : 0;
        s[j][i] += x;
        s[j][i + 2] += x;
      }
    }
  }

  __device__ int32_t slot_at(const Keys& keys, int32_t stage, int32_t i) const {
    return keys.column != nullptr ? slots_[stage][i] : keys.begin + i;
  }

  /// Logits of keys that a row must not see become -infinity; returns how many of this lane's are seen.
  __device__ uint32_t mask(const Keys& keys, int32_t stage, float (&s)[kKeyTiles][4]) const {
    if (keys.column == nullptr && keys.begin >= all_.x && keys.begin + kTile <= all_.y) {
      return ((row_of(0) < call_.q.n_rows ? 1 : 0) + (row_of(1) < call_.q.n_rows ? 1 : 0)) * (kTile / 4);
    }
    uint32_t n = 0;
#pragma unroll
    for (int32_t j = 0; j < kKeyTiles; ++j) {
#pragma unroll
      for (int32_t e = 0; e < 4; ++e) {
        const int32_t slot = slot_at(keys, stage, j * 8 + lane_ % 4 * 2 + e % 2);
        const bool seen = slot >= seen_[e / 2].x && slot < seen_[e / 2].y;
        n += seen ? 1 : 0;
        if (!seen) s[j][e] = -INFINITY;
      }
    }
    return n;
  }

  /// Whether the tile counts for this warp's rows: the vote of attention/types.h.
  __device__ bool keep(const float (&largest)[2], bool sees) {
    if (threshold_ == -INFINITY) return true;
    bool mine = false;
    if (first_) {
      mine = sees;
    } else {
#pragma unroll
      for (int32_t i = 0; i < 2; ++i) {
        mine |= seen_[i].x < seen_[i].y && largest[i] > -INFINITY &&
                !(largest[i] - fmaxf(largest[i], max_[i]) < threshold_);
      }
    }
    const bool any = warp_ < 4 ? any_of_four_warps<1>(mine) : any_of_four_warps<2>(mine);
    first_ = first_ && !any;
    return any;
  }

  __device__ void compute(const Keys& keys, int32_t stage) {
    float s[kKeyTiles][4];
    multiply_keys(tile_at(stage, false), s);
    if (factor_ == 1) make_logits(keys, stage, s);
    const uint32_t n_seen = mask(keys, stage, s);
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int32_t i = 0; i < kKeyTiles * 4; ++i) largest[i % 4 / 2] = fmaxf(largest[i % 4 / 2], s[i / 4][i % 4]);
    largest[0] = largest_of_quad(largest[0]) * factor_;
    largest[1] = largest_of_quad(largest[1]) * factor_;
    if (!keep(largest, n_seen > 0)) return;
    n_computed_ += n_seen;
    add(largest, s);
    multiply_values(tile_at(stage, true), s);
  }

  /// The online softmax: logits become probabilities relative to the new maximum.
  __device__ void add(const float (&largest)[2], float (&s)[kKeyTiles][4]) {
    const bool grows = largest[0] > max_[0] || largest[1] > max_[1];
    float base[2], shrink[2];
#pragma unroll
    for (int32_t i = 0; i < 2; ++i) {
      const float max = fmaxf(max_[i], largest[i]);
      base[i] = max == -INFINITY ? 0 : max;
      shrink[i] = exp2_fast(max_[i] - base[i]);
      max_[i] = max;
      sum_[i] *= shrink[i];
    }
#pragma unroll
    for (int32_t i = 0; i < kKeyTiles * 4; ++i) {
      float& x = s[i / 4][i % 4];
      x = exp2_fast(fmaf(x, factor_, -base[i % 4 / 2]));
      sum_[i % 4 / 2] += x;
    }
    if (!__any_sync(~0U, grows)) return;
#pragma unroll
    for (int32_t d = 0; d < kDim / 8; ++d) {
#pragma unroll
      for (int32_t e = 0; e < 4; ++e) o_[d][e] *= shrink[e / 2];
    }
  }

  __device__ void multiply_values(const char* tile, const float (&p)[kKeyTiles][4]) {
    const uint32_t base = shared_address(tile) + (lane_ % 16) * kStride;
    const uint32_t column = lane_ / 16 * 16 ^ (lane_ % 8 * 16);
#pragma unroll
    for (int32_t j = 0; j < kKeyTiles; j += 2) {
      const uint32_t a[4] = {pack<true>(p[j][0], p[j][1]), pack<true>(p[j][2], p[j][3]),
                             pack<true>(p[j + 1][0], p[j + 1][1]), pack<true>(p[j + 1][2], p[j + 1][3])};
#pragma unroll
      for (int32_t step = 0; step < kSteps; ++step) {
        uint32_t v[4];
        load_matrices_transposed(v, base + j * 8 * kStride + (column ^ (32 * step)));
        mma<true>(o_[2 * step], a, v[0], v[1]);
        mma<true>(o_[2 * step + 1], a, v[2], v[3]);
      }
    }
  }

  __device__ void finish() {
    const HeadRows& o = call_.o;
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      const float sum = sum_of_quad(sum_[half]);
      const float factor = sum > 0 ? 1 / sum : 0;
      const int64_t row = row_of(half);
      if (row >= o.n_rows) continue;
      const int64_t at = row * o.stride + static_cast<int64_t>(head_) * o.head_dim + lane_ % 4 * 2;
#pragma unroll
      for (int32_t d = 0; d < kDim / 8; ++d) {
        if (8 * d >= o.head_dim) break;
        const float2 x = {o_[d][2 * half] * factor, o_[d][2 * half + 1] * factor};
        if (o.type == Type::bf16) {
          *reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(o.data) + at + 8 * d) = pack<true>(x.x, x.y);
        } else {
          *reinterpret_cast<float2*>(static_cast<float*>(o.data) + at + 8 * d) = x;
        }
      }
      if (call_.lse != nullptr && lane_ % 4 == 0) {
        call_.lse[row * call_.q.n_head + head_] = sum > 0 ? (max_[half] + log2f(sum)) * kLn2 : -INFINITY;
      }
    }
    if (call_.computed == nullptr) return;
    const uint32_t n = __reduce_add_sync(~0U, n_computed_);
    if (lane_ == 0 && n > 0) atomicAdd(call_.computed, static_cast<unsigned long long>(n));
  }

  const Job& job_;
  const ManyRows& call_;
  char* memory_;
  int32_t (*slots_)[kTile];  // of a stage's columns
  int32_t warp_, lane_;
  int32_t head_;
  int64_t head_kv_;
  int64_t first_row_;
  float threshold_;  // base 2
  float factor_;     // from what `make_logits` left (or was not needed for) to a logit in base 2; 1 where it is needed
  int2 any_, all_;   // slots that some row, and that every row sees
  int2 seen_[2];     // by rows lane / 4 and lane / 4 + 8 of the warp
  bool first_ = true;
  uint32_t n_computed_ = 0;
  float max_[2];
  float sum_[2] = {0, 0};
  uint32_t q_[kQueriesStay ? 1 : kSteps][4];
  float o_[kDim / 8][4] = {};
};

template <int32_t kDim, int32_t kRows>
__global__ void __launch_bounds__(kRows * 2, kDim == 64 ? 192 / kRows + kRows / 128 : 128 / kRows)
    attend_kernel(const __grid_constant__ Job job) {
  extern __shared__ __align__(1024) char memory[];
  __shared__ int32_t slots[2][kTile];
  RowBlock<kDim, kRows> block(job, memory, slots);
  block.run();
}

template <int32_t kDim, int32_t kRows>
void launch(Job job) {
  using Block = RowBlock<kDim, kRows>;
  int device = 0, limit = 0;
  check(cudaGetDevice(&device), "attend_portable");
  check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "attend_portable");
  job.n_stages = Block::bytes(2) + static_cast<int32_t>(sizeof(int32_t)) * 2 * kTile <= limit ? 2 : 1;
  const int32_t bytes = Block::bytes(job.n_stages);
  const auto kernel = attend_kernel<kDim, kRows>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "attend_portable");
  const dim3 grid(static_cast<uint32_t>(job.call.q.n_head),
                  static_cast<uint32_t>((job.call.q.n_rows + kRows - 1) / kRows));
  kernel<<<grid, Block::kThreads, static_cast<size_t>(bytes), job.call.stream>>>(job);
  check(cudaGetLastError(), "attend_portable");
}

template <int32_t kDim>
void launch_dim(const Job& job) {
  const bool wide = job.call.q.n_rows > 64 && (!job.has_lists || job.lists.block_q == 128);
  if constexpr (kDim < 256) {
    if (wide) return launch<kDim, 128>(job);
  }
  launch<kDim, 64>(job);
}

}  // namespace
}  // namespace portable

void attend_portable(const ManyRows& call) {
  if (call.q.n_rows == 0) return;
  portable::Job job;
  job.call = call;
  job.has_lists = call.lists != nullptr;
  if (job.has_lists) job.lists = *call.lists;
  if (call.kv.dim == 64) return portable::launch_dim<64>(job);
  if (call.kv.dim == 128) return portable::launch_dim<128>(job);
  portable::launch_dim<256>(job);
}

}  // namespace winnow::cuda
