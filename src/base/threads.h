// A pool of threads of a fixed size. The caller is thread 0 and works too; a pool of one runs everything in place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace winnow {

class ThreadPool {
 public:
  /// `n_threads` 0: one for each core this process may use.
  explicit ThreadPool(int n_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  /// Calls work(item, thread) for every item in [0, n_items), in any order, handing items out one by one as threads
  /// come free. `thread` lies in [0, size()). The first exception is rethrown here after all have stopped.
  /// Must not be called from inside `work`.
  void parallel_for(int64_t n_items, const std::function<void(int64_t item, int thread)>& work);
  /// The same, but each thread has a share of neighbouring items of its own and takes from the others' when that is
  /// done: for work that streams through memory.
  void parallel_shares(int64_t n_items, const std::function<void(int64_t item, int thread)>& work);

 private:
  struct State;
  void run(int64_t n_items, size_t n_shares, const std::function<void(int64_t, int)>& work);
  std::unique_ptr<State> state_;
};

}  // namespace winnow
