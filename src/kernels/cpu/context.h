// What every CPU kernel gets handed: threads, counted memory, and the instruction sets that were chosen.
#pragma once

#include "base/memory.h"
#include "base/threads.h"
#include "kernels/cpu/cpu_features.h"

namespace winnow {

struct CpuContext {
  ThreadPool& pool;
  MemoryMeter& memory;
  CpuFeatures features;
  /// Where a call of attention unpacks K and V; kept, so that the next one finds its pages in place.
  Buffer unpacked{0, &memory};
};

}  // namespace winnow
