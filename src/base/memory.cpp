#include "base/memory.h"

#include <cstdlib>
#include <utility>

#include "base/error.h"

namespace winnow {
namespace {
constexpr size_t kAlignment = 64;  // a cache line, and the widest vector register
}

void MemoryMeter::add(int64_t bytes) {
  const int64_t held = held_.fetch_add(bytes) + bytes;
  int64_t peak = peak_.load();
  while (held > peak && !peak_.compare_exchange_weak(peak, held)) {
  }
}

Buffer::Buffer(size_t bytes, MemoryMeter* meter) : meter_(meter) {
  reserve(bytes);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)), meter_(other.meter_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    release();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    meter_ = other.meter_;
  }
  return *this;
}

void Buffer::reserve(size_t bytes) {
  if (bytes <= bytes_) return;
  release();
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (rounded >= bytes) data_ = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
  if (data_ == nullptr) fail("out of memory: {} MB more are needed than the system gives", bytes >> 20);
  bytes_ = rounded;
  if (meter_ != nullptr) meter_->add(static_cast<int64_t>(bytes_));
}

void Buffer::release() {
  if (data_ == nullptr) return;
  std::free(data_);
  if (meter_ != nullptr) meter_->subtract(static_cast<int64_t>(bytes_));
  data_ = nullptr;
  bytes_ = 0;
}

}  // namespace winnow
