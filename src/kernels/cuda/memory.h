// GPU memory: buffers that are used again, and cache blocks cut from slabs. One stream does all the work of a device,
// so memory that was given back may be handed out at once: what is launched later also runs later.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "base/memory.h"
#include "kernels/cuda/stream.h"

namespace winnow::cuda {

/// Must outlive what it lends. Buffers are counted as long as the pool holds them, cache blocks while they are lent.
class DeviceMemory {
 public:
  DeviceMemory(MemoryMeter* meter, Stream stream) : meter_(meter), stream_(stream) {}
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  /// At least `bytes`, 256-byte aligned, contents undefined. Throws Error where the GPU has not enough.
  std::shared_ptr<std::byte> lend(size_t bytes);
  /// The same for one of very many small pieces: a cache block.
  std::shared_ptr<std::byte> block(size_t bytes);

 private:
  struct Slab {
    std::byte* base = nullptr;
    size_t bytes = 0;
    uint32_t n_blocks = 0;
    std::vector<uint32_t> free;  // numbers of blocks
  };
  struct BlockPool {
    size_t block_bytes = 0;
    std::vector<std::unique_ptr<Slab>> slabs;
    std::vector<Slab*> with_room;
    size_t held = 0;  // bytes of all slabs
  };
  struct Home {  // of a block
    BlockPool* pool;
    Slab* slab;
    uint32_t number;
  };

  std::byte* allocate(size_t bytes);
  size_t trim();
  void take_back(std::byte* data, size_t bytes);
  void add_slab(BlockPool& pool);
  void come_home(const Home& home);

  MemoryMeter* meter_;
  Stream stream_;
  std::mutex mutex_;
  std::map<size_t, std::vector<std::byte*>> idle_;  // by size
  size_t idle_bytes_ = 0;
  std::map<size_t, BlockPool> pools_;  // by size of a block
};

}  // namespace winnow::cuda
