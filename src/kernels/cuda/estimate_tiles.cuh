// What the kernels of estimate_blocks share: the tiles that a launch is cut into, and what is kept of a tile's logits
// while they are in registers.
#pragma once

#include "kernels/cuda/estimate.h"
#include "kernels/cuda/key_tiles.cuh"

namespace winnow::cuda {
namespace {

constexpr int kTileRows = 128;   // row groups
constexpr int kStripTiles = 16;  // row tiles that go over the keys together, so that the L2 cache holds what they read
constexpr int kWarpRows = 16;

/// Slot groups that row group `i` of head `head` of the call looks at.
template <bool kMaxima>
__device__ int32_t groups_seen(const EstimateCall& call, int32_t head, int64_t i) {
  const BlockRows& rows = call.rows;
  const int64_t row = kMaxima ? i * rows.stride : min((i + 1) * rows.stride, rows.n_rows) - 1;
  const int2 visible = rows.visible[call.kv_head(head) * rows.n_rows + row];
  return (visible.y + rows.stride - 1) / rows.stride;
}

/// Row groups [row, end) by slot groups from `column` on, of one head.
struct EstimateTile {
  int32_t head;
  int32_t column;
  int64_t row, end;

  __device__ EstimateTile(const EstimateCall& call, int32_t index) {
    const auto row_tiles = static_cast<int32_t>((call.n + kTileRows - 1) / kTileRows);
    const int32_t strip = min(row_tiles, kStripTiles), strips = (row_tiles + strip - 1) / strip;
    const auto columns = static_cast<int32_t>((call.n_k + kEstimateColumns - 1) / kEstimateColumns);
    const int32_t before = index / strip / columns;
    head = before / strips;
    column = index / strip % columns * kEstimateColumns;
    row = call.first + static_cast<int64_t>(before % strips * strip + index % strip) * kTileRows;
    end = min(row + kTileRows, call.first + call.n);
  }

  /// Whether any of its rows looks at any of its slots.
  template <bool kMaxima>
  __device__ bool is_seen(const EstimateCall& call) const {
    return row < end && column < groups_seen<kMaxima>(call, head, end - 1);
  }
};

inline int32_t n_estimate_tiles(const EstimateCall& call) {
  const auto row_tiles = static_cast<int32_t>((call.n + kTileRows - 1) / kTileRows);
  const int32_t strip = row_tiles < kStripTiles ? row_tiles : kStripTiles;
  const auto columns = static_cast<int32_t>((call.n_k + kEstimateColumns - 1) / kEstimateColumns);
  return call.n_head * ((row_tiles + strip - 1) / strip) * strip * columns;
}

/// Of a power of two.
__device__ inline int32_t log2_of(int32_t x) {
  return __ffs(x) - 1;
}

/// A warp's 16 rows of a tile, from row group `row` on: products x become what EstimateCall::parts keeps of them. Lane
/// 4 g + t holds of rows g and g + 8 (half) columns 8 n + 2 t + e, as x[4 n + 2 half + e].
template <bool kMaxima>
class WarpParts {
 public:
  __device__ WarpParts(const EstimateCall& call, const EstimateTile& tile, int64_t row)
      : call_(call),
        tile_(tile),
        row_(row + static_cast<int>(threadIdx.x) % 32 / 4),
        t_(static_cast<int>(threadIdx.x) % 4),
        per_block_(call.rows.block / call.rows.stride),
        shift_(log2_of(per_block_)) {}

  __device__ __forceinline__ void keep(float (&x)[kEstimateColumns / 2]) {
    half<0>(x);
    half<1>(x);
  }

 private:
  static constexpr int kSteps = kEstimateColumns / 8;

  template <int kHalf>
  __device__ __forceinline__ void half(float (&x)[kEstimateColumns / 2]) {
    const int64_t row = row_ + 8 * kHalf;
    const bool there = row < tile_.end;
    float* out = call_.parts + (tile_.head * call_.n + (row - call_.first)) * call_.ld;
    const float top = to_logits<kHalf>(there ? groups_seen<kMaxima>(call_, tile_.head, row) - tile_.column : 0, x);
    const float base = top > kNothing ? top : 0.0F;
    float total = 0;
#pragma unroll
    for (int n = 0; n < kSteps; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& value = x[4 * n + 2 * kHalf + e];
        const float p = exp2_fast(value - base);
        if constexpr (kMaxima) {
          total += p;
        } else {
          value = p;
        }
      }
    }
    const int32_t first = tile_.column >> shift_;
    for_blocks<kHalf>(x, [&](int32_t block, float part) {
      if (there && first + block < call_.rows.n_block) out[first + block] = kMaxima ? part : base + __log2f(part);
    });
    if constexpr (kMaxima) {
      total += __shfl_xor_sync(~0U, total, 1);
      total += __shfl_xor_sync(~0U, total, 2);
      if (there && t_ == 0) out[call_.rows.n_block + tile_.column / kEstimateColumns] = base + __log2f(total);
    }
  }

  /// Logits in base 2, -infinity from column `seen` on. -> the row's largest
  template <int kHalf>
  __device__ __forceinline__ float to_logits(int32_t seen, float (&x)[kEstimateColumns / 2]) const {
    const float softcap = call_.rows.softcap;
    float scale = call_.rows.scale;
    if (softcap > 0) {
#pragma unroll
      for (int n = 0; n < kSteps; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& value = x[4 * n + 2 * kHalf + e];
          value = softcap * tanhf(value * scale / softcap);
        }
      }
      scale = 1;
    }
    float top = kNothing;
#pragma unroll
    for (int n = 0; n < kSteps; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& value = x[4 * n + 2 * kHalf + e];
        value *= scale * kLog2E;
        if (8 * n + 2 * t_ + e >= seen) value = kNothing;
        top = fmaxf(top, value);
      }
    }
    top = fmaxf(top, __shfl_xor_sync(~0U, top, 1));
    return fmaxf(top, __shfl_xor_sync(~0U, top, 2));
  }

  /// Calls put(block, part) for each block of the row's columns, on one lane.
  template <int kHalf, typename Put>
  __device__ __forceinline__ void for_blocks(const float (&x)[kEstimateColumns / 2], const Put& put) const {
    constexpr float kNone = kMaxima ? kNothing : 0.0F;
    const auto join = [](float a, float b) { return kMaxima ? fmaxf(a, b) : a + b; };
    const int lanes = per_block_ >= 8 ? 4 : per_block_ / 2;  // that share a block
    float part = kNone;
#pragma unroll
    for (int n = 0; n < kSteps; ++n) {
      const float even = x[4 * n + 2 * kHalf], odd = x[4 * n + 2 * kHalf + 1];
      if (per_block_ == 1) {
        put(8 * n + 2 * t_, even);
        put(8 * n + 2 * t_ + 1, odd);
        continue;
      }
      part = join(part, join(even, odd));
      if ((8 * n + 8 & per_block_ - 1) != 0) continue;
      if (lanes > 1) part = join(part, __shfl_xor_sync(~0U, part, 1));
      if (lanes > 2) part = join(part, __shfl_xor_sync(~0U, part, 2));
      if ((t_ & lanes - 1) == 0) put(8 * n + 2 * t_ >> shift_, part);
      part = kNone;
    }
  }

  const EstimateCall& call_;
  const EstimateTile& tile_;
  int64_t row_;
  int t_;
  int32_t per_block_, shift_;
};

}  // namespace
}  // namespace winnow::cuda
