#include "base/threads.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "base/error.h"

namespace winnow {
namespace {

int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Decode calls the pool some hundred times a token with microseconds between; waking a sleeper costs tens of them.
// A worker therefore polls for about this many pauses (some 50 microseconds) before it sleeps.
constexpr int kSpins = 2000;

/// Items that are handed out in ascending order.
struct alignas(64) Share {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

}  // namespace

struct ThreadPool::State {
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> round{0};  // a new value starts a round
  std::atomic<int> n_sleeping{0};
  std::atomic<int> n_running{0};
  std::atomic<bool> stop{false};
  std::vector<Share> shares;  // [thread]
  size_t n_shares = 1;        // of this round
  const std::function<void(int64_t, int)>* work = nullptr;
  std::exception_ptr error;

  /// Shares the items between the first `n` of `shares`.
  void deal(int64_t n_items, size_t n) {
    n_shares = n;
    for (size_t i = 0; i < n; ++i) {
      const auto begin = n_items * static_cast<int64_t>(i) / static_cast<int64_t>(n);
      shares[i].next.store(begin);
      shares[i].end = n_items * static_cast<int64_t>(i + 1) / static_cast<int64_t>(n);
    }
  }

  /// Works through the thread's own share, then helps with the others.
  void drain(int thread) {
    try {
      for (size_t i = 0; i < n_shares; ++i) {
        Share& share = shares[(static_cast<size_t>(thread) + i) % n_shares];
        if (share.next.load() >= share.end) continue;  // many threads that end together only read
        for (int64_t item = share.next.fetch_add(1); item < share.end; item = share.next.fetch_add(1)) {
          (*work)(item, thread);
        }
      }
    } catch (...) {
      for (Share& share : shares) share.next.store(share.end);  // the others stop at their next item
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  }

  void await_round(uint64_t seen) {
    for (int spin = 0; spin < kSpins; ++spin) {
      if (round.load() != seen || stop.load()) return;
      pause_briefly();
    }
    std::unique_lock lock(mutex);
    n_sleeping.fetch_add(1);
    wake.wait(lock, [&] { return round.load() != seen || stop.load(); });
    n_sleeping.fetch_sub(1);
  }

  void serve(int thread) {
    uint64_t seen = 0;
    for (;;) {
      await_round(seen);
      if (stop.load()) return;
      seen = round.load();
      drain(thread);
      n_running.fetch_sub(1);
    }
  }
};

ThreadPool::ThreadPool(int n_threads) : state_(std::make_unique<State>()) {
  const int n = n_threads > 0 ? n_threads : usable_cores();
  state_->shares = std::vector<Share>(static_cast<size_t>(n));
  for (int thread = 1; thread < n; ++thread) {
    state_->workers.emplace_back([state = state_.get(), thread] { state->serve(thread); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop.store(true);
  }
  state_->wake.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::size() const {
  return static_cast<int>(state_->workers.size()) + 1;
}

void ThreadPool::parallel_for(int64_t n_items, const std::function<void(int64_t, int)>& work) {
  run(n_items, 1, work);
}

void ThreadPool::parallel_shares(int64_t n_items, const std::function<void(int64_t, int)>& work) {
  run(n_items, state_->shares.size(), work);
}

void ThreadPool::run(int64_t n_items, size_t n_shares, const std::function<void(int64_t, int)>& work) {
  State& s = *state_;
  if (n_items <= 0) return;
  if (s.workers.empty() || n_items == 1) {
    for (int64_t item = 0; item < n_items; ++item) work(item, 0);
    return;
  }
  WINNOW_ASSERT(s.n_running.load() == 0);
  s.work = &work;
  s.deal(n_items, n_shares);
  s.n_running.store(static_cast<int>(s.workers.size()));
  s.round.fetch_add(1);
  if (s.n_sleeping.load() > 0) {
    const std::lock_guard lock(s.mutex);  // a worker between its test and its sleep holds the mutex: wait for it
    s.wake.notify_all();
  }
  s.drain(0);
  while (s.n_running.load() > 0) pause_briefly();
  if (s.error) std::rethrow_exception(std::exchange(s.error, nullptr));
}

}  // namespace winnow
