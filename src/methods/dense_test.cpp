#include <gtest/gtest.h>

#include "methods/roster.h"

namespace winnow {
namespace {

TEST(Dense, FillsNoPart) {
  const MethodInfo& info = find_method("dense");
  const Method method = info.make({}, {});
  EXPECT_EQ(method.selector, nullptr);
  EXPECT_EQ(method.compressor, nullptr);
  EXPECT_EQ(method.skip.prefill, 0);
  EXPECT_EQ(method.skip.decode, 0);
  EXPECT_TRUE(info.parts.empty());
}

}  // namespace
}  // namespace winnow
