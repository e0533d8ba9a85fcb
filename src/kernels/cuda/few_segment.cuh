// One block's work on one item of few_plan.cuh: a range of its chunks, dealt out to the warps, each of which keeps a
// ring of chunks under way, and the sum of the warps' results.
#pragma once

#include <algorithm>
#include <cfloat>

#include "kernels/cuda/few_plan.cuh"

namespace winnow::cuda {

inline constexpr float kLog2e = 1.44269504088896F;
inline constexpr float kLn2 = 0.693147180559945F;
inline constexpr int32_t kMaxWarps = 4;
inline constexpr int32_t kMaxStages = 3;

enum class Pass { all, keys, values };

/// Rounds up to 16 bytes, the unit of copies.
__host__ __device__ constexpr size_t padded(size_t bytes) {
  return (bytes + 15) / 16 * 16;
}

/// What a warp knows about a chunk in its ring.
struct RingEntry {
  int32_t slot[kChunk];  // -1: no such key
  int32_t chunk;         // in the item
  int32_t all_see;
};

/// What a query may see, and with whom it votes.
struct QueryFacts {
  int32_t begin, end;
  int32_t unit;
};

/// The kernel's shared memory for given types: ring entries, query operands, the warps' rings.
template <Type kType, int32_t kDim, int32_t kTiles, Pass kPass>
struct Layout {
  using T = Tile<kType, kDim>;
  static constexpr size_t kLogits = kPass == Pass::values ? kTiles * 512 : 0;
  static constexpr size_t kOperands = kPass == Pass::values ? 0 : sizeof(QueryOperand) * kTiles * T::kSteps * 32;
  static constexpr size_t kResult = sizeof(float) * 8 * (kDim + 4);  // of one warp; reuses the rings

  __host__ __device__ static constexpr size_t keys(int32_t head_dim) {
    return kPass == Pass::values ? 0 : padded(T::bytes(head_dim));
  }
  __host__ __device__ static constexpr size_t values(int32_t head_dim) {
    return kPass == Pass::keys ? 0 : padded(T::bytes(head_dim));
  }
  __host__ __device__ static constexpr size_t stage(int32_t head_dim) {
    return kLogits + keys(head_dim) + values(head_dim);
  }
  static size_t rings(const FewJob& job) {
    const size_t ring = stage(job.call.q.head_dim) * static_cast<size_t>(job.n_stages);
    return std::max(ring, kPass == Pass::keys ? 0 : kResult) * static_cast<size_t>(job.n_warps);
  }
};

__device__ __forceinline__ float reduce_rows(float x, bool largest) {
#pragma unroll
  for (int32_t lane = 4; lane < 32; lane *= 2) {
    const float other = __shfl_xor_sync(~0U, x, lane);
    x = largest ? fmaxf(x, other) : x + other;
  }
  return x;
}

/// One block's work on one item: a range of its chunks against kTiles * 8 of its queries.
template <Type kType, int32_t kDim, int32_t kTiles, Pass kPass>
class Segment {
  using T = Tile<kType, kDim>;
  using L = Layout<kType, kDim, kTiles, kPass>;
  static constexpr int32_t kValueTiles = kPass == Pass::keys ? 1 : kTiles;
  static constexpr int32_t kValueSteps = kPass == Pass::keys ? 1 : T::kSteps;

 public:
  struct Shared {
    RingEntry entries[kMaxWarps][kMaxStages];
    QueryFacts queries[kTiles * 8];
    float2 mass[kMaxWarps][kTiles * 8];
  };

  __device__ Segment(const FewJob& job, const Item& item, Shared& shared, char* memory)
      : job_(job),
        item_(item),
        shared_(shared),
        operands_(reinterpret_cast<QueryOperand*>(memory)),
        rings_(memory + L::kOperands),
        head_dim_(job.call.q.head_dim),
        warp_(static_cast<int32_t>(threadIdx.x) / 32),
        lane_(static_cast<int32_t>(threadIdx.x) % 32),
        first_query_(static_cast<int32_t>(blockIdx.x) * kTiles * 8),
        n_queries_(item.n_heads * static_cast<int32_t>(job.call.q.n_rows)) {
#pragma unroll
    for (int32_t nt = 0; nt < kTiles; ++nt) max_[nt][0] = max_[nt][1] = -INFINITY;
  }

