// Lists of a Selection that were made on the GPU.
#pragma once

#include <memory>
#include <vector>

#include "kernels/cuda/attention.h"

namespace winnow::cuda {

struct GpuLists final : DeviceLists {
  Lists lists;
  size_t n_column = 0;                             // entries of `column` that there is room for
  std::vector<std::shared_ptr<std::byte>> memory;  // what `lists` points into
};

/// Lists that are being made: first where each ends is found out, then there is room for their entries.
struct NewLists {
  std::shared_ptr<GpuLists> made;
  int32_t* block_ptr = nullptr;    // [n_head * n_block_q + 1]
  int32_t* column_ptr = nullptr;   // the same
  int32_t* block_begin = nullptr;  // null until there is room
  int32_t* column = nullptr;       // the same

  int64_t n_list() const { return static_cast<int64_t>(made->lists.n_head) * made->lists.n_block_q; }
  Selection selection() const {
    Selection selection;
    selection.block_q = made->lists.block_q;
    selection.block_k = made->lists.block_k;
    selection.n_head = made->lists.n_head;
    selection.n_block_q = made->lists.n_block_q;
    selection.group = made->lists.group;
    selection.on_device = made;
    return selection;
  }
};

}  // namespace winnow::cuda
