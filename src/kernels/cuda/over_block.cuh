// A reduction over all threads of a block.
#pragma once

namespace winnow::cuda {
namespace {

/// Reduces over the block; every thread gets it.
template <typename T, typename Join>
__device__ T over_block(T x, const Join& join) {
  __shared__ T partial[32];
  for (int i = 16; i > 0; i /= 2) x = join(x, __shfl_xor_sync(~0U, x, i));
  __syncthreads();  // the last use's readers are done
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  T all = partial[0];
  for (unsigned i = 1; i < blockDim.x / 32; ++i) all = join(all, partial[i]);
  return all;
}

}  // namespace
}  // namespace winnow::cuda