  /// Chunks [begin, end) of the item; the result becomes partial result `partial`.
  __device__ void run(int32_t begin, int32_t end, int32_t partial) {
    if (first_query_ >= n_queries_) return;
    clear_rings();
    int32_t next = advance(begin + warp_, end);
    int32_t n_waiting = 0;
    int32_t to = 0, from = 0;  // stages
    for (int32_t step = 0; step < job_.n_stages - 1 || n_waiting > 0; ++step) {
      const bool full = step >= job_.n_stages - 1;
      if (full) {
        if (job_.n_stages == 2) {
          copy_async_wait<0>();
        } else {
          copy_async_wait<1>();
        }
        __syncwarp();  // also: all lanes have read the stage that is filled next
      }
      next = fetch(next, end, to, n_waiting);
      to = to + 1 == job_.n_stages ? 0 : to + 1;
      if (step == job_.n_stages - 2) {
        load_queries();
        __syncthreads();
      }
      if (!full) continue;
      compute(from);
      from = from + 1 == job_.n_stages ? 0 : from + 1;
      --n_waiting;
    }
    if constexpr (kPass != Pass::keys) finish(partial);
  }

 private:
  __device__ char* stage_at(int32_t stage) const {
    return rings_ + (warp_ * job_.n_stages + stage) * L::stage(head_dim_);
  }

  /// Values from head_dim on stay zero.
  __device__ void clear_rings() const {
    if (T::kQ8 || head_dim_ == kDim) return;
    const auto n = static_cast<int32_t>(job_.n_warps * job_.n_stages * L::stage(head_dim_) / 16);
    for (int32_t i = threadIdx.x; i < n; i += blockDim.x) reinterpret_cast<uint4*>(rings_)[i] = {0, 0, 0, 0};
    __syncthreads();
  }

  __device__ bool kept(int32_t chunk) const {
    if (kPass != Pass::values || !job_.votes) return true;
    const uint8_t* keep = job_.keep_of(item_.index, chunk / kTileChunks);
    bool any = false;
    for (int32_t unit = 0; unit < job_.n_units; ++unit) any |= keep[unit] != 0;
    return any;
  }

  /// The first of this warp's chunks from `chunk` on that must be read.
  __device__ int32_t advance(int32_t chunk, int32_t end) const {
    while (chunk < end && !(make_chunk(job_, item_, chunk).matters(item_) && kept(chunk))) chunk += job_.n_warps;
    return chunk;
  }

  __device__ const std::byte* row_at(const std::byte* const* blocks, int32_t slot) const {
    const std::byte* block = blocks[item_.first_block + slot / kBlockSlots];
    return block + slot % kBlockSlots * T::row_bytes(head_dim_);
  }

  /// Sends for the chunk's rows; `mine` is the address of this lane's, or of the first where they follow one another.
  __device__ void copy(const std::byte* mine, bool is_run, bool is_real, char* to) const {
    if (is_run) {
      copy_run<T>(shared_address(to), mine, head_dim_, lane_);
    } else {
      copy_rows<T>(shared_address(to), mine, is_real, head_dim_);
    }
  }

  __device__ void copy_logits(int32_t chunk, char* to) const {
    const float4* from = job_.logits + operand_of(job_, item_, chunk, first_query_) * 32 + lane_;
#pragma unroll
    for (int32_t nt = 0; nt < kTiles; ++nt) {
      if (first_query_ + 8 * nt < n_queries_) {
        copy_async_16(shared_address(to) + (nt * 32 + lane_) * 16, from + nt * 32, 16);
      }
    }
  }

