// Sixteen slots of K or V, as the cache stores them, on their way into the operands of mma.sync: how they lie in shared
// memory, how they are copied there, and how a lane reads its share. Row r of a product's 16 is slot slot_of_row(r).
//
// f16, bf16 and fp8 rows are padded by 16 bytes, so that ldmatrix has no bank conflicts. q8_0 stays as it is, row after
// row without padding. Both bytes are turned into f16 in registers. f32 becomes a sum of two bf16.
#pragma once

#include <cuda_fp16.h>

#include "attention/types.h"
#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/mma_sm80.cuh"

namespace winnow::cuda {

inline constexpr int32_t kChunk = 16;  // slots that a warp works on at a time
inline constexpr int32_t kQ8Block = 32;
inline constexpr int32_t kQ8Bytes = 34;

/// Rows of one head in shared memory, padded to kDim values.
template <Type kType, int32_t kDim>
struct Tile {
  static constexpr bool kQ8 = kType == Type::q8_0;
  static constexpr bool kF32 = kType == Type::f32;
  static constexpr bool kFp8 = kType == Type::fp8;
  static constexpr bool kBf16 = kType == Type::bf16 || kF32;  // the number format of the products
  static constexpr int32_t kBytes = kF32 ? 4 : kFp8 ? 1 : 2;  // of a value, but for q8_0
  static constexpr float kUnit = kFp8 ? kFp8Unit : 1;         // of K and V as the products see them
  static constexpr int32_t kValues = kDim;
  static constexpr int32_t kSteps = kDim / 16;

  __host__ __device__ static constexpr int32_t row_stride() { return kDim * kBytes + 16; }
  /// Bytes of a chunk; reads of q8_0 go a few bytes beyond its last row.
  __host__ __device__ static constexpr int32_t bytes(int32_t head_dim) {
    return kQ8 ? kChunk * (head_dim / kQ8Block) * kQ8Bytes + 16 : kChunk * row_stride();
  }
  __host__ __device__ static constexpr int32_t row_bytes(int32_t head_dim) {
    return kQ8 ? head_dim / kQ8Block * kQ8Bytes : head_dim * kBytes;
  }
  /// Whether every row begins at a multiple of 16 bytes, and whether chunks can be copied by copy_run.
  __host__ __device__ static constexpr bool aligned(int32_t head_dim) { return kFp8 ? head_dim % 16 == 0 : !kQ8; }
  __host__ __device__ static constexpr bool runs(int32_t head_dim) { return kQ8 || aligned(head_dim); }
  /// The first of two neighbouring values of a key that lane t multiplies in product `step`, in half 0 or 1 of its
  /// operand. Any order will do that is the same for queries and keys; these make reads wide.
  __host__ __device__ static constexpr int32_t key_value(int32_t step, int32_t t, int32_t half) {
    if (kQ8) return t * (kDim / 4) + 4 * step + 2 * half;
    return kF32 || kFp8 ? 16 * step + 4 * t + 2 * half : 16 * step + 2 * t + 8 * half;
  }
  /// The value of v that row g (half 0) or g + 8 (half 1) of product `step` computes.
  __host__ __device__ static constexpr int32_t value(int32_t step, int32_t g, int32_t half) {
    if (kQ8) return g * (kDim / 8) + 2 * step + half;
    return kFp8 ? 16 * step + 2 * g + half : 16 * step + g + 8 * half;
  }
};

/// Rows 2t, 2t + 1, 2t + 8, 2t + 9, which one lane needs of V, are slots t, t + 4, t + 8, t + 12: q8_0 rows of 136
/// bytes then fall into different banks.
__device__ __forceinline__ int32_t slot_of_row(int32_t row) {
  return (row & 8) + ((row & 7) >> 1) + 4 * (row & 1);
}

/// Copies 16 rows that lie one after another, the first at `from`.
template <typename TileT>
__device__ __forceinline__ void copy_run(uint32_t to, const std::byte* from, int32_t head_dim, int32_t lane) {
  const int32_t row_bytes = TileT::row_bytes(head_dim);
  if constexpr (TileT::kQ8) {
    constexpr int32_t kMost = kChunk * TileT::row_bytes(TileT::kValues);
#pragma unroll
    for (int32_t begin = 0; begin < kMost; begin += 32 * 16) {
      const int32_t at = begin + lane * 16;
      if (at < kChunk * row_bytes) copy_async_run(to + at, from + at);
    }
  } else {
    constexpr int32_t kColumns = TileT::row_bytes(TileT::kValues) / 16;
    constexpr int32_t kLanes = kColumns < 32 ? kColumns : 32;  // that share a row
    const int32_t column = lane % kLanes;
    to += lane / kLanes * TileT::row_stride() + column * 16;
    from += lane / kLanes * row_bytes + column * 16;
#pragma unroll
    for (int32_t begin = 0; begin < kColumns; begin += kLanes) {
      if ((begin + column) * 16 >= row_bytes) break;
#pragma unroll
      for (int32_t row = 0; row < kChunk; row += 32 / kLanes) {
        copy_async_run(to + row * TileT::row_stride() + begin * 16, from + row * row_bytes + begin * 16);
      }
    }
  }
}

/// Copies 16 rows from anywhere: lane r < 16 knows the address of row r, and whether to write zeros in its place.
template <typename TileT>
__device__ __forceinline__ void copy_rows(uint32_t to, const std::byte* mine, bool mine_is_real, int32_t head_dim) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const uint32_t reals = __ballot_sync(~0U, mine_is_real);
  const int32_t row_bytes = TileT::row_bytes(head_dim);
  const int32_t stride = TileT::kQ8 ? row_bytes : TileT::row_stride();
#pragma unroll 1
  for (int32_t row = 0; row < kChunk; ++row) {
    const auto from =
        reinterpret_cast<const std::byte*>(__shfl_sync(~0U, reinterpret_cast<unsigned long long>(mine), row));
    const uint32_t at = to + row * stride;
    const bool real = (reals >> row & 1) != 0;
    if (TileT::aligned(head_dim)) {
      for (int32_t i = lane * 16; i < row_bytes; i += 32 * 16) copy_async_16(at + i, from + i, real ? 16 : 0);
    } else if (row_bytes % 4 == 0) {
      for (int32_t i = lane * 4; i < row_bytes; i += 32 * 4) copy_async_4(at + i, from + i, real ? 4 : 0);
    } else {
      for (int32_t i = lane * 2; i < row_bytes; i += 32 * 2) {
        const uint16_t bits = real ? *reinterpret_cast<const uint16_t*>(from + i) : uint16_t{0};
        asm volatile("st.shared.u16 [%0], %1;" ::"r"(at + i), "h"(bits) : "memory");
      }
    }
  }
}

