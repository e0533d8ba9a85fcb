// A probe's rows by tiles of keys: products that stay in registers, as logits.
#pragma once

#include "kernels/cuda/key_tiles.cuh"
#include "kernels/cuda/lines.h"
#include "kernels/cuda/vec_inl.h"

namespace winnow::cuda {
namespace {

constexpr int kRows = kMaxProbeRows;
constexpr int kChunkTiles = 16;  // of one thread block
constexpr int kChunk = kTile * kChunkTiles;
constexpr int kWarps = 4;  // each has 32 rows and 32 keys of a tile
constexpr int kThreads = 32 * kWarps;
/// What one thread works on.
struct Part {
  int head, kv_head;
  int first;       // slot of the block's chunk
  int begin, end;  // of what rows see there; begin is a tile's
  int2 plain;      // slots that all rows see, whose logits are scaled products and nothing else
  int warp, g, t;
  int first_row, first_key;  // the warp's, in each tile

  __device__ int row(int i) const { return first_row + 8 * i + g; }
};

__device__ Part part_of(const LineProbe& probe) {
  const int head = blockIdx.x;
  const int kv_head = head / (probe.q.n_head / probe.kv.n_head_kv);
  const int first = static_cast<int>(blockIdx.y) * kChunk;
  const int2* visible = probe.visible + kv_head * probe.q.n_rows;
  const int2 top = visible[0];
  const int2 bottom = visible[probe.q.n_rows - 1];
  const bool plain = !(probe.softcap > 0) && probe.kv.bias == nullptr;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return {.head = head,
          .kv_head = kv_head,
          .first = first,
          .begin = max(first, top.x / kTile * kTile),
          .end = min(first + kChunk, bottom.y),
          .plain = plain ? int2{bottom.x, top.y} : int2{0, 0},
          .warp = warp,
          .g = lane / 4,
          .t = lane % 4,
          .first_row = warp / 2 * 32,
          .first_key = warp % 2 * 32};
}

/// The probe's queries of one head, as [kRows, kDim + kPad]; rows and values that there are not become zero.
template <int kDim>
__device__ void load_queries(const LineProbe& probe, int head, __nv_bfloat16* to) {
  constexpr int kStride = kDim + kPad;
  const HeadRows& q = probe.q;
  const bool wide = q.type == Type::bf16 && reinterpret_cast<uintptr_t>(q.data) % 16 == 0 && q.stride % 8 == 0;
#pragma unroll
  for (int step = 0; step < kRows * kDim / 8 / kThreads; ++step) {
    const int i = step * kThreads + static_cast<int>(threadIdx.x);
    const int row = i / (kDim / 8);
    const int d = i % (kDim / 8) * 8;
    const bool there = row < q.n_rows && d < q.head_dim;
    const int64_t at = there ? row * q.stride + static_cast<int64_t>(head) * q.head_dim + d : 0;
    if (wide) {
      const auto* from = static_cast<const __nv_bfloat16*>(q.data) + at;
      copy_async_16(shared_address(to + row * kStride + d), from, there ? 16 : 0);
      continue;
    }
    float v[8];
    if (q.type == Type::f32) {
      load_some(static_cast<const float*>(q.data) + at, there ? 8 : 0, false, v);
    } else {
      load_some(static_cast<const __nv_bfloat16*>(q.data) + at, there ? 8 : 0, false, v);
    }
    store8(to + row * kStride + d, v);
  }
  copy_async_commit();
  copy_async_wait<0>();
}

__device__ float logit(const LineProbe& probe, int kv_head, int slot, int2 visible, float product) {
  if (slot < visible.x || slot >= visible.y) return kNothing;
  float x = product * probe.scale;
  if (probe.softcap > 0) x = probe.softcap * tanhf(x / probe.softcap);
  if (probe.kv.bias != nullptr) x += probe.kv.bias[static_cast<int64_t>(kv_head) * probe.kv.capacity + slot];
  return x * kLog2E;
}

/// Products with the tile of keys that begins at slot `begin` become what times the result is logits, in base 2;
/// -infinity where a row does not see a key.
__device__ __forceinline__ float to_logits(const LineProbe& probe, const Part& part, int begin, Products& x) {
  if (begin >= part.plain.x && begin + kTile <= part.plain.y) return probe.scale * kLog2E;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = part.row(i);
    const int2 visible = row < probe.q.n_rows ? probe.visible[part.kv_head * probe.q.n_rows + row] : int2{0, 0};
#pragma unroll
    for (int at = 0; at < 8; ++at) {
      float& product = x[i / 2][at / 2][i % 2 * 2 + at % 2];
      const int slot = begin + part.first_key + at / 2 * 8 + part.t * 2 + at % 2;
      product = logit(probe, part.kv_head, slot, visible, product);
    }
  }
  return 1;
}

/// Calls use(begin, x, scale), where x times scale are logits in base 2, for each tile of the part, between barriers.
/// `stages`: two of stage_bytes(kDim), through the first of which the queries come as well.
template <int kDim, typename Use>
__device__ __forceinline__ void for_tiles(const LineProbe& probe, const Part& part, std::byte* stages, const Use& use) {
  constexpr int kStride = kDim + kPad;
  static_assert(kRows == kTile);
  auto* shared = reinterpret_cast<__nv_bfloat16*>(stages);
  const int lane = part.g * 4 + part.t;
  load_queries<kDim>(probe, part.head, shared);
  __syncthreads();
  uint32_t q[2][kDim / 16][4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const __nv_bfloat16* from = shared + (part.first_row + i * 16 + lane % 16) * kStride + lane / 16 * 8;
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) load_matrices(q[i][d], shared_address(from + d * 16));
  }
  __syncthreads();
  // A thread copies 16 bytes of every kStep-th key.
  constexpr int kPieces = kDim / 8;
  constexpr int kStep = kThreads / kPieces;
  const int key = static_cast<int>(threadIdx.x) / kPieces;
  const int d = static_cast<int>(threadIdx.x) % kPieces * 8;
  const __nv_bfloat16* keys = probe.kv.k + (part.kv_head * probe.kv.capacity + key) * kDim + d;
  const uint32_t to = shared_address(shared + key * kStride + d);
  const auto load = [&](int begin, int stage) {  // whole tiles: capacity is a multiple of kTile
    if (begin < part.end) {
#pragma unroll
      for (int i = 0; i < kTile; i += kStep) {
        copy_async_run(to + static_cast<uint32_t>((stage * kTile + i) * kStride * sizeof(__nv_bfloat16)),
                       keys + static_cast<int64_t>(begin) * kDim + i * kDim);
      }
    }
    copy_async_commit();
  };
  load(part.begin, 0);
  int stage = 0;
  for (int begin = part.begin; begin < part.end; begin += kTile) {
    copy_async_wait<0>();
    __syncthreads();  // the tile is there, and nobody reads the one before it any more
    load(begin + kTile, stage ^ 1);
    const int row = stage * kTile + part.first_key + lane / 16 * 8 + lane % 8;
    Products x;
    multiply<kDim>(q, shared_address(shared + row * kStride + lane / 8 % 2 * 8), x);
    const float scale = to_logits(probe, part, begin, x);
    use(begin, x, scale);
    stage ^= 1;
  }
  __syncthreads();
}

}  // namespace
}  // namespace winnow::cuda