  /// Sends for a chunk, if there is one left; returns the one after it.
  __device__ int32_t fetch(int32_t index, int32_t end, int32_t stage, int32_t& n_waiting) {
    if (index < end) {
      const Chunk chunk = make_chunk(job_, item_, index);
      const int32_t slot = lane_ < kChunk ? chunk.slot(lane_) : -1;
      RingEntry& entry = shared_.entries[warp_][stage];
      if (lane_ < kChunk) entry.slot[lane_] = slot;
      if (lane_ == 0) entry.chunk = index, entry.all_see = chunk.all_see(item_);
      const bool is_run =
          chunk.column == nullptr && chunk.n == kChunk && chunk.begin % kChunk == 0 && T::runs(head_dim_);
      const int32_t first = __shfl_sync(~0U, slot, 0);  // rows of zeros need an address as well
      const int32_t at = is_run || slot < 0 ? max(first, 0) : slot;
      const std::byte* k = kPass == Pass::values ? nullptr : row_at(job_.call.k, at);
      const std::byte* v = kPass == Pass::keys ? nullptr : row_at(job_.call.v, at);
      char* to = stage_at(stage);
      if constexpr (kPass == Pass::values) copy_logits(index, to);
      if constexpr (kPass != Pass::values) copy(k, is_run, slot >= 0, to);
      if constexpr (kPass != Pass::keys) copy(v, is_run, slot >= 0, to + L::kLogits + L::keys(head_dim_));
      ++n_waiting;
      index = advance(index + job_.n_warps, end);
    }
    copy_async_commit();
    return index;
  }

  __device__ float query_value(int32_t query, int32_t i) const {
    if (query >= n_queries_ || i >= head_dim_) return 0;
    const HeadRows& q = job_.call.q;
    const auto n_rows = static_cast<int32_t>(q.n_rows);
    const int64_t at = query % n_rows * q.stride + static_cast<int64_t>(item_.head + query / n_rows) * q.head_dim + i;
    if (q.type == Type::bf16) return __bfloat162float(static_cast<const __nv_bfloat16*>(q.data)[at]);
    const float value = static_cast<const float*>(q.data)[at];
    return T::kBf16 ? value : fminf(fmaxf(value, -65504.0F), 65504.0F);
  }

  __device__ void load_queries() {
    const auto n_rows = static_cast<int32_t>(job_.call.q.n_rows);
    for (int32_t i = threadIdx.x; i < kTiles * 8; i += blockDim.x) {
      const int32_t query = first_query_ + i;
      QueryFacts facts{};
      if (query < n_queries_) {
        const int2 slots = job_.call.visible[item_.head_kv * n_rows + query % n_rows];
        facts = {slots.x, slots.y, unit_of(job_, query)};
      }
      shared_.queries[i] = facts;
    }
    if constexpr (kPass != Pass::values) {
      for (int32_t i = threadIdx.x; i < kTiles * T::kSteps * 32; i += blockDim.x) {
        const int32_t query = first_query_ + i / (T::kSteps * 32) * 8 + i % 32 / 4;
        uint32_t part[2], rest[2];
#pragma unroll
        for (int32_t half = 0; half < 2; ++half) {
          const int32_t at = T::key_value(i / 32 % T::kSteps, i % 4, half);
          const float x = query_value(query, at);
          const float y = query_value(query, at + 1);
          part[half] = pack<T::kBf16>(x, y);
          rest[half] = pack_rest<T::kBf16>(x, y, part[half]);
        }
        operands_[i] = {part[0], part[1], rest[0], rest[1]};
      }
    }
  }

  /// From products to logits in base 2.
  __device__ void make_logits(const RingEntry& entry, float (&s)[kTiles][4]) const {
    const FewRows& call = job_.call;
    const float scale = call.softcap > 0 ? call.scale : call.scale * kLog2e;
#pragma unroll
    for (int32_t i = 0; i < kTiles * 4; ++i) s[i / 4][i % 4] *= scale;
    if (call.softcap > 0) {
#pragma unroll
      for (int32_t i = 0; i < kTiles * 4; ++i) {
        float& x = s[i / 4][i % 4];
        const float y = __expf(-2 * fabsf(x) / call.softcap);  // tanh
        x = copysignf(kLog2e * call.softcap * __fdividef(1 - y, 1 + y), x);
      }
    }
    if (call.bias == nullptr) return;
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      const int32_t slot = entry.slot[slot_of_row(lane_ / 4) + 8 * half];
      const float bias = slot < 0 ? 0 : call.bias[item_.head_kv * call.bias_stride + slot] * kLog2e;
#pragma unroll
      for (int32_t nt = 0; nt < kTiles; ++nt) {
        s[nt][2 * half] += bias;
        s[nt][2 * half + 1] += bias;
      }
    }
  }

