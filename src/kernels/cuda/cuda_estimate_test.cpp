// Estimates by products on the GPU against the same verbs on the host, which ask the GPU for the parts.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "attention/problem.h"
#include "kernels/cuda/gpu_fixture.h"

namespace winnow {
namespace {

using CudaEstimates = test::GpuTest;

/// By Hopper's kernels and by the portable ones.
class CudaEstimatesByTiles : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (test::gpu(GetParam()).device == nullptr) GTEST_SKIP() << test::gpu(GetParam()).why_not;
  }
  static Device& device() { return *test::gpu(GetParam()).device; }
};

INSTANTIATE_TEST_SUITE_P(Kernels, CudaEstimatesByTiles, testing::Values("hopper", "portable"),
                         [](const auto& kernels) { return kernels.param; });

using Entries = std::vector<int32_t>;

/// Entries that one of two selections' lists alone has, as a share of the expected ones. ptr, entry: which lists.
double difference(const Selection& actual, const Selection& expected, Entries Selection::*ptr = &Selection::block_ptr,
                  Entries Selection::*entry = &Selection::block_begin) {
  EXPECT_EQ(actual.n_head, expected.n_head);
  EXPECT_EQ(actual.n_block_q, expected.n_block_q);
  EXPECT_EQ(actual.block_q, expected.block_q);
  EXPECT_EQ(actual.block_k, expected.block_k);
  if ((actual.*ptr).size() != (expected.*ptr).size()) return 1;
  Entries apart;
  size_t n_apart = 0;
  for (size_t list = 0; list + 1 < (expected.*ptr).size(); ++list) {
    const auto part = [&](const Selection& from) {
      const int32_t begin = (from.*ptr)[list], end = (from.*ptr)[list + 1];
      return std::span(from.*entry).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    };
    apart.clear();
    std::ranges::set_symmetric_difference(part(actual), part(expected), std::back_inserter(apart));
    n_apart += apart.size();
  }
  return static_cast<double>(n_apart) / static_cast<double>(std::max<size_t>((expected.*entry).size(), 1));
}

constexpr const char* kProblems[] = {"prefill rows=300 heads=4 kv=2 dim=64 type=bf16",
                                     "prefill rows=1000 heads=6 kv=2 dim=128 type=bf16 softcap=5",
                                     "prefill rows=700 slots=3000 heads=2 kv=1 dim=128 type=bf16",
                                     "prefill rows=65 slots=900 heads=2 kv=2 dim=96 type=bf16",
                                     "prefill rows=2500 slots=2500 heads=2 kv=1 dim=64 type=bf16",
                                     "prefill rows=1 slots=130 heads=2 kv=1 dim=64 type=bf16"};

struct OnGpu {
  OnGpu(Device& device, const std::string& text)
      : data(parse_problem(text)), problem(device, data), args(problem.args()) {}
  ProbeArgs rows() const { return {args.q, args.kv, args.limit, args.scale, args.softcap, 0}; }
  ProblemData data;
  ProblemOn problem;
  AttnArgs args;
};

/// One call of antidiagonal_scores against the host's.
void check_antidiagonals(Device& device, const AntidiagonalArgs& args) {
  std::vector<std::vector<float>> actual, expected;
  device.antidiagonal_scores(args, actual);
  device.Ops::antidiagonal_scores(args, expected);
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t head = 0; head < actual.size(); ++head) {
    ASSERT_EQ(actual[head].size(), expected[head].size());
    for (size_t i = 0; i < actual[head].size(); ++i) {
      ASSERT_NEAR(actual[head][i], expected[head][i], 1e-3 * args.block / args.stride) << head << " " << i;
    }
  }
}

TEST_P(CudaEstimatesByTiles, AntidiagonalScores) {
  for (const char* text : kProblems) {
    OnGpu on_gpu(device(), text);
    for (const int32_t stride : {1, 8, 16, 64}) {
      for (const int32_t block : {64, 128}) {
        SCOPED_TRACE(fmt::format("{} stride={} block={}", text, stride, block));
        check_antidiagonals(device(), {on_gpu.rows(), stride, block});
      }
    }
  }
}

