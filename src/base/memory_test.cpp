// Every byte that a Buffer holds is counted, once, for as long as it is held.
#include "base/memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <utility>

#include "base/error.h"
#include "base/threads.h"

namespace winnow {
namespace {

TEST(Buffer, IsAlignedAndCounted) {
  MemoryMeter meter;
  {
    const Buffer buffer(100, &meter);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0U);
    EXPECT_GE(buffer.bytes(), 100U);
    EXPECT_EQ(meter.held(), static_cast<int64_t>(buffer.bytes()));
    std::memset(buffer.data(), 1, buffer.bytes());  // all of it is ours
  }
  EXPECT_EQ(meter.held(), 0);
  EXPECT_GE(meter.peak(), 100);
}

TEST(Buffer, EmptyHoldsNothing) {
  MemoryMeter meter;
  const Buffer none(0, &meter);
  EXPECT_EQ(none.bytes(), 0U);
  EXPECT_EQ(meter.peak(), 0);
}

TEST(Buffer, GrowsButNeverShrinks) {
  MemoryMeter meter;
  Buffer buffer(64, &meter);
  buffer.reserve(4096);
  EXPECT_EQ(meter.held(), 4096);
  buffer.reserve(64);
  EXPECT_EQ(buffer.bytes(), 4096U);
  EXPECT_EQ(meter.held(), 4096);
  EXPECT_EQ(meter.peak(), 4096);  // the old memory went before the new came
}

TEST(Buffer, MovingMovesTheCountToo) {
  MemoryMeter meter;
  Buffer first(64, &meter);
  Buffer second(std::move(first));
  EXPECT_EQ(meter.held(), 64);
  Buffer third(128, &meter);
  third = std::move(second);
  EXPECT_EQ(meter.held(), 64);
  EXPECT_EQ(third.bytes(), 64U);
}

TEST(Buffer, MayBeUncounted) {
  Buffer buffer(10, nullptr);
  buffer.reserve(1000);
  EXPECT_GE(buffer.bytes(), 1000U);
}

TEST(Buffer, TooMuchIsRefusedInWordsAndLeavesNothingHeld) {
  MemoryMeter meter;
  Buffer buffer(64, &meter);
  for (const size_t bytes : {size_t{1} << 60, std::numeric_limits<size_t>::max()}) {
    EXPECT_THAT([&] { buffer.reserve(bytes); }, testing::ThrowsMessage<Error>(testing::HasSubstr("out of memory")));
    EXPECT_EQ(meter.held(), 0);
    EXPECT_EQ(buffer.data(), nullptr);
  }
}

TEST(MemoryMeter, ThePeakIsTheHighestPointSinceTheReset) {
  MemoryMeter meter;
  meter.add(100);
  meter.subtract(60);
  EXPECT_EQ(meter.peak(), 100);
  meter.reset_peak();
  EXPECT_EQ(meter.peak(), 40);
  meter.add(10);
  EXPECT_EQ(meter.peak(), 50);
}

TEST(MemoryMeter, CountsFromManyThreads) {
  MemoryMeter meter;
  ThreadPool pool(4);
  pool.parallel_for(1000, [&](int64_t, int) {
    meter.add(64);
    meter.subtract(64);
  });
  EXPECT_EQ(meter.held(), 0);
  EXPECT_GE(meter.peak(), 64);
  EXPECT_LE(meter.peak(), 4 * 64);
}

}  // namespace
}  // namespace winnow