  /// Makes logits of keys that a query must not see, or whose tile it dropped, -infinity; bits of `seen`: the others.
  __device__ uint32_t mask(const RingEntry& entry, float (&s)[kTiles][4]) {
    const uint8_t* keep =
        kPass == Pass::values && job_.votes ? job_.keep_of(item_.index, entry.chunk / kTileChunks) : nullptr;
    uint32_t all = 0;
#pragma unroll
    for (int32_t nt = 0; nt < kTiles; ++nt) {
#pragma unroll
      for (int32_t e = 0; e < 4; ++e) {
        const int32_t slot = entry.slot[slot_of_row(lane_ / 4) + e / 2 * 8];
        const QueryFacts& query = shared_.queries[nt * 8 + lane_ % 4 * 2 + e % 2];
        const bool seen = slot >= query.begin && slot < query.end && (keep == nullptr || keep[query.unit] != 0);
        if (seen) all |= 1U << (nt * 4 + e);
        if (!seen) s[nt][e] = -INFINITY;
      }
    }
    return all;
  }

  __device__ void compute(int32_t stage) {
    const char* at = stage_at(stage);
    const RingEntry& entry = shared_.entries[warp_][stage];
    float s[kTiles][4];
    if constexpr (kPass == Pass::values) {
#pragma unroll
      for (int32_t nt = 0; nt < kTiles; ++nt) {
        const auto x = reinterpret_cast<const float4*>(at)[nt * 32 + lane_];
        s[nt][0] = x.x, s[nt][1] = x.y, s[nt][2] = x.z, s[nt][3] = x.w;
      }
    } else {
      multiply_keys<kType, kDim, kTiles>(at, operands_, head_dim_, s);
      make_logits(entry, s);
    }
    [[maybe_unused]] uint32_t seen = ~0U;
    if (!entry.all_see || kPass == Pass::keys || job_.votes) {
      seen = mask(entry, s);
      n_seen_ += __popc(seen);
    } else {
      n_all_seen_ += kChunk;
    }
    if constexpr (kPass == Pass::keys) {
      store_logits(entry.chunk, s, seen);
    } else {
      add(at + L::kLogits + L::keys(head_dim_), s);
    }
  }

  /// Hands logits and their maxima to the later passes. -FLT_MAX: there are keys, but none with a finite logit.
  __device__ void store_logits(int32_t chunk, const float (&s)[kTiles][4], uint32_t seen) const {
#pragma unroll
    for (int32_t nt = 0; nt < kTiles; ++nt) {
      if (first_query_ + 8 * nt >= n_queries_) break;
      const int64_t operand = operand_of(job_, item_, chunk, first_query_ + 8 * nt);
      job_.logits[operand * 32 + lane_] = make_float4(s[nt][0], s[nt][1], s[nt][2], s[nt][3]);
      float x[4];
#pragma unroll
      for (int32_t e = 0; e < 4; ++e) x[e] = (seen >> (nt * 4 + e) & 1) != 0 ? fmaxf(s[nt][e], -FLT_MAX) : s[nt][e];
      const float2 largest = {reduce_rows(fmaxf(x[0], x[2]), true), reduce_rows(fmaxf(x[1], x[3]), true)};
      if (lane_ < 4) reinterpret_cast<float2*>(job_.largest + operand * 8)[lane_] = largest;
    }
  }

  /// The online softmax over one chunk.
  __device__ void add(const char* values, float (&s)[kTiles][4]) {
    Weights w[kTiles];
    bool grew = false;
    float shrink[kTiles][2];
#pragma unroll
    for (int32_t nt = 0; nt < kTiles; ++nt) {
#pragma unroll
      for (int32_t i = 0; i < 2; ++i) {
        const float largest = fmaxf(max_[nt][i], reduce_rows(fmaxf(s[nt][i], s[nt][i + 2]), true));
        const float base = largest == -INFINITY ? 0 : largest;
        grew |= largest > max_[nt][i];
        shrink[nt][i] = exp2_fast(max_[nt][i] - base);
        s[nt][i] = exp2_fast(s[nt][i] - base);
        s[nt][i + 2] = exp2_fast(s[nt][i + 2] - base);
        sum_[nt][i] = sum_[nt][i] * shrink[nt][i] + s[nt][i] + s[nt][i + 2];
        max_[nt][i] = largest;
      }
      w[nt] = make_weights<T>(s[nt]);
    }
    if (__any_sync(~0U, grew)) {
#pragma unroll
      for (int32_t nt = 0; nt < kValueTiles; ++nt) {
#pragma unroll
        for (int32_t step = 0; step < kValueSteps; ++step) {
#pragma unroll
          for (int32_t e = 0; e < 4; ++e) o_[nt][step][e] *= shrink[nt][e % 2];
        }
      }
    }
    multiply_values<kType, kDim, kTiles>(values, w, head_dim_, o_);
  }

