// Blocks by a gate on the GPU against the same verb on ref.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "attention/problem.h"
#include "kernels/cuda/gpu_fixture.h"

namespace winnow {
namespace {

class CudaGates : public test::GpuTest {
 protected:
  static Device& ref() {
    static const std::unique_ptr<Device> made = make_device("ref", 2);
    return *made;
  }
};

struct Case {
  std::string text;
  int32_t last_slots = 0;  // of the last kv head; 0: all
};

/// A problem on both sides, whose queries ref reads as the GPU does.
struct BothSides {
  BothSides(Device& device, const Case& one)
      : data(parse_problem(one.text)), on_gpu(device, data), here(data.args()), there(on_gpu.args()) {
    q.assign(here.q.data, here.q.data + here.q.n_rows * here.q.stride);
    test::round_to_bf16(q);
    here.q.data = q.data();
    for (auto* side : {&here, &there}) {
      std::vector<KvHead>& of_side = heads.emplace_back(side->kv.heads.begin(), side->kv.heads.end());
      if (one.last_slots > 0) of_side.back().n_slots = one.last_slots;
    }
    here.kv.heads = heads.front();
    there.kv.heads = heads.back();
    for (size_t i = 0; i < static_cast<size_t>(here.q.head_dim) / 2; ++i) {
      frequency.push_back(std::pow(500000.0F, -2 * static_cast<float>(i) / static_cast<float>(here.q.head_dim)));
    }
    const auto n = static_cast<size_t>(here.q.n_head) * static_cast<size_t>(here.q.head_dim * here.q.head_dim) * 3;
    gate = test::random_values(n, 7, 2 / std::sqrt(static_cast<float>(here.q.head_dim)));
  }

  GateArgs args(const AttnArgs& side, int32_t n_rot, bool neox) const {
    return {.rows = {.q = side.q,
                     .limit = {data.args().limit, static_cast<size_t>(side.q.n_rows)},
                     .kv = side.kv,
                     .rope = {side.q.head_dim, n_rot, neox, 1.1F, frequency.data()},
                     .block = 64},
            .gate = gate};
  }

  ProblemData data;
  ProblemOn on_gpu;
  AttnArgs here, there;
  std::vector<float> q, frequency, gate;
  std::vector<std::vector<KvHead>> heads;
};

/// Blocks that one of two selections alone has, as a share of all.
double difference(const Selection& actual, const Selection& expected) {
  EXPECT_EQ(actual.n_head, expected.n_head);
  EXPECT_EQ(actual.n_block_q, expected.n_block_q);
  if (actual.block_ptr.size() != expected.block_ptr.size()) return 1;
  std::vector<int32_t> apart;
  for (int64_t list = 0; list + 1 < std::ssize(expected.block_ptr); ++list) {
    std::ranges::set_symmetric_difference(actual.blocks(list), expected.blocks(list), std::back_inserter(apart));
  }
  return static_cast<double>(apart.size()) / static_cast<double>(expected.block_begin.size());
}

TEST_F(CudaGates, EqualRef) {
  std::vector<Case> cases = {{"prefill rows=1000 heads=6 kv=2 dim=128 type=bf16"},
                             {"prefill rows=700 slots=3000 heads=4 kv=2 dim=96 type=bf16"},
                             {"prefill rows=300 slots=2000 heads=4 kv=2 dim=64 type=bf16 holes=0.3"},
                             {"prefill rows=300 slots=2000 heads=4 kv=2 dim=64 type=bf16", 1900}};
  for (const int n : {1, 2, 17, 63, 64, 65, 127, 128, 129, 191, 200, 255, 256, 257}) {
    cases.push_back({fmt::format("prefill rows={} heads=4 kv=2 dim=64 type=bf16", n)});
  }
  for (const Case& one : cases) {
    const BothSides problem(device(), one);
    const int32_t dim = problem.here.q.head_dim;
    for (const auto& [n_rot, neox] : {std::pair{dim, true}, {dim, false}, {dim / 2, true}, {0, true}}) {
      for (const auto& [threshold, ratio, last_dense] :
           {std::tuple{0.03, 1.0, true}, {0.1, 1.0, false}, {0.0, 0.3, false}, {0.0, 0.7, true}, {1.0, 1.0, false}}) {
        SCOPED_TRACE(fmt::format("{} last={} n_rot={} neox={} threshold={} ratio={}", one.text, one.last_slots, n_rot,
                                 neox, threshold, ratio));
        GateArgs here = problem.args(problem.here, n_rot, neox), there = problem.args(problem.there, n_rot, neox);
        here.threshold = there.threshold = threshold;
        here.ratio = there.ratio = ratio;
        here.last_dense = there.last_dense = last_dense;
        const Selection made = device().select_gated(there), expected = ref().select_gated(here);
        ASSERT_NE(made.on_device, nullptr);
        EXPECT_LE(difference(device().on_host(made), expected), 0.005);  // where scores are close
        EXPECT_NEAR(made.estimated_mass.value(), expected.estimated_mass.value(), 2e-3);
      }
    }
  }
}

TEST_F(CudaGates, EqualScoresTakeTheLowerBlocks) {
  BothSides problem(device(), {"prefill rows=2000 heads=2 kv=1 dim=64 type=bf16"});
  std::ranges::fill(problem.gate, 0.0F);
  GateArgs here = problem.args(problem.here, 64, true), there = problem.args(problem.there, 64, true);
  here.ratio = there.ratio = 0.4;
  EXPECT_EQ(difference(device().on_host(device().select_gated(there)), ref().select_gated(here)), 0);
}

}  // namespace
}  // namespace winnow
