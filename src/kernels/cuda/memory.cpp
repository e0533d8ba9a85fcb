#include "kernels/cuda/memory.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <bit>

#include "base/error.h"
#include "kernels/cuda/check.h"

namespace winnow::cuda {
namespace {

constexpr size_t kAlignment = 512;
// Slabs grow with what the pool holds: a short prompt takes little, a long one needs few allocations.
constexpr size_t kLeastSlab = 2U << 20, kLargestSlab = 64U << 20;
constexpr size_t kLargestBlock = 1U << 20;  // larger "blocks" are buffers
// Idle buffers beyond this go back to the system: prompts of many lengths would otherwise leave one set each.
constexpr size_t kMaxIdle = size_t{16} << 30;

size_t rounded_up(size_t bytes, size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

/// Eight sizes to an octave: at most an eighth is wasted, and requests that differ little share buffers.
size_t size_class(size_t bytes) {
  bytes = std::max(bytes, kAlignment);
  const int octave = std::bit_width(bytes - 1) - 1;
  return rounded_up(bytes, std::max<size_t>(kAlignment, size_t{1} << std::max(octave - 3, 0)));
}

}  // namespace

DeviceMemory::~DeviceMemory() {
  trim();
}

std::byte* DeviceMemory::allocate(size_t bytes) {
  void* data = nullptr;
  cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation && trim() > 0) {
    cudaGetLastError();  // the failed call leaves its error behind
    status = cudaMalloc(&data, bytes);
  }
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "asking for free memory");
    fail("out of GPU memory: {} MB more are needed, and {} of {} MB are free", (bytes >> 20) + 1, free >> 20,
         total >> 20);
  }
  check(status, "allocating memory");
  return static_cast<std::byte*>(data);
}

/// Gives everything idle back to the system. -> bytes
size_t DeviceMemory::trim() {
  stream_.at(When::in_turn);  // what waits to be launched may use what is idle by now
  size_t freed = 0;
  for (auto& [bytes, buffers] : idle_) {
    for (std::byte* buffer : buffers) cudaFree(buffer);
    freed += bytes * buffers.size();
    if (meter_ != nullptr) meter_->subtract(static_cast<int64_t>(bytes * buffers.size()));
  }
  idle_.clear();
  idle_bytes_ = 0;
  for (auto& [bytes, pool] : pools_) {
    const auto unused = [](const auto& slab) { return slab->free.size() == slab->n_blocks; };
    std::erase_if(pool.with_room, unused);
    for (const auto& slab : pool.slabs) {
      if (!unused(slab)) continue;
      cudaFree(slab->base);
      pool.held -= slab->bytes;
      freed += slab->bytes;
    }
    std::erase_if(pool.slabs, unused);
  }
  return freed;
}

std::shared_ptr<std::byte> DeviceMemory::lend(size_t bytes) {
  const std::lock_guard lock(mutex_);
  size_t size = size_class(bytes);
  const auto found = idle_.lower_bound(size);
  std::byte* data = nullptr;
  if (found != idle_.end() && found->first <= 2 * size) {
    size = found->first;
    data = found->second.back();
    found->second.pop_back();
    if (found->second.empty()) idle_.erase(found);
    idle_bytes_ -= size;
  } else {
    data = allocate(size);
    if (meter_ != nullptr) meter_->add(static_cast<int64_t>(size));
  }
  return {data, [this, size](std::byte* buffer) { take_back(buffer, size); }};
}

void DeviceMemory::take_back(std::byte* data, size_t bytes) {
  const std::lock_guard lock(mutex_);
  idle_[bytes].push_back(data);
  idle_bytes_ += bytes;
  if (idle_bytes_ > kMaxIdle) trim();
}

std::shared_ptr<std::byte> DeviceMemory::block(size_t bytes) {
  if (bytes > kLargestBlock) return lend(bytes);
  const std::lock_guard lock(mutex_);
  const size_t size = rounded_up(std::max<size_t>(bytes, 1), kAlignment);
  BlockPool& pool = pools_[size];
  pool.block_bytes = size;
  if (pool.with_room.empty()) add_slab(pool);
  Slab* slab = pool.with_room.back();
  const Home home{&pool, slab, slab->free.back()};
  slab->free.pop_back();
  if (slab->free.empty()) pool.with_room.pop_back();
  if (meter_ != nullptr) meter_->add(static_cast<int64_t>(size));
  return {slab->base + home.number * size, [this, home](std::byte*) { come_home(home); }};
}

void DeviceMemory::add_slab(BlockPool& pool) {
  const size_t wanted = std::clamp(pool.held / 8, kLeastSlab, kLargestSlab);
  auto slab = std::make_unique<Slab>();
  slab->n_blocks = static_cast<uint32_t>(wanted / pool.block_bytes);
  slab->bytes = slab->n_blocks * pool.block_bytes;
  slab->base = allocate(slab->bytes);
  pool.held += slab->bytes;
  // The first ones are handed out first: neighbours in the cache lie side by side.
  for (uint32_t i = slab->n_blocks; i > 0; --i) slab->free.push_back(i - 1);
  pool.with_room.push_back(slab.get());
  pool.slabs.push_back(std::move(slab));
}

void DeviceMemory::come_home(const Home& home) {
  const std::lock_guard lock(mutex_);
  if (meter_ != nullptr) meter_->subtract(static_cast<int64_t>(home.pool->block_bytes));
  if (home.slab->free.empty()) home.pool->with_room.push_back(home.slab);
  home.slab->free.push_back(home.number);
}

}  // namespace winnow::cuda