/// A problem with few rows of any number, behind slots of any number.
std::string random_problem(std::mt19937& random) {
  const auto draw = [&random](int from, int to) { return std::uniform_int_distribution(from, to)(random); };
  const int rows = draw(1, 257), kv = draw(1, 3), dims[] = {64, 72, 128, 192, 256};
  constexpr const char* kTypes[] = {"f32", "f16", "bf16", "q8_0", "fp8"};
  const int dim = dims[draw(0, 4)];
  const char* type = kTypes[draw(0, dim % 32 == 0 ? 4 : 2)];
  return fmt::format("prefill rows={} slots={} heads={} kv={} dim={} type={} softcap={} holes={} seed={}", rows,
                     rows + draw(0, 1) * draw(0, 257), kv * draw(1, 4), kv, dim, type, draw(0, 3) == 0 ? 7 : 0,
                     draw(0, 3) == 0 ? 0.3 : 0.0, draw(1, 1000));
}

TEST_P(CudaEstimatesByTiles, AntidiagonalsOfRandomShapes) {
  std::mt19937 random(11);
  for (int i = 0; i < 60; ++i) {
    const std::string text = random_problem(random);
    OnGpu on_gpu(device(), text);
    const int32_t stride = 1 << i % 7, block = i % 2 == 0 ? 64 : 128;
    SCOPED_TRACE(fmt::format("{} stride={} block={}", text, stride, block));
    check_antidiagonals(device(), {on_gpu.rows(), stride, block});
  }
}

TEST_P(CudaEstimatesByTiles, BlocksByAntidiagonals) {
  for (const char* text : kProblems) {
    OnGpu on_gpu(device(), text);
    for (const double share : {0.0, 0.4, 0.9, 1.0}) {
      for (const int32_t block : {64, 128}) {
        SCOPED_TRACE(fmt::format("{} share={} block={}", text, share, block));
        const AntidiagonalArgs args{on_gpu.rows(), 16, block};
        const Selection made = device().select_antidiagonals(args, share);
        EXPECT_NE(made.on_device, nullptr);
        // Sums in another order may exchange blocks of nearly equal mass at the border.
        EXPECT_LE(difference(device().on_host(made), device().Ops::select_antidiagonals(args, share)), 0.01);
      }
    }
  }
}

/// One call of proxy_scores against the host's.
void check_proxies(Device& device, const ProxyArgs& args) {
  std::vector<std::vector<float>> actual, expected;
  device.proxy_scores(args, actual);
  device.Ops::proxy_scores(args, expected);
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t g = 0; g < actual.size(); ++g) {
    ASSERT_EQ(actual[g].size(), expected[g].size());
    for (size_t i = 0; i < actual[g].size(); ++i) {
      if (actual[g][i] == expected[g][i]) continue;          // nothing seen
      ASSERT_NEAR(actual[g][i], expected[g][i], 0.05) << i;  // means are rounded to bf16
    }
  }
}

TEST_P(CudaEstimatesByTiles, ProxyScores) {
  for (const char* text : kProblems) {
    OnGpu on_gpu(device(), text);
    const std::span<const int32_t> limit(on_gpu.args.limit, static_cast<size_t>(on_gpu.args.q.n_rows));
    for (const int32_t n_group : {1, static_cast<int32_t>(on_gpu.args.kv.heads.size())}) {
      for (const int32_t stride : {1, 4, 16}) {
        for (const int32_t block : {64, 128}) {
          SCOPED_TRACE(fmt::format("{} groups={} stride={} block={}", text, n_group, stride, block));
          check_proxies(device(), {on_gpu.args.q, on_gpu.args.kv, limit, on_gpu.args.scale, n_group, stride, block});
        }
      }
    }
  }
}

TEST_P(CudaEstimatesByTiles, ProxiesOfRandomShapes) {
  std::mt19937 random(12);
  for (int i = 0; i < 40; ++i) {
    const std::string text = random_problem(random);
    OnGpu on_gpu(device(), text);
    const std::span<const int32_t> limit(on_gpu.args.limit, static_cast<size_t>(on_gpu.args.q.n_rows));
    const auto n_group = static_cast<int32_t>(on_gpu.args.kv.heads.size());  // which may hold different slots
    const int32_t stride = 1 << i % 5, block = i % 2 == 0 ? 64 : 128;
    SCOPED_TRACE(fmt::format("{} stride={} block={}", text, stride, block));
    check_proxies(device(), {on_gpu.args.q, on_gpu.args.kv, limit, on_gpu.args.scale, n_group, stride, block});
  }
}

