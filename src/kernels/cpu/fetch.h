// Memory that is needed soon, asked for while something else is computed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace winnow::cpu {
namespace {

/// Rows of memory, `stride` bytes apart: the first n, or those that `index` names, of which `per_row` neighbours share
/// a row.
struct FetchRows {
  const void* rows = nullptr;
  int64_t stride = 0;
  int64_t bytes = 0;  // of each row
  int32_t n = 0;
  const int32_t* index = nullptr;
  int32_t per_row = 1;
};

/// A queue of rows whose lines are asked for a few at a time, between the pieces of the products: many requests at once
/// would fill the processor's queue of misses, and everything behind them would wait.
class Fetch {
 public:
  /// What finds no room in the queue is left out.
  void add(const FetchRows& rows) {
    if (rows.rows == nullptr || rows.n <= 0 || n_ == kMost) return;
    queue_[n_++] = rows;
    n_lines_ += rows.n * ((rows.bytes + kLine - 1) / kLine);
  }

  /// All that was added is to be asked for in the next n_times calls of lines().
  void spread(int64_t n_times) { at_once_ = (n_lines_ + n_times - 1) / n_times; }

  void lines() {
    for (int64_t left = at_once_; left > 0 && at_ < n_;) {
      const FetchRows& rows = queue_[at_];
      const int64_t row = rows.index == nullptr ? row_ : rows.index[row_] / rows.per_row;
      const auto* from = static_cast<const std::byte*>(rows.rows) + row * rows.stride;
      const int64_t end = rows.bytes - offset_ < left * kLine ? rows.bytes : offset_ + left * kLine;
      left -= (end - offset_ + kLine - 1) / kLine;
      for (; offset_ < end; offset_ += kLine) __builtin_prefetch(from + offset_, 0, 2);
      if (end < rows.bytes) continue;
      offset_ = 0;
      if (++row_ < rows.n) continue;
      row_ = 0;
      ++at_;
    }
  }

  /// Gives up what is waiting.
  void clear() {
    n_ = at_ = row_ = 0;
    offset_ = n_lines_ = at_once_ = 0;
  }

 private:
  static constexpr int64_t kLine = 64;
  static constexpr int kMost = 4;
  FetchRows queue_[kMost];
  int n_ = 0;
  int at_ = 0;          // entry of the queue
  int32_t row_ = 0;     // of it
  int64_t offset_ = 0;  // in that row
  int64_t n_lines_ = 0;
  int64_t at_once_ = 0;
};

/// What a query tile fetches: the keys of its next tile, and at its end what follows it.
struct Fetches {
  Fetch keys, rows;

  void lines() {
    keys.lines();
    rows.lines();
  }
};

}  // namespace
}  // namespace winnow::cpu
