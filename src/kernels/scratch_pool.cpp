#include "kernels/scratch_pool.h"

#include <utility>

namespace winnow {
namespace {

// A buffer serves a request of at least half its size; small ones are interchangeable.
constexpr size_t kSlack = 64U << 10;
// Idle memory beyond this goes back to the system: prompts of many different lengths would otherwise leave one set of
// buffers each.
constexpr size_t kMaxIdle = 256U << 20;

}  // namespace

std::shared_ptr<std::byte> ScratchPool::lend(size_t bytes) {
  Buffer chosen;
  {
    const std::lock_guard lock(mutex_);
    size_t best = idle_.size();
    for (size_t i = 0; i < idle_.size(); ++i) {
      const size_t size = idle_[i].bytes();
      const bool fits = size >= bytes && size <= 2 * bytes + kSlack;
      if (fits && (best == idle_.size() || size < idle_[best].bytes())) best = i;
    }
    if (best != idle_.size()) {
      chosen = std::move(idle_[best]);
      idle_.erase(idle_.begin() + static_cast<std::ptrdiff_t>(best));
      idle_bytes_ -= chosen.bytes();
    }
  }
  if (chosen.data() == nullptr) chosen = Buffer(bytes, meter_);
  std::byte* data = chosen.data();
  auto holder = std::make_shared<Buffer>(std::move(chosen));
  return {data, [this, holder](std::byte*) { take_back(std::move(*holder)); }};
}

void ScratchPool::take_back(Buffer buffer) {
  const std::lock_guard lock(mutex_);
  idle_bytes_ += buffer.bytes();
  idle_.push_back(std::move(buffer));
  while (idle_bytes_ > kMaxIdle) {
    idle_bytes_ -= idle_.front().bytes();
    idle_.erase(idle_.begin());
  }
}

}  // namespace winnow
