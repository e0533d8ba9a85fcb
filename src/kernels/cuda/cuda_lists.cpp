// Lists of selections in GPU memory.
#include "attention/lists.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_device.h"

namespace winnow::cuda {

NewLists CudaDevice::new_lists(const Lists& shape) {
  NewLists lists{.made = std::make_shared<GpuLists>()};
  lists.made->lists = shape;
  const auto n = static_cast<size_t>(lists.n_list() + 1) * sizeof(int32_t);
  for (int32_t** ptr : {&lists.block_ptr, &lists.column_ptr}) {
    *ptr = reinterpret_cast<int32_t*>(lists.made->memory.emplace_back(gpu_memory_.lend(n)).get());
  }
  lists.made->lists.block_ptr = lists.block_ptr;
  lists.made->lists.column_ptr = lists.column_ptr;
  lists.made->lists.column_end = lists.column_ptr + 1;
  return lists;
}

int32_t* CudaDevice::room(NewLists& lists, size_t n_entries) {
  auto& memory = lists.made->memory.emplace_back(gpu_memory_.lend((n_entries + 1) * sizeof(int32_t)));
  return reinterpret_cast<int32_t*>(memory.get());
}

int32_t* CudaDevice::share_columns(NewLists& lists) {
  int32_t* end = room(lists, static_cast<size_t>(lists.n_list()));
  lists.made->lists.column_end = end;
  return end;
}

void CudaDevice::make_columns(NewLists& lists, size_t n) {
  lists.made->n_column = n;
  lists.made->lists.column = lists.column = room(lists, n);
}

void CudaDevice::make_blocks(NewLists& lists) {
  int32_t n = 0;
  transfers_.download(&n, lists.block_ptr + lists.n_list(), sizeof(n));
  lists.made->lists.block_begin = lists.block_begin = room(lists, static_cast<size_t>(n));
}

void CudaDevice::make_room(NewLists& lists) {
  make_blocks(lists);
  int32_t n = 0;
  transfers_.download(&n, lists.column_ptr + lists.n_list(), sizeof(n));
  make_columns(lists, static_cast<size_t>(n));
}

void CudaDevice::make_room(NewLists& lists, int64_t n_block, int64_t n_column) {
  lists.made->lists.block_begin = lists.block_begin = room(lists, static_cast<size_t>(n_block));
  make_columns(lists, static_cast<size_t>(n_column));
}

double CudaDevice::mean_share(const float* shares, size_t n) {
  std::vector<float> known(n);
  transfers_.download(known.data(), shares, n * sizeof(float));
  MassEstimate all;
  for (const float share : known) all.add(double{share});
  return all.sum / static_cast<double>(all.n);
}

Selection CudaDevice::on_host(const Selection& selection) {
  if (selection.on_device == nullptr) return selection;
  const auto lock = begin();
  const auto& made = static_cast<const GpuLists&>(*selection.on_device);
  const auto n_list = static_cast<size_t>(made.lists.n_head) * static_cast<size_t>(made.lists.n_block_q);
  Selection host = selection;
  host.on_device = nullptr;
  const auto fetch = [this](std::vector<int32_t>& to, const int32_t* from, size_t n) {
    to.resize(n);
    if (n > 0) transfers_.download(to.data(), from, n * sizeof(int32_t));
  };
  fetch(host.block_ptr, made.lists.block_ptr, n_list + 1);
  fetch(host.column_ptr, made.lists.column_ptr, n_list + 1);
  fetch(host.block_begin, made.lists.block_begin, static_cast<size_t>(host.block_ptr.back()));
  fetch(host.column, made.lists.column, static_cast<size_t>(host.column_ptr.back()));
  if (made.lists.column_end != made.lists.column_ptr + 1) fetch(host.column_end, made.lists.column_end, n_list);
  return host;
}

Selection CudaDevice::on_device(const Selection& selection) {
  if (selection.everything() || selection.on_device != nullptr) return selection;
  const auto lock = begin();
  auto made = std::make_shared<GpuLists>();
  made->memory.push_back(upload_lists(selection, made->lists));
  made->n_column = selection.column.size();
  Selection moved;
  moved.block_q = selection.block_q;
  moved.block_k = selection.block_k;
  moved.n_head = selection.n_head;
  moved.group = selection.group;
  moved.n_block_q = selection.n_block_q;
  moved.rows = selection.rows;
  moved.estimated_mass = selection.estimated_mass;
  moved.on_device = std::move(made);
  return moved;
}

}  // namespace winnow::cuda
