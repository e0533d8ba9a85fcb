// Lists of a Selection that were made on the GPU.
#pragma once

#include <memory>
#include <vector>

#include "kernels/cuda/attention.h"

namespace winnow::cuda {

struct GpuLists final : DeviceLists {
  Lists lists;
  size_t n_block = 0, n_column = 0;                // entries of block_begin and column
  std::vector<std::shared_ptr<std::byte>> memory;  // what `lists` points into
};

}  // namespace winnow::cuda
