// Eight values of a cache row at a time, in whatever type the cache stores, as bf16.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/vec_inl.h"

namespace winnow::cuda {

/// Eight values as they are stored.
template <Type kType>
struct Stored;

template <>
struct Stored<Type::bf16> {
  uint4 bits;
  __device__ void load(const std::byte* row, int32_t i) { bits = *reinterpret_cast<const uint4*>(row + i * 2); }
  __device__ uint4 convert() const { return bits; }
};

template <>
struct Stored<Type::f16> {
  uint4 bits;
  __device__ void load(const std::byte* row, int32_t i) { bits = *reinterpret_cast<const uint4*>(row + i * 2); }
  __device__ static uint32_t convert(uint32_t pair) {
    const float2 x = __half22float2(*reinterpret_cast<const __half2*>(&pair));
    return pack(x.x, x.y);
  }
  __device__ uint4 convert() const { return {convert(bits.x), convert(bits.y), convert(bits.z), convert(bits.w)}; }
};

template <>
struct Stored<Type::f32> {
  float4 low, high;
  __device__ void load(const std::byte* row, int32_t i) {
    low = *reinterpret_cast<const float4*>(row + i * 4);
    high = *reinterpret_cast<const float4*>(row + i * 4 + 16);
  }
  __device__ uint4 convert() const {
    return {pack(low.x, low.y), pack(low.z, low.w), pack(high.x, high.y), pack(high.z, high.w)};
  }
};

template <>
struct Stored<Type::q8_0> {  // blocks of 32: an f16 scale, then 32 signed bytes; only even addresses
  uint16_t scale;
  uint16_t codes[4];
  __device__ void load(const std::byte* row, int32_t i) {
    const auto* block = reinterpret_cast<const uint16_t*>(row + i / 32 * 34);
    scale = block[0];
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) codes[j] = block[1 + i % 32 / 2 + j];
  }
  __device__ uint4 convert() const {
    const float factor = __half2float(*reinterpret_cast<const __half*>(&scale));
    uint32_t pairs[4];
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      pairs[j] = pack(factor * static_cast<int8_t>(codes[j] & 0xff), factor * static_cast<int8_t>(codes[j] >> 8));
    }
    return {pairs[0], pairs[1], pairs[2], pairs[3]};
  }
};

template <>
struct Stored<Type::fp8> {
  uint2 codes;
  __device__ void load(const std::byte* row, int32_t i) { codes = *reinterpret_cast<const uint2*>(row + i); }
  __device__ static uint32_t convert(uint32_t two) {
    const float2 x = fp8_floats(two);
    return pack(x.x, x.y);
  }
  __device__ uint4 convert() const {
    return {convert(codes.x), convert(codes.x >> 16), convert(codes.y), convert(codes.y >> 16)};
  }
};

__host__ __device__ constexpr int64_t row_bytes(Type type, int32_t head_dim) {
  if (type == Type::q8_0) return head_dim / 32 * 34;
  return head_dim * (type == Type::f32 ? 4 : type == Type::fp8 ? 1 : 2);
}

template <Type kType>
__device__ uint4 stored8(const std::byte* row, int32_t i) {
  Stored<kType> values;
  values.load(row, i);
  return values.convert();
}

/// Values i to i + 7 of a row; i is a multiple of 8.
__device__ inline uint4 stored8(Type type, const std::byte* row, int32_t i) {
  if (type == Type::f16) return stored8<Type::f16>(row, i);
  if (type == Type::bf16) return stored8<Type::bf16>(row, i);
  if (type == Type::q8_0) return stored8<Type::q8_0>(row, i);
  if (type == Type::fp8) return stored8<Type::fp8>(row, i);
  return stored8<Type::f32>(row, i);
}

}  // namespace winnow::cuda