/// kN codes of one q8_0 block from its value `offset` (a multiple of 4) on, plus 128 each, and the block's scale.
template <int32_t kN>
__device__ __forceinline__ __half load_codes(const char* tile, int32_t block, int32_t offset,
                                             uint32_t (&codes)[kN / 4]) {
  const int32_t at = block * kQ8Bytes;
  const int32_t first = at + 2 + offset;
  const auto* words = reinterpret_cast<const uint32_t*>(tile + (first & ~3));  // blocks are only even
  const uint32_t shift = (first & 2) * 8;
  uint32_t low = words[0];
#pragma unroll
  for (int32_t i = 0; i < kN / 4; ++i) {
    const uint32_t high = words[i + 1];
    codes[i] = __funnelshift_r(low, high, shift) ^ 0x80808080U;
    low = high;
  }
  return *reinterpret_cast<const __half*>(tile + at);
}

/// (code, code) * scale from two bytes 128 too large, each below 0x64: the f16 number 1024 + byte.
__device__ __forceinline__ uint32_t scaled_codes(uint32_t bytes, __half2 scale) {
  const __half2 number = *reinterpret_cast<const __half2*>(&bytes);
  const __half2 value = __hmul2(__hsub2(number, __float2half2_rn(1152.0F)), scale);
  return *reinterpret_cast<const uint32_t*>(&value);
}

/// A pair of floats as two packed pairs of bf16 whose sum they are.
__device__ __forceinline__ void split(float x, float y, uint32_t& large, uint32_t& rest) {
  large = pack<true>(x, y);
  rest = pack_rest<true>(x, y, large);
}

/// One query tile of 8 as operand B in both parts: {half 0, half 1, rest of half 0, rest of half 1}.
using QueryOperand = uint4;

