// Memory that is needed soon, asked for while something else is computed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace winnow::cpu {
namespace {

/// Rows whose lines are asked for a few at a time, between the pieces of the products: many requests at once would fill
/// the queue of misses, and everything behind them would wait.
class Fetch {
 public:
  /// n_rows rows of `bytes` each, `stride` bytes apart, after those that were added before.
  void add(const void* rows, int64_t stride, int32_t n_rows, int64_t bytes) {
    if (rows == nullptr || n_rows <= 0) return;
    part_[n_parts_++] = {static_cast<const std::byte*>(rows), stride, bytes, n_rows};
    n_lines_ += n_rows * ((bytes + kLine - 1) / kLine);
  }

  /// All that was added is to be asked for in `n_times` calls of lines().
  void spread(int64_t n_times) { at_once_ = (n_lines_ + n_times - 1) / n_times; }

  void lines() {
    for (int64_t i = 0; i < at_once_ && at_ < n_parts_; ++i) {
      Part& part = part_[at_];
      __builtin_prefetch(part.row + offset_, 0, 2);
      offset_ += kLine;
      if (offset_ < part.bytes) continue;
      offset_ = 0;
      part.row += part.stride;
      if (--part.n_rows == 0) ++at_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  struct Part {
    const std::byte* row;
    int64_t stride;
    int64_t bytes;
    int32_t n_rows;
  };
  Part part_[2];
  int n_parts_ = 0;
  int at_ = 0;          // the part
  int64_t offset_ = 0;  // in its first row
  int64_t n_lines_ = 0;
  int64_t at_once_ = 0;
};

}  // namespace
}  // namespace winnow::cpu
