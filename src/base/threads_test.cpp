// The pool: every item once, errors to the caller, usable again after either; meant to be run under the thread
// sanitizer.
#include "base/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

namespace winnow {
namespace {

TEST(ThreadPool, HasTheSizeAskedForAndAtLeastOne) {
  EXPECT_EQ(ThreadPool(3).size(), 3);
  EXPECT_EQ(ThreadPool(1).size(), 1);
  EXPECT_GE(ThreadPool().size(), 1);
}

TEST(ThreadPool, EveryItemIsWorkedOnOnce) {
  for (const int n_threads : {1, 2, 3, 8}) {
    ThreadPool pool(n_threads);
    for (const int64_t n_items : {0, 1, 2, 7, 1000}) {
      std::vector<int> count(static_cast<size_t>(n_items));  // plain: two visits of one item would be a data race
      pool.parallel_for(n_items, [&](int64_t item, int) { ++count[static_cast<size_t>(item)]; });
      EXPECT_EQ(count, std::vector<int>(static_cast<size_t>(n_items), 1)) << n_threads << " threads";
      pool.parallel_shares(n_items, [&](int64_t item, int) { ++count[static_cast<size_t>(item)]; });
      EXPECT_EQ(count, std::vector<int>(static_cast<size_t>(n_items), 2)) << n_threads << " threads, in shares";
    }
  }
}

TEST(ThreadPool, NoTwoThreadsShareANumber) {
  ThreadPool pool(4);
  std::vector<int64_t> sums(4);  // plain: sharing a slot would be a data race
  for (int round = 0; round < 50; ++round) {
    pool.parallel_for(100, [&](int64_t item, int thread) { sums.at(static_cast<size_t>(thread)) += item; });
  }
  EXPECT_EQ(sums[0] + sums[1] + sums[2] + sums[3], 50 * 4950);
}

TEST(ThreadPool, TheCallerWorksTooAndAPoolOfOneRunsInPlace) {
  ThreadPool pool(1);
  std::set<std::thread::id> ids;
  pool.parallel_for(10, [&](int64_t, int thread) {
    EXPECT_EQ(thread, 0);
    ids.insert(std::this_thread::get_id());
  });
  EXPECT_EQ(ids, std::set<std::thread::id>{std::this_thread::get_id()});
}

TEST(ThreadPool, WorkIsSharedOut) {
  ThreadPool pool(2);
  std::atomic<int> together{0};
  bool met = false;  // written by thread 0 only
  pool.parallel_for(2, [&](int64_t, int thread) {
    together.fetch_add(1);
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (together.load() < 2 && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
    if (thread == 0) met = together.load() == 2;
  });
  EXPECT_TRUE(met) << "the second item waited for the first to end";
}

TEST(ThreadPool, WhoEndsItsShareHelpsTheOthers) {
  ThreadPool pool(2);
  std::atomic<int> others{0};
  bool met = false;  // written by the thread of item 0 only
  pool.parallel_shares(10, [&](int64_t item, int) {
    if (item > 0) {
      others.fetch_add(1);
      return;
    }
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (others.load() < 9 && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
    met = others.load() == 9;
  });
  EXPECT_TRUE(met) << "items 1 to 4 waited for item 0, which their thread was busy with";
}

TEST(ThreadPool, ResultsAreVisibleToTheCallerAndToTheNextRound) {
  ThreadPool pool(4);
  std::vector<int> values(64);
  for (int round = 0; round < 200; ++round) {
    pool.parallel_for(64, [&](int64_t item, int) { values[static_cast<size_t>(item)] += 1; });
    for (const int value : values) ASSERT_EQ(value, round + 1);
  }
}

TEST(ThreadPool, WorkersThatFellAsleepWakeUp) {
  ThreadPool pool(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // far beyond the time that a worker polls
    std::atomic<int64_t> sum{0};
    pool.parallel_for(100, [&](int64_t item, int) { sum.fetch_add(item); });
    EXPECT_EQ(sum.load(), 4950);
  }
}

TEST(ThreadPool, AnErrorReachesTheCallerAndThePoolGoesOn) {
  for (const int n_threads : {1, 4}) {
    ThreadPool pool(n_threads);
    for (int round = 0; round < 20; ++round) {
      std::atomic<int> n_done{0};
      const auto work = [&](int64_t item, int) {
        if (item == 3) throw std::runtime_error("three");
        n_done.fetch_add(1);
      };
      EXPECT_THROW(pool.parallel_for(100000, work), std::runtime_error);
      EXPECT_LT(n_done.load(), 100000) << "an error does not stop the others";
    }
    std::atomic<int> n_done{0};
    pool.parallel_for(10, [&](int64_t, int) { n_done.fetch_add(1); });
    EXPECT_EQ(n_done.load(), 10);
  }
}

TEST(ThreadPool, ErrorsInEveryThreadAreOneError) {
  ThreadPool pool(4);
  EXPECT_THROW(pool.parallel_for(64, [](int64_t, int) { throw std::runtime_error("each"); }), std::runtime_error);
  EXPECT_NO_THROW(pool.parallel_for(64, [](int64_t, int) {}));
}

TEST(ThreadPool, DyingWithoutWorkAndRightAfterWork) {
  for (int i = 0; i < 50; ++i) ThreadPool(3);
  for (int i = 0; i < 50; ++i) ThreadPool(3).parallel_for(3, [](int64_t, int) {});
}

TEST(ThreadPool, TwoPoolsDoNotMeet) {
  ThreadPool first(2);
  std::atomic<int64_t> sum{0};
  std::thread other([&] {
    ThreadPool second(2);
    for (int i = 0; i < 100; ++i) second.parallel_for(10, [&](int64_t item, int) { sum.fetch_add(item); });
  });
  for (int i = 0; i < 100; ++i) first.parallel_for(10, [&](int64_t item, int) { sum.fetch_add(item); });
  other.join();
  EXPECT_EQ(sum.load(), 2 * 100 * 45);
}

}  // namespace
}  // namespace winnow
