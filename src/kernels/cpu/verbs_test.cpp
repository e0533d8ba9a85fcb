// The CPU's verbs beside attention, against ref.
#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "attention/problem.h"
#include "kernels/cpu/attention.h"
#include "kernels/ref/attention.h"

namespace winnow::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Attended {
  std::vector<float> o, lse;
};

Attended attended_by_ref(AttnArgs args) {
  Attended result;
  result.o.resize(static_cast<size_t>(args.q.n_rows * args.o.stride));
  result.lse.resize(static_cast<size_t>(args.q.n_rows * args.q.n_head));
  args.o.data = result.o.data();
  args.lse = result.lse.data();
  ref::attend(args);
  return result;
}

class VerbsTest : public testing::Test {
 protected:
  static void expect_near(const std::vector<float>& actual, const std::vector<float>& expected, double tolerance) {
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) ASSERT_NEAR(actual[i], expected[i], tolerance) << "at " << i;
  }

  ThreadPool pool_{1};
  MemoryMeter memory_;
  CpuContext context_{pool_, memory_, machine_features()};
};

TEST_F(VerbsTest, ScoreWindow) {
  for (const char* text :
       {"prefill rows=64 slots=500 dim=64 heads=4 kv=2", "prefill rows=5 slots=99 dim=40 heads=2 kv=1",
        "prefill rows=9 slots=130 dim=64 window=30 softcap=3 bias=1 holes=0.3 type=q8_0",
        "prefill rows=9 slots=130 dim=72 window=30 holes=0.3 type=fp8"}) {
    const ProblemData data(parse_problem(text));
    const AttnArgs& args = data.args();
    const ProbeArgs probe{args.q, args.kv, args.limit, args.scale, args.softcap, args.window};
    std::vector<float> actual;
    std::vector<float> expected;
    cpu::score_window(context_, probe, 1, actual);
    ref::score_window(probe, 1, expected);
    SCOPED_TRACE(text);
    expect_near(actual, expected, 1e-5);
  }
}

TEST_F(VerbsTest, Pools) {
  for (const char* text : {"prefill rows=64 slots=500 dim=64", "prefill rows=200 dim=40 heads=2 kv=2 type=bf16",
                           "prefill rows=65 slots=200 dim=40 heads=2 kv=2 type=fp8"}) {
    const ProblemData data(parse_problem(text));
    const AttnArgs& args = data.args();
    std::vector<float> actual;
    std::vector<float> expected;
    for (const int32_t block : {16, 64, 128}) {
      cpu::pool_keys(context_, args.kv, 1, block, actual);
      ref::pool_keys(args.kv, 1, block, expected);
      expect_near(actual, expected, 1e-5);
      cpu::pool_queries(context_, args.q, 1, block, actual);
      ref::pool_queries(args.q, 1, block, expected);
      expect_near(actual, expected, 1e-5);
    }
  }
}

TEST_F(VerbsTest, GatherKeys) {
  const std::vector<int32_t> slots = {499, 0, 63, 64, 64, 130, 7};
  for (const char* text : {"prefill rows=64 slots=500 dim=64 heads=2 kv=2",
                           "prefill rows=64 slots=500 dim=96 type=q8_0", "prefill rows=64 slots=500 dim=72 type=fp8"}) {
    const ProblemData data(parse_problem(text));
    const KvView& kv = data.args().kv;
    std::vector<float> all;
    std::vector<float> actual;
    std::vector<float> expected;
    ref::pool_keys(kv, 0, 1, all);
    cpu::gather_keys(kv, 0, slots, actual);
    for (const int32_t slot : slots) {
      expected.insert(expected.end(), all.begin() + slot * kv.head_dim, all.begin() + (slot + 1) * kv.head_dim);
    }
    expect_near(actual, expected, 1e-6);
  }
}

TEST_F(VerbsTest, ScoreBlocks) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const int32_t dim : {40, 64}) {
    std::vector<float> a(static_cast<size_t>(7 * dim));
    std::vector<float> b(static_cast<size_t>(130 * dim));
    for (float& x : a) x = normal(random);
    for (float& x : b) x = normal(random);
    std::vector<float> actual;
    std::vector<float> expected;
    cpu::score_blocks(context_, a, b, dim, 0.5F, actual);
    ref::score_blocks(a, b, dim, 0.5F, expected);
    expect_near(actual, expected, 1e-4);
  }
}

TEST_F(VerbsTest, MergeEqualsRef) {
  const ProblemData a(parse_problem("prefill rows=20 slots=30 dim=16 heads=3 kv=1 seed=1"));
  const ProblemData b(parse_problem("prefill rows=20 slots=30 dim=16 heads=3 kv=1 seed=2"));
  Attended ra = attended_by_ref(a.args());
  Attended rb = attended_by_ref(b.args());
  ra.lse[3] = -kInfinity;
  rb.lse[4] = -kInfinity;
  ra.lse[5] = rb.lse[5] = -kInfinity;
  Attended expected = ra;
  const auto view = [&](Attended& r) { return HeadsView{r.o.data(), 20, 3, 16, 48}; };
  cpu::merge(context_, view(ra), ra.lse.data(), {view(rb), rb.lse.data()}, 0.7F);
  ref::merge(view(expected), expected.lse.data(), {view(rb), rb.lse.data()}, 0.7F);
  expect_near(ra.o, expected.o, 1e-5);
  for (size_t i = 0; i < ra.lse.size(); ++i) {
    if (expected.lse[i] == -kInfinity) {
      EXPECT_EQ(ra.lse[i], -kInfinity);
    } else {
      EXPECT_NEAR(ra.lse[i], expected.lse[i], 1e-5);
    }
  }
}

}  // namespace
}  // namespace winnow::cpu
