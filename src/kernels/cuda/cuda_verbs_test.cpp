// Verbs on the GPU against those of `ref`.
#include <fmt/format.h>
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
    }
  }
}

/// A problem on both sides, the last kv head with only `last_slots` of its slots (0: all).
struct BothSides {
  BothSides(Device& device, const std::string& text, int32_t last_slots = 0)
      : data(parse_problem(text)), on_gpu(device, data), here(data.args()), there(on_gpu.args()) {
    const auto shortened = [last_slots](AttnArgs& args, std::vector<KvHead>& heads) {
      heads.assign(args.kv.heads.begin(), args.kv.heads.end());
      if (last_slots > 0) heads.back().n_slots = last_slots;
      args.kv.heads = heads;
    };
    shortened(here, heads_here);
    shortened(there, heads_there);
  }
  ProblemData data;
  ProblemOn on_gpu;
  AttnArgs here, there;
  std::vector<KvHead> heads_here, heads_there;
};

class CudaWindowMass : public CudaVerbs {
 protected:
  /// Every `step`-th row is a probe. The GPU rounds keys to bf16: `tolerance` is a share of the mass, and what rows
  /// without a slot to see would get is 0.
  static void expect_mass(const BothSides& problem, int64_t step, double tolerance) {
    std::vector<float> q = rounded_q(problem.data);
    const auto probe_of = [&](const AttnArgs& args, const std::vector<int32_t>& limit) {
      ProbeArgs probe{args.q, args.kv, limit.data(), args.scale, args.softcap, args.window};
      probe.q.n_rows = std::ssize(limit);
      probe.q.stride *= step;
      return probe;
    };
    std::vector<int32_t> limit;
    for (int64_t row = 0; row < problem.here.q.n_rows; row += step) limit.push_back(problem.here.limit[row]);
    std::vector<std::vector<float>> mass = {{1, 2, 3}};  // stale values must not survive
    device().window_mass(probe_of(problem.there, limit), mass);
    ProbeArgs here = probe_of(problem.here, limit);
    here.q.data = q.data();
    ASSERT_EQ(mass.size(), static_cast<size_t>(here.q.n_head));
    for (int32_t head = 0; head < here.q.n_head; ++head) {
      const std::vector<float>& actual = mass[static_cast<size_t>(head)];
      std::vector<float> probabilities;
      ref::score_window(here, head, probabilities);
      ASSERT_EQ(actual.size() * limit.size(), probabilities.size());
      for (size_t slot = 0; slot < actual.size(); ++slot) {
        double expected = 0;
        for (size_t i = slot; i < probabilities.size(); i += actual.size()) expected += double{probabilities[i]};
        ASSERT_NEAR(actual[slot], expected, tolerance * expected + 1e-7) << "head " << head << " slot " << slot;
      }
    }
  }
  static constexpr double kTight = 1e-3, kRounded = 3e-2;
};

TEST_F(CudaWindowMass, EqualsRef) {
  for (const auto& [text, tolerance] : {
           std::pair{"prefill rows=64 slots=500 dim=64 heads=4 kv=2 type=bf16", kTight},
           std::pair{"prefill rows=200 slots=2500 dim=128 heads=8 kv=2 type=bf16", kTight},
           std::pair{"prefill rows=32 slots=3000 dim=128 heads=4 kv=1 type=bf16 window=700", kTight},
           std::pair{"prefill rows=128 slots=128 dim=96 heads=3 kv=3 type=bf16 softcap=2", kTight},
           std::pair{"prefill rows=70 slots=900 dim=256 heads=2 kv=1 type=bf16 bias=1 holes=0.4", kTight},
           std::pair{"prefill rows=65 slots=1100 dim=64 heads=2 kv=1 type=bf16 window=9 softcap=3 bias=1 holes=0.3",
                     kTight},
           std::pair{"prefill rows=5 slots=99 dim=40 heads=2 kv=1", kRounded},
           std::pair{"prefill rows=9 slots=130 dim=64 window=30 softcap=3 bias=1 holes=0.3 type=q8_0", kRounded},
           std::pair{"prefill rows=100 slots=1000 dim=128 heads=2 kv=2 type=f32", kRounded},
       }) {
    SCOPED_TRACE(text);
    const BothSides problem(device(), text);
    expect_mass(problem, 1, tolerance);
    expect_mass(problem, 3, tolerance);
  }
}

TEST_F(CudaWindowMass, OfHeadsWithDifferentSlots) {
  for (const int32_t last_slots : {1, 64, 500, 1030}) {
    SCOPED_TRACE(last_slots);
    expect_mass({device(), "prefill rows=70 slots=1100 dim=64 heads=4 kv=2 type=bf16", last_slots}, 1, kTight);
  }
}

TEST_F(CudaWindowMass, OfAnyLength) {
  for (const int32_t slots : {1, 2, 31, 63, 64, 65, 127, 128, 129, 200, 255, 256, 257}) {
    for (const int32_t rows : {1, 2, 17, 64, 65, 129}) {
      if (rows > slots) continue;
      const std::string text = fmt::format("prefill rows={} slots={} dim=64 heads=2 kv=1 type=bf16", rows, slots);
      SCOPED_TRACE(text);
      expect_mass({device(), text}, 1, kTight);
    }
  }
}

TEST_F(CudaWindowMass, OfMoreSlotsThanAPieceOfTheDownload) {
  // 2 heads of 600,000 slots: 4.8 MB.
  expect_mass({device(), "prefill rows=1 slots=600000 dim=8 heads=2 kv=1 type=bf16"}, 1, kTight);
}

TEST_F(CudaWindowMass, BegunBeforeOtherWorkIsTheSame) {
  const BothSides problem(device(), "prefill rows=64 slots=40000 dim=128 heads=8 kv=2 type=bf16");
  const ProbeArgs probe = {problem.there.q, problem.there.kv, problem.here.limit, problem.there.scale};
  std::vector<std::vector<float>> want, late, later;
  device().window_mass(probe, want);
  const std::unique_ptr<PendingMass> first = device().begin_window_mass(probe),
                                     second = device().begin_window_mass(probe);
  const std::unique_ptr<PendingMass> dropped = device().begin_window_mass(probe);
  Scratch x = device().scratch(64, 1024);
  device().upload(x, test::random_values(size_t{64} * 1024, 1).data());
  for (int i = 0; i < 200; ++i) device().add(x, x);
  second->get(later);
  first->get(late);
  EXPECT_EQ(late, want);
  EXPECT_EQ(later, want);
}

TEST_F(CudaWindowMass, OfNoRows) {
  const BothSides problem(device(), "prefill rows=3 slots=70 dim=64 heads=2 kv=1");
  std::vector<std::vector<float>> mass = {{1, 2, 3}};
  device().window_mass({problem.there.q.rows(0, 0), problem.there.kv, problem.here.limit}, mass);
  EXPECT_EQ(mass, std::vector<std::vector<float>>(2, std::vector<float>(70)));
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