TEST_F(CudaEstimates, OutstandingBlocks) {
  for (const char* text : kProblems) {
    OnGpu on_gpu(device(), text);
    const std::span<const int32_t> limit(on_gpu.args.limit, static_cast<size_t>(on_gpu.args.q.n_rows));
    for (const double tau : {0.0, 0.004, 0.05}) {
      for (const int32_t step : {1, 8, 64}) {
        SCOPED_TRACE(fmt::format("{} tau={} step={}", text, tau, step));
        std::vector<double> taus(static_cast<size_t>(on_gpu.args.q.n_head), tau);
        taus.back() = 0.02;
        const OutstandingArgs args{.q = on_gpu.args.q,
                                   .kv = on_gpu.args.kv,
                                   .limit = limit,
                                   .scale = on_gpu.args.scale,
                                   .softcap = on_gpu.args.softcap,
                                   .sink_blocks = 1,
                                   .local_blocks = 2,
                                   .step = step,
                                   .tau = taus};
        const Selection made = device().select_outstanding(args);
        EXPECT_NE(made.on_device, nullptr);
        // The host's estimates are rounded to eight bits.
        EXPECT_LE(difference(device().on_host(made), device().Ops::select_outstanding(args)), 0.04);
      }
    }
  }
}

TEST_F(CudaEstimates, KeysByTreeSearch) {
  for (const char* text : kProblems) {
    OnGpu on_gpu(device(), text);
    const std::span<const int32_t> limit(on_gpu.args.limit, static_cast<size_t>(on_gpu.args.q.n_rows));
    for (const auto& [n_keys, key_block, query_stride, key_stride] :
         {std::array{64, 2, 2, 1}, std::array{512, 2, 2, 1}, std::array{100, 8, 1, 3}, std::array{7, 1, 64, 1}}) {
      SCOPED_TRACE(fmt::format("{} keys={} of {}", text, n_keys, key_block));
      const TreeArgs args{.q = on_gpu.args.q,
                          .kv = on_gpu.args.kv,
                          .limit = limit,
                          .scale = on_gpu.args.scale,
                          .n_keys = n_keys,
                          .key_block = key_block,
                          .query_stride = query_stride,
                          .key_stride = key_stride,
                          .window = 100,
                          .sinks = 5};
      const Selection made = device().select_tree(args);
      EXPECT_NE(made.on_device, nullptr);
      const Selection actual = device().on_host(made), expected = device().Ops::select_tree(args);
      EXPECT_EQ(actual.block_ptr, expected.block_ptr);
      EXPECT_EQ(actual.block_begin, expected.block_begin);
      EXPECT_LE(difference(actual, expected, &Selection::column_ptr, &Selection::column), 0.01);

      // A decoded row's search, whose window serves later rows, too.
      TreeArgs last = args;
      last.q = args.q.rows(args.q.n_rows - 1, 1);
      last.limit = limit.last(1);
      last.n_later = 70;
      const Selection row = device().on_host(device().select_tree(last)),
                      expected_row = device().Ops::select_tree(last);
      EXPECT_EQ(row.block_ptr, expected_row.block_ptr);
      EXPECT_EQ(row.block_begin, expected_row.block_begin);
      EXPECT_EQ(row.column_ptr, expected_row.column_ptr);
      EXPECT_LE(difference(row, expected_row, &Selection::column_ptr, &Selection::column), 0.1);
    }
  }
}

TEST_F(CudaEstimates, BudgetsOfChunks) {
  for (const char* text : kProblems) {
    OnGpu on_gpu(device(), text);
    const std::span<const int32_t> limit(on_gpu.args.limit, static_cast<size_t>(on_gpu.args.q.n_rows));
    for (const auto& [budget, block, chunk, sinks] : {std::array{512, 128, 64, 128}, std::array{300, 64, 40, 7},
                                                      std::array{256, 128, 64, 128}, std::array{1000, 64, 300, 0}}) {
      SCOPED_TRACE(fmt::format("{} budget={} chunk={}", text, budget, chunk));
      ChunkArgs args{.q = on_gpu.args.q,
                     .kv = on_gpu.args.kv,
                     .limit = limit,
                     .budget = budget,
                     .block = block,
                     .chunk = chunk,
                     .sinks = sinks,
                     .recent = 128};
      for (const bool together : {false, true}) {
        args.together = together;
        const Selection made = device().select_chunks(args);
        EXPECT_NE(made.on_device, nullptr);
        const Selection actual = device().on_host(made), expected = device().Ops::select_chunks(args);
        EXPECT_LE(difference(actual, expected), 0.01);
        EXPECT_LE(difference(actual, expected, &Selection::column_ptr, &Selection::column), 0.01);
      }
    }
  }
}

}  // namespace
}  // namespace winnow