template <bool kBf16>
__device__ __forceinline__ void multiply_key(float (&s)[4], float (&rest)[4], const uint32_t (&a)[4],
                                             const QueryOperand& q) {
  mma<kBf16>(s, a, q.x, q.y);
  mma<kBf16>(rest, a, q.z, q.w);  // a chain of its own: products of one chain wait for each other
}

template <int32_t kDim, int32_t kTiles>
__device__ __forceinline__ void multiply_keys_q8(const char* tile, const QueryOperand* q, int32_t head_dim,
                                                 float (&s)[kTiles][4], float (&rest)[kTiles][4]) {
  constexpr int32_t kSteps = kDim / 16;
  constexpr int32_t kRun = kDim / 4 < kQ8Block ? kDim / 4 : kQ8Block;  // of a lane's values, in one block
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t n_blocks = head_dim / kQ8Block;
#pragma unroll
  for (int32_t run = 0; run < kDim / 4 / kRun; ++run) {
    const int32_t first = lane % 4 * (kDim / 4) + run * kRun;
    uint32_t codes[2][kRun / 4] = {};
    __half2 scale[2] = {};
    if (first < head_dim) {
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        const int32_t block = (slot_of_row(lane / 4) + 8 * half) * n_blocks + first / kQ8Block;
        scale[half] = __half2half2(load_codes<kRun>(tile, block, first % kQ8Block, codes[half]));
      }
    }
#pragma unroll
    for (int32_t i = 0; i < kRun / 4; ++i) {
      const uint32_t a[4] = {scaled_codes(__byte_perm(codes[0][i], 0x64646464U, 0x4140), scale[0]),
                             scaled_codes(__byte_perm(codes[1][i], 0x64646464U, 0x4140), scale[1]),
                             scaled_codes(__byte_perm(codes[0][i], 0x64646464U, 0x4342), scale[0]),
                             scaled_codes(__byte_perm(codes[1][i], 0x64646464U, 0x4342), scale[1])};
#pragma unroll
      for (int32_t nt = 0; nt < kTiles; ++nt) {
        multiply_key<false>(s[nt], rest[nt], a, q[(nt * kSteps + run * (kRun / 4) + i) * 32 + lane]);
      }
    }
  }
}

template <int32_t kDim, int32_t kTiles>
__device__ __forceinline__ void multiply_keys_f32(const char* tile, const QueryOperand* q, float (&s)[kTiles][4],
                                                  float (&rest)[kTiles][4]) {
  using T = Tile<Type::f32, kDim>;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const char* row = tile + slot_of_row(lane / 4) * T::row_stride() + 16 * (lane % 4);
#pragma unroll
  for (int32_t step = 0; step < T::kSteps; ++step) {
    const auto low = *reinterpret_cast<const float4*>(row + 64 * step);
    const auto high = *reinterpret_cast<const float4*>(row + 8 * T::row_stride() + 64 * step);
    uint32_t a[4], b[4];
    split(low.x, low.y, a[0], b[0]);
    split(high.x, high.y, a[1], b[1]);
    split(low.z, low.w, a[2], b[2]);
    split(high.z, high.w, a[3], b[3]);
#pragma unroll
    for (int32_t nt = 0; nt < kTiles; ++nt) {
      const QueryOperand operand = q[(nt * T::kSteps + step) * 32 + lane];
      multiply_key<true>(s[nt], rest[nt], a, operand);
      mma<true>(rest[nt], b, operand.x, operand.y);
    }
  }
}

/// A lane's 32 bits of an 8x8 matrix are four neighbours of one row; two steps' values lie in one load.
template <int32_t kDim, int32_t kTiles>
__device__ __forceinline__ void multiply_keys_fp8(uint32_t at, const QueryOperand* q, float (&s)[kTiles][4],
                                                  float (&rest)[kTiles][4]) {
  constexpr int32_t kSteps = kDim / 16;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
#pragma unroll
  for (int32_t step = 0; step < kSteps; step += 2) {
    uint32_t codes[4];
    load_matrices(codes, at + 16 * step);
#pragma unroll
    for (int32_t i = 0; i < 2; ++i) {
      const uint32_t a[4] = {fp8_pair<0>(codes[2 * i]), fp8_pair<0>(codes[2 * i + 1]), fp8_pair<1>(codes[2 * i]),
                             fp8_pair<1>(codes[2 * i + 1])};
#pragma unroll
      for (int32_t nt = 0; nt < kTiles; ++nt) {
        multiply_key<false>(s[nt], rest[nt], a, q[(nt * kSteps + step + i) * 32 + lane]);
      }
    }
  }
}

