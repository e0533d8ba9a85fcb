#include "kernels/cuda/store_kv.h"

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vec_inl.h"

namespace winnow::cuda {
namespace {

constexpr int kThreads = 256;

/// ggml's block of q8_0: a scale in f16, then 32 codes. Four neighbouring threads hold one, eight values each.
__device__ void store_q8_0(std::byte* row, int chunk, const float (&v)[8], bool mine) {
  float largest = 0;
#pragma unroll
  for (const float x : v) largest = fmaxf(largest, fabsf(x));
  largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, 2));
  if (!mine) return;
  const float scale = __fdiv_rn(largest, 127.0F);
  const float inverse = scale != 0 ? __frcp_rn(scale) : 0.0F;
  auto* words = reinterpret_cast<uint16_t*>(row + chunk / 4 * 34);  // blocks begin on even addresses
  if (chunk % 4 == 0) words[0] = __half_as_ushort(__float2half_rn(scale));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto low = static_cast<int>(roundf(__fmul_rn(v[2 * i], inverse)));
    const auto high = static_cast<int>(roundf(__fmul_rn(v[2 * i + 1], inverse)));
    words[1 + chunk % 4 * 4 + i] = static_cast<uint16_t>((low & 0xff) | ((high & 0xff) << 8));
  }
}

__device__ void store_f16(std::byte* row, int chunk, const float (&v)[8]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] = static_cast<uint32_t>(__half_as_ushort(__float2half_rn(v[2 * i]))) |
               static_cast<uint32_t>(__half_as_ushort(__float2half_rn(v[2 * i + 1]))) << 16;
  }
  reinterpret_cast<uint4*>(row)[chunk] = {words[0], words[1], words[2], words[3]};
}

__device__ void store_fp8(std::byte* row, int chunk, const float (&v)[8]) {
  const auto two = [&](int i) {
    return static_cast<uint32_t>(__nv_cvt_float2_to_fp8x2(make_float2(v[i], v[i + 1]), __NV_SATFINITE, __NV_E4M3));
  };
  reinterpret_cast<uint2*>(row)[chunk] = {two(0) | two(2) << 16, two(4) | two(6) << 16};
}

/// One thread for eight values of a head of a row; blockIdx.y 0: keys, 1: values.
template <typename T>
__global__ void store_rows_kernel(const __grid_constant__ StoreArgs k, const __grid_constant__ StoreArgs v,
                                  bool is_wide) {
  const StoreArgs& args = blockIdx.y == 0 ? k : v;
  const HeadsView& from = args.rows;
  const int32_t chunks = from.head_dim / 8;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const bool mine = item < from.n_rows * from.n_head * chunks;
  const auto chunk = static_cast<int>(mine ? item % chunks : 0);
  const auto head = static_cast<int32_t>(mine ? item / chunks % from.n_head : 0);
  const int64_t r = mine ? item / chunks / from.n_head : 0;
  const int64_t slot = args.first_slot[head] + r;
  const int64_t index = args.first_block[head] + slot / kBlockSlots;
  take_turn();
  float values[8];
  load_some(reinterpret_cast<const T*>(from.data) + r * from.stride + head * from.head_dim + 8 * chunk, 8, is_wide,
            values);
  // The address is read only by threads that have a row: beyond the last there may be no block.
  std::byte* block = mine ? const_cast<std::byte*>(args.blocks[index]) : nullptr;
  const int64_t within = slot % kBlockSlots;
  if (args.type == Type::q8_0) {
    store_q8_0(block + within * (from.head_dim / 32 * 34), chunk, values, mine);
  } else if (!mine) {
    return;
  } else if (args.type == Type::f32) {
    store8(reinterpret_cast<float*>(block) + within * from.head_dim + 8 * chunk, values);
  } else if (args.type == Type::fp8) {
    store_fp8(block + within * from.head_dim, chunk, values);
  } else if (args.type == Type::bf16) {
    store8(reinterpret_cast<bf16*>(block) + within * from.head_dim + 8 * chunk, values);
  } else {
    store_f16(block + within * from.head_dim * 2, chunk, values);
  }
}

}  // namespace

void store_rows(const StoreArgs& k, const StoreArgs& v, Stream stream) {
  const HeadsView& rows = k.rows;
  if (rows.n_rows == 0) return;
  const int64_t items = rows.n_rows * rows.n_head * (rows.head_dim / 8);
  const dim3 blocks(static_cast<unsigned>((items + kThreads - 1) / kThreads), 2);
  with_type(rows.type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const bool is_wide = wide(reinterpret_cast<const T*>(k.rows.data), k.rows.stride) &&
                         wide(reinterpret_cast<const T*>(v.rows.data), v.rows.stride);
    launch_early({blocks, kThreads, 0, stream, "launching the cache's rows"}, store_rows_kernel<T>, k, v, is_wide);
  });
}

}  // namespace winnow::cuda
