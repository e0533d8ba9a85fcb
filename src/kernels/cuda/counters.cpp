#include "kernels/cuda/counters.h"

#include <algorithm>

#include "kernels/cuda/check.h"

namespace winnow::cuda {
namespace {

constexpr size_t kMostPairs = 1024;
constexpr size_t kPairBytes = 2 * sizeof(unsigned long long);

}  // namespace

Counters::Counters(CudaContext& context) : context_(context), memory_(context.memory.lend(kMostPairs * kPairBytes)) {
  check(cudaMemsetAsync(memory_.get(), 0, kMostPairs * kPairBytes, context_.stream), "clearing counters");
}

Counters::Pair Counters::of(AttnCounts* counts) {
  if (counts == nullptr) return {};
  auto found = std::find(pending_.begin(), pending_.end(), counts);
  if (found == pending_.end()) {
    if (pending_.size() == kMostPairs) fold();
    pending_.push_back(counts);
    found = pending_.end() - 1;
  }
  auto* pair = reinterpret_cast<unsigned long long*>(memory_.get()) + 2 * (found - pending_.begin());
  return {pair, pair + 1};
}

void Counters::fold() {
  if (pending_.empty()) return;
  std::vector<unsigned long long> values(2 * pending_.size());
  const size_t bytes = pending_.size() * kPairBytes;
  context_.transfers.download(values.data(), memory_.get(), bytes);
  check(cudaMemsetAsync(memory_.get(), 0, bytes, context_.stream), "clearing counters");
  for (size_t i = 0; i < pending_.size(); ++i) {
    pending_[i]->permitted += static_cast<int64_t>(values[2 * i]);
    pending_[i]->computed += static_cast<int64_t>(values[2 * i + 1]);
  }
  pending_.clear();
}

}  // namespace winnow::cuda
