// Verbs on the GPU against those of `ref`.
#include <gtest/gtest.h>

#include <array>
#include <limits>

#include "attention/problem.h"
#include "kernels/cuda/gpu_fixture.h"
#include "kernels/ref/attention.h"

namespace winnow {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class CudaVerbs : public test::GpuTest {
 protected:
  static void expect_near(const std::vector<float>& actual, const std::vector<float>& expected, double tolerance) {
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) ASSERT_NEAR(actual[i], expected[i], tolerance) << "at " << i;
  }
  /// data's queries rounded as the GPU's are.
  static std::vector<float> rounded_q(const ProblemData& data) {
    const HeadsView& q = data.args().q;
    std::vector<float> values(q.data, q.data + q.n_rows * q.stride);
    test::round_to_bf16(values);
    return values;
  }
};

TEST_F(CudaVerbs, ScoreWindow) {
  for (const char* text :
       {"prefill rows=64 slots=500 dim=64 heads=4 kv=2", "prefill rows=5 slots=99 dim=40 heads=2 kv=1",
        "prefill rows=9 slots=130 dim=64 window=30 softcap=3 bias=1 holes=0.3 type=q8_0",
        "prefill rows=9 slots=130 dim=72 window=30 holes=0.3 type=fp8",
        "prefill rows=100 slots=1000 dim=128 heads=2 kv=2 type=f32"}) {
    SCOPED_TRACE(text);
    const ProblemData data(parse_problem(text));
    ProblemOn on_gpu(device(), data);
    std::vector<float> q = rounded_q(data), actual, expected;
    AttnArgs args = data.args();
    args.q.data = q.data();
    const AttnArgs there = on_gpu.args();
    for (const int32_t head : {0, args.q.n_head - 1}) {
      device().score_window({there.q, there.kv, args.limit, args.scale, args.softcap, args.window}, head, actual);
      ref::score_window({args.q, args.kv, args.limit, args.scale, args.softcap, args.window}, head, expected);
      expect_near(actual, expected, 1e-5);
      std::vector<float> mass, sums(actual.size() / static_cast<size_t>(args.q.n_rows));
      for (size_t i = 0; i < actual.size(); ++i) sums[i % sums.size()] += actual[i];
      device().window_mass({there.q, there.kv, args.limit, args.scale, args.softcap, args.window}, head, mass);
      expect_near(mass, sums, 1e-5);
    }
  }
}

TEST_F(CudaVerbs, PoolsFromSeveralThreads) {
  for (const char* text :
       {"prefill rows=64 slots=500 dim=64 heads=2 kv=2", "prefill rows=200 dim=40 heads=2 kv=2 type=bf16",
        "prefill rows=65 slots=200 dim=40 heads=2 kv=2 type=fp8"}) {
    const ProblemData data(parse_problem(text));
    ProblemOn on_gpu(device(), data);
    std::vector<float> q = rounded_q(data);
    AttnArgs args = data.args();
    args.q.data = q.data();
    const AttnArgs there = on_gpu.args();
    for (const int32_t block : {16, 64, 128}) {
      std::array<std::vector<float>, 20> keys, queries;
      device().for_each(20, [&](int64_t i, int) {
        device().pool_keys(there.kv, static_cast<int32_t>(i % 2), block, keys[static_cast<size_t>(i)]);
        device().pool_queries(there.q, static_cast<int32_t>(i % 2), block, queries[static_cast<size_t>(i)]);
      });
      for (size_t i = 0; i < 20; ++i) {
        std::vector<float> expected;
        ref::pool_keys(args.kv, static_cast<int32_t>(i % 2), block, expected);
        expect_near(keys[i], expected, 1e-5);
        ref::pool_queries(args.q, static_cast<int32_t>(i % 2), block, expected);
        expect_near(queries[i], expected, 1e-5);
      }
    }
  }
}

TEST_F(CudaVerbs, ScoreBlocks) {
  for (const int32_t dim : {40, 64, 128}) {
    const auto a = test::random_values(static_cast<size_t>(7 * dim), 1);
    const auto b = test::random_values(static_cast<size_t>(130 * dim), 2);
    std::vector<float> actual, expected;
    device().score_blocks(a, b, dim, 0.5F, actual);
    ref::score_blocks(a, b, dim, 0.5F, expected);
    expect_near(actual, expected, 1e-4);
  }
}

TEST_F(CudaVerbs, MergeEqualsRef) {
  constexpr int64_t kRows = 20, kHeads = 3, kDim = 16;
  const auto size = static_cast<size_t>(kRows * kHeads * kDim);
  std::vector<float> o[2] = {test::random_values(size, 1), test::random_values(size, 2)};
  std::vector<float> lse[2] = {test::random_values(kRows * kHeads, 3), test::random_values(kRows * kHeads, 4)};
  lse[0][3] = lse[1][4] = lse[0][5] = lse[1][5] = -kInfinity;
  Scratch o_there[2], lse_there[2];
  for (int i = 0; i < 2; ++i) {
    o_there[i] = device().scratch(kRows, kHeads * kDim);
    lse_there[i] = device().scratch(1, kRows * kHeads);
    device().upload(o_there[i], o[i].data());
    device().upload(lse_there[i], lse[i].data());
  }
  device().merge(o_there[0]->heads(kDim), lse_there[0]->data, {o_there[1]->heads(kDim), lse_there[1]->data}, 0.7F);
  const auto view = [](std::vector<float>& values) {
    return HeadsView{values.data(), kRows, kHeads, kDim, kHeads * kDim};
  };
  ref::merge(view(o[0]), lse[0].data(), {view(o[1]), lse[1].data()}, 0.7F);
  std::vector<float> got(size);
  device().download(got.data(), o_there[0]);
  expect_near(got, o[0], 1e-5);
  got.resize(lse[0].size());
  device().download(got.data(), lse_there[0]);
  for (size_t i = 0; i < got.size(); ++i) {
    if (lse[0][i] == -kInfinity) {
      EXPECT_EQ(got[i], -kInfinity);
    } else {
      EXPECT_NEAR(got[i], lse[0][i], 1e-5);
    }
  }
}

}  // namespace
}  // namespace winnow