  /// Adds the warps' results up and writes them to the work memory.
  __device__ void finish(int32_t partial) {
    float* result = reinterpret_cast<float*>(rings_);  // [n_warps, 8, kDim + 4], one tile of queries after another
#pragma unroll
    for (int32_t i = 0; i < kTiles * 2; ++i) {
      const float sum = reduce_rows(sum_[i / 2][i % 2], false);
      if (lane_ < 4) shared_.mass[warp_][i / 2 * 8 + lane_ * 2 + i % 2] = {max_[i / 2][i % 2], sum};
    }
#pragma unroll
    for (int32_t nt = 0; nt < kTiles; ++nt) {
      if (first_query_ + nt * 8 >= n_queries_) break;
      __syncthreads();
#pragma unroll
      for (int32_t step = 0; step < kValueSteps; ++step) {
#pragma unroll
        for (int32_t e = 0; e < 4; ++e) {
          const int32_t query = lane_ % 4 * 2 + e % 2;
          result[(warp_ * 8 + query) * (kDim + 4) + T::value(step, lane_ / 4, e / 2)] = o_[nt][step][e];
        }
      }
      __syncthreads();
      write_partial(result, nt, static_cast<int64_t>(partial) * job_.n_padded + first_query_);
    }
    count();
  }

  __device__ void write_partial(const float* result, int32_t nt, int64_t first) const {
    for (int32_t i = threadIdx.x; i < 8 * kDim / 4; i += blockDim.x) {
      const int32_t query = i / (kDim / 4);
      const int32_t at = i % (kDim / 4) * 4;
      float largest = -INFINITY;
      for (int32_t warp = 0; warp < job_.n_warps; ++warp) {
        largest = fmaxf(largest, shared_.mass[warp][nt * 8 + query].x);
      }
      float4 sum = {0, 0, 0, 0};
      float mass = 0;
      for (int32_t warp = 0; warp < job_.n_warps && largest != -INFINITY; ++warp) {
        const float2 part = shared_.mass[warp][nt * 8 + query];
        const float weight = exp2_fast(part.x - largest);
        const auto o = *reinterpret_cast<const float4*>(result + (warp * 8 + query) * (kDim + 4) + at);
        sum.x += weight * o.x, sum.y += weight * o.y, sum.z += weight * o.z, sum.w += weight * o.w;
        mass += weight * part.y;
      }
      *reinterpret_cast<float4*>(job_.o + (first + nt * 8 + query) * kDim + at) = sum;
      if (at == 0) job_.mass[first + nt * 8 + query] = {largest, mass};
    }
  }

  __device__ void count() const {
    if (job_.call.computed == nullptr) return;
    uint32_t n = __reduce_add_sync(~0U, n_seen_);
    n += n_all_seen_ * static_cast<uint32_t>(min(kTiles * 8, n_queries_ - first_query_));
    if (lane_ == 0 && n > 0) atomicAdd(job_.call.computed, static_cast<unsigned long long>(n));
  }

  const FewJob& job_;
  const Item& item_;
  Shared& shared_;
  QueryOperand* operands_;
  char* rings_;
  int32_t head_dim_;
  int32_t warp_, lane_;
  int32_t first_query_, n_queries_;
  uint32_t n_seen_ = 0;      // (slot, query) pairs of this lane
  uint32_t n_all_seen_ = 0;  // slots of this warp that all queries see
  float max_[kTiles][2];
  float sum_[kTiles][2] = {};
  float o_[kValueTiles][kValueSteps][4] = {};
};

}  // namespace winnow::cuda
