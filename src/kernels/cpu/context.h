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
};

}  // namespace winnow
