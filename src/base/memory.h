// Counted memory. Everything large that winnow owns (cache blocks, activations, unpacked weights) comes from here, so
// that the reported peak is the sum of what was really allocated.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace winnow {

/// Bytes held now and at the highest point since the last reset; safe to share between threads.
class MemoryMeter {
 public:
  void add(int64_t bytes);
  void subtract(int64_t bytes) { held_.fetch_sub(bytes); }
  int64_t held() const { return held_.load(); }
  int64_t peak() const { return peak_.load(); }
  /// Starts a new measurement: the peak becomes what is held now.
  void reset_peak() { peak_.store(held_.load()); }

 private:
  std::atomic<int64_t> held_{0};
  std::atomic<int64_t> peak_{0};
};

/// Host memory, 64-byte aligned and not initialised, given back (and uncounted) when it dies.
class Buffer {
 public:
  Buffer() = default;
  /// Throws Error, naming the size, where the system has not enough memory. `meter` may be null.
  Buffer(size_t bytes, MemoryMeter* meter);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer() { release(); }

  std::byte* data() const { return data_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }
  /// Grows to at least `bytes`; the contents are lost when it grows.
  void reserve(size_t bytes);

 private:
  void release();
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  MemoryMeter* meter_ = nullptr;
};

}  // namespace winnow
