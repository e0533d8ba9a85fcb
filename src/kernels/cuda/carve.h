// Several arrays in one piece of memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace winnow::cuda {

/// Hands out parts of `memory` one behind the other; with null it only counts what they need.
class Carve {
 public:
  explicit Carve(std::byte* memory) : memory_(memory) {}

  template <typename T>
  void operator()(T*& part, int64_t n) {
    part = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + bytes_);
    bytes_ += (static_cast<size_t>(n) * sizeof(T) + kAligned - 1) / kAligned * kAligned;
  }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t kAligned = 256;
  std::byte* memory_;
  size_t bytes_ = 0;
};

}  // namespace winnow::cuda
