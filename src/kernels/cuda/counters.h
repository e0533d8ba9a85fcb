// What attention kernels count, on the GPU until the next sync.
#pragma once

#include <memory>
#include <vector>

#include "attention/types.h"
#include "kernels/cuda/context.h"

namespace winnow::cuda {

class Counters {
 public:
  explicit Counters(CudaContext& context);

  struct Pair {
    unsigned long long* permitted = nullptr;
    unsigned long long* computed = nullptr;
  };
  /// Counters on the GPU whose values `fold` adds to `counts`, which must live until then. Null: nothing is counted.
  Pair of(AttnCounts* counts);
  /// Waits for the GPU and adds what was counted.
  void fold();

 private:
  CudaContext& context_;
  std::shared_ptr<std::byte> memory_;
  std::vector<AttnCounts*> pending_;  // the owner of each pair
};

}  // namespace winnow::cuda