/// s[nt] = K Q^T of a chunk: rows are slots, columns the 8 queries of each tile. q: [kTiles, kDim / 16, 32 lanes].
template <Type kType, int32_t kDim, int32_t kTiles>
__device__ __forceinline__ void multiply_keys(const char* tile, const QueryOperand* q, int32_t head_dim,
                                              float (&s)[kTiles][4]) {
  using T = Tile<kType, kDim>;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  float rest[kTiles][4] = {};
#pragma unroll
  for (int32_t nt = 0; nt < kTiles; ++nt) s[nt][0] = s[nt][1] = s[nt][2] = s[nt][3] = 0;
  if constexpr (T::kQ8) {
    multiply_keys_q8<kDim, kTiles>(tile, q, head_dim, s, rest);
  } else if constexpr (T::kF32) {
    multiply_keys_f32<kDim, kTiles>(tile, q, s, rest);
  } else {
    const uint32_t at = shared_address(tile) + (slot_of_row(lane % 8) + (lane & 8)) * T::row_stride() + lane / 16 * 16;
    if constexpr (T::kFp8) {
      multiply_keys_fp8<kDim, kTiles>(at, q, s, rest);
    } else {
#pragma unroll
      for (int32_t step = 0; step < T::kSteps; ++step) {
        uint32_t a[4];
        load_matrices(a, at + 32 * step);
#pragma unroll
        for (int32_t nt = 0; nt < kTiles; ++nt) {
          multiply_key<T::kBf16>(s[nt], rest[nt], a, q[(nt * T::kSteps + step) * 32 + lane]);
        }
      }
    }
  }
#pragma unroll
  for (int32_t nt = 0; nt < kTiles; ++nt) {
#pragma unroll
    for (int32_t e = 0; e < 4; ++e) s[nt][e] = (s[nt][e] + rest[nt][e]) * T::kUnit;
  }
}

/// Probabilities of a chunk, times the unit of V, as operand B: rows 2t, 2t + 1 (.x) and 2t + 8, 2t + 9 (.y) of query
/// g; `rest` as in QueryOperand, for formats of 8 digits.
struct Weights {
  uint2 main, rest;
};

template <typename TileT>
__device__ __forceinline__ Weights make_weights(const float (&p)[4]) {
  Weights w{};
  const uint32_t x = pack<TileT::kBf16>(p[0] * TileT::kUnit, p[1] * TileT::kUnit);
  const uint32_t y = pack<TileT::kBf16>(p[2] * TileT::kUnit, p[3] * TileT::kUnit);
  w.main = {transpose_matrix(x), transpose_matrix(y)};
  if constexpr (TileT::kBf16) {
    w.rest = {transpose_matrix(pack_rest<true>(p[0], p[1], x)), transpose_matrix(pack_rest<true>(p[2], p[3], y))};
  }
  return w;
}

template <bool kBf16>
__device__ __forceinline__ void multiply_value(float (&o)[4], const uint32_t (&a)[4], const Weights& w) {
  mma<kBf16>(o, a, w.main.x, w.main.y);
  if constexpr (kBf16) mma<true>(o, a, w.rest.x, w.rest.y);
}

template <int32_t kDim, int32_t kTiles>
__device__ __forceinline__ void multiply_values_q8(const char* tile, const Weights (&w)[kTiles], int32_t head_dim,
                                                   float (&o)[kTiles][kDim / 16][4]) {
  constexpr int32_t kRun = kDim / 8 < 16 ? kDim / 8 : 16;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t n_blocks = head_dim / kQ8Block;
#pragma unroll
  for (int32_t run = 0; run < kDim / 8 / kRun; ++run) {
    const int32_t first = lane / 4 * (kDim / 8) + run * kRun;
    uint32_t codes[4][kRun / 4] = {};
    __half scale[4] = {};
    if (first < head_dim) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        const int32_t block = (lane % 4 + 4 * i) * n_blocks + first / kQ8Block;
        scale[i] = load_codes<kRun>(tile, block, first % kQ8Block, codes[i]);
      }
    }
    const __half2 low = __halves2half2(scale[0], scale[1]);
    const __half2 high = __halves2half2(scale[2], scale[3]);
