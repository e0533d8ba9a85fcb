// Host buffers that are used again: a layer asks for the same sizes as the one before it, and fresh pages cost time.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "base/memory.h"

namespace winnow {

/// Must outlive what it lends. Buffers stay counted while they wait for their next use.
class ScratchPool {
 public:
  explicit ScratchPool(MemoryMeter* meter) : meter_(meter) {}

  /// At least `bytes`, 64-byte aligned, contents undefined; comes back when the last copy of the pointer dies.
  std::shared_ptr<std::byte> lend(size_t bytes);

 private:
  void take_back(Buffer buffer);

  MemoryMeter* meter_;
  std::mutex mutex_;
  std::vector<Buffer> idle_;  // oldest return first
  size_t idle_bytes_ = 0;
};

}  // namespace winnow