#pragma unroll
    for (int32_t i = 0; i < kRun / 2; ++i) {  // two values of four slots
      const uint32_t select = i % 2 == 0 ? 0x5140 : 0x7362;
      const uint32_t x = __byte_perm(codes[0][i / 2], codes[1][i / 2], select);
      const uint32_t y = __byte_perm(codes[2][i / 2], codes[3][i / 2], select);
      const uint32_t a[4] = {scaled_codes(__byte_perm(x, 0x64646464U, 0x4140), low),
                             scaled_codes(__byte_perm(x, 0x64646464U, 0x4342), low),
                             scaled_codes(__byte_perm(y, 0x64646464U, 0x4140), high),
                             scaled_codes(__byte_perm(y, 0x64646464U, 0x4342), high)};
#pragma unroll
      for (int32_t nt = 0; nt < kTiles; ++nt) multiply_value<false>(o[nt][run * (kRun / 2) + i], a, w[nt]);
    }
  }
}

template <int32_t kDim, int32_t kTiles>
__device__ __forceinline__ void multiply_values_f32(const char* tile, const Weights (&w)[kTiles],
                                                    float (&o)[kTiles][kDim / 16][4]) {
  using T = Tile<Type::f32, kDim>;
  constexpr int32_t kRow = T::row_stride() / 4;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const float* first = reinterpret_cast<const float*>(tile) + lane % 4 * kRow + lane / 4;
#pragma unroll
  for (int32_t step = 0; step < T::kSteps; ++step) {
    uint32_t a[4], b[4];
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      const float* x = first + i / 2 * 8 * kRow + 16 * step + i % 2 * 8;
      split(x[0], x[4 * kRow], a[i], b[i]);
    }
#pragma unroll
    for (int32_t nt = 0; nt < kTiles; ++nt) {
      multiply_value<true>(o[nt][step], a, w[nt]);
      mma<true>(o[nt][step], b, w[nt].main.x, w[nt].main.y);
    }
  }
}

/// Transposed, a lane has two neighbouring values of two slots; each value is one row of the product.
template <int32_t kDim, int32_t kTiles>
__device__ __forceinline__ void multiply_values_fp8(uint32_t at, const Weights (&w)[kTiles],
                                                    float (&o)[kTiles][kDim / 16][4]) {
#pragma unroll
  for (int32_t step = 0; step < kDim / 16; step += 2) {
    uint32_t codes[4];
    load_matrices_transposed(codes, at + 16 * step);
#pragma unroll
    for (int32_t i = 0; i < 2; ++i) {
      const uint32_t a[4] = {fp8_high_bytes(codes[i] << 8), fp8_high_bytes(codes[i]), fp8_high_bytes(codes[i + 2] << 8),
                             fp8_high_bytes(codes[i + 2])};
#pragma unroll
      for (int32_t nt = 0; nt < kTiles; ++nt) multiply_value<false>(o[nt][step + i], a, w[nt]);
    }
  }
}

/// o[nt] += V^T P^T of a chunk: rows are values of a head, columns the queries.
template <Type kType, int32_t kDim, int32_t kTiles>
__device__ __forceinline__ void multiply_values(const char* tile, const Weights (&w)[kTiles], int32_t head_dim,
                                                float (&o)[kTiles][kDim / 16][4]) {
  using T = Tile<kType, kDim>;
  if constexpr (T::kQ8) {
    multiply_values_q8<kDim, kTiles>(tile, w, head_dim, o);
  } else if constexpr (T::kF32) {
    multiply_values_f32<kDim, kTiles>(tile, w, o);
  } else {
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
    const int32_t row = slot_of_row(lane % 8) + (lane >= 16 ? 8 : 0);
    const uint32_t at = shared_address(tile) + row * T::row_stride() + (lane & 8) * 2;
    if constexpr (T::kFp8) {
      multiply_values_fp8<kDim, kTiles>(at, w, o);
    } else {
#pragma unroll
      for (int32_t step = 0; step < T::kSteps; ++step) {
        uint32_t a[4];
        load_matrices_transposed(a, at + 32 * step);
#pragma unroll
        for (int32_t nt = 0; nt < kTiles; ++nt) multiply_value<T::kBf16>(o[nt][step], a, w[nt]);
      }
    }
  }
}

}  // namespace winnow::cuda
