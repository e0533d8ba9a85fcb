// Estimates by antidiagonals and by averaged heads against the plain formulas, for each set of features that this
// machine has.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "attention/lists.h"
#include "attention/problem.h"
#include "kernels/cpu/attend_kernel.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/ref/attention.h"

namespace winnow::cpu {
namespace {

using Scores = std::vector<std::vector<float>>;

/// What a processor may lack, from the best to none.
std::vector<CpuFeatures> feature_sets() {
  std::vector<CpuFeatures> sets;
  const auto with = [&](const auto& change) {
    CpuFeatures features = machine_features();
    change(features);
    const bool known = std::any_of(sets.begin(), sets.end(), [&](const CpuFeatures& other) {
      return attend_kernels(other).front() == attend_kernels(features).front();
    });
    if (!known) sets.push_back(features);
  };
  with([](CpuFeatures&) {});
  with([](CpuFeatures& f) { f.amx_bf16 = false; });
  with([](CpuFeatures& f) { f.amx_bf16 = f.avx512_bf16 = false; });
  with([](CpuFeatures& f) { f.amx_bf16 = f.avx512_bf16 = f.avx512 = f.avx512_vnni = false; });
  with([](CpuFeatures& f) { f = CpuFeatures{}; });
  return sets;
}

/// Softmax over the mean logits that a group of rows has with the `n_seen` groups of slots.
std::vector<double> softmax_of_group(const AntidiagonalArgs& args, int32_t head, int64_t group, int32_t n_seen,
                                     const std::vector<float>& keys) {
  const HeadsView& q = args.rows.q;
  const auto n_slots = std::ssize(keys) / q.head_dim;
  std::vector<double> p;
  for (int32_t c = 0; c < n_seen; ++c) {
    double sum = 0;
    for (int32_t i = 0; i < args.stride; ++i) {
      const int64_t row = group * args.stride + i, slot = int64_t{c} * args.stride + args.stride - 1 - i;
      if (row >= q.n_rows || slot >= n_slots) continue;
      for (int32_t d = 0; d < q.head_dim; ++d) {
        sum += double{q.at(row, head)[d]} * double{keys[static_cast<size_t>(slot * q.head_dim + d)]};
      }
    }
    const double logit = sum / args.stride * double{args.rows.scale}, cap = args.rows.softcap;
    p.push_back(std::exp(cap > 0 ? cap * std::tanh(logit / cap) : logit));
  }
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= total;
  return p;
}

/// antidiagonal_scores of attention/ops.h in double.
Scores plain_scores(const AntidiagonalArgs& args) {
  const HeadsView& q = args.rows.q;
  const auto n_kv = static_cast<int32_t>(args.rows.kv.heads.size());
  Scores scores(static_cast<size_t>(q.n_head));
  for (int32_t head = 0; head < q.n_head; ++head) {
    const int32_t kv_head = head / (q.n_head / n_kv);
    const KvHead& kv = args.rows.kv.heads[static_cast<size_t>(kv_head)];
    std::vector<float> keys;
    ref::pool_keys(args.rows.kv, kv_head, 1, keys);
    const int32_t n_block = ceil_div(visible_slots(kv, args.rows.limit[q.n_rows - 1]), args.block);
    std::vector<double> sums(static_cast<size_t>(ceil_div(q.n_rows, args.block) * n_block));
    for (int64_t group = 0; group * args.stride < q.n_rows; ++group) {
      const int64_t last = std::min((group + 1) * args.stride, q.n_rows) - 1;
      const int32_t n_seen = ceil_div(visible_slots(kv, args.rows.limit[last]), args.stride);
      const std::vector<double> p = softmax_of_group(args, head, group, n_seen, keys);
      double* row = sums.data() + group * args.stride / args.block * n_block;
      for (size_t c = 0; c < p.size(); ++c)
        row[c * static_cast<size_t>(args.stride) / static_cast<size_t>(args.block)] += p[c];
    }
    scores[static_cast<size_t>(head)].assign(sums.begin(), sums.end());
  }
  return scores;
}

Scores scores_on(const CpuFeatures& features, const AntidiagonalArgs& args, int n_threads = 1) {
  CpuDevice device(n_threads, features);
  Scores scores;
  device.antidiagonal_scores(args, scores);
  EXPECT_EQ(device.memory().held(), 0);
  return scores;
}

AntidiagonalArgs args_of(const ProblemData& data, int32_t stride, int32_t block) {
  const AttnArgs& args = data.args();
  return {{args.q, args.kv, args.limit, args.scale, args.softcap, 0}, stride, block};
}

constexpr const char* kProblems[] = {
    "prefill rows=420 heads=4 kv=2 dim=64",
    "prefill rows=530 heads=2 kv=1 dim=128 type=bf16 softcap=5",
    "prefill rows=150 slots=700 heads=2 kv=2 dim=96 type=q8_0",
    "prefill rows=150 slots=300 heads=2 kv=1 dim=64 type=fp8",
    "prefill rows=1 slots=130 heads=2 kv=1 dim=64",
    "prefill rows=65 slots=500 heads=3 kv=1 dim=80 holes=0.3",
    "prefill rows=200 heads=2 kv=1 dim=40",  // which not every kernel can make groups of
};

TEST(CpuAntidiagonals, AreThoseOfThePlainFormulas) {
  for (const char* text : kProblems) {
    const ProblemData data(parse_problem(text));
    for (const auto& [stride, block] : {std::pair{16, 128}, {8, 64}, {1, 64}, {1, 128}, {64, 64}, {4, 128}}) {
      const AntidiagonalArgs args = args_of(data, stride, block);
      const Scores expected = plain_scores(args);
      for (const CpuFeatures& features : feature_sets()) {
        const AttendKernel& kernel = *attend_kernels(features).front();
        SCOPED_TRACE(fmt::format("{} stride={} block={} {}", text, stride, block, kernel.name));
        const Scores actual = scores_on(features, args, 2);
        ASSERT_EQ(actual.size(), expected.size());
        const double tolerance = (kernel.product == Type::bf16 ? 1e-3 : 1e-5) * block / stride;
        for (size_t head = 0; head < expected.size(); ++head) {
          ASSERT_EQ(actual[head].size(), expected[head].size());
          for (size_t i = 0; i < expected[head].size(); ++i) {
            ASSERT_NEAR(actual[head][i], expected[head][i], tolerance) << "head " << head << " at " << i;
          }
        }
      }
    }
  }
}

// Logits of some thousands: nothing overflows, and a row of blocks still sums to its groups.
TEST(CpuAntidiagonals, LargeLogitsStayFinite) {
  const ProblemData data(parse_problem("prefill rows=640 heads=2 kv=1 dim=64"));
  AntidiagonalArgs args = args_of(data, 16, 64);
  args.rows.scale = 3000;
  for (const std::vector<float>& scores : scores_on(machine_features(), args)) {
    for (size_t row = 0; row < scores.size(); row += 10) {
      EXPECT_NEAR(std::accumulate(scores.begin() + static_cast<int64_t>(row),
                                  scores.begin() + static_cast<int64_t>(row) + 10, 0.0),
                  4, 1e-4);
    }
  }
}

TEST(CpuAntidiagonals, ThreadsAndChunksOfWholeBlocksChangeNothing) {
  const ProblemData data(parse_problem("prefill rows=2000 heads=6 kv=2 dim=64"));
  for (const int32_t stride : {1, 16}) {
    const AntidiagonalArgs args = args_of(data, stride, 128);
    const Scores whole = scores_on(machine_features(), args);
    EXPECT_EQ(scores_on(machine_features(), args, 3), whole);
    AntidiagonalArgs chunk = args;
    chunk.rows.q = args.rows.q.rows(640, 512);
    chunk.rows.limit = args.rows.limit + 640;
    const Scores part = scores_on(machine_features(), chunk);
    for (size_t head = 0; head < part.size(); ++head) {
      for (size_t row = 0; row < 4; ++row) {
        for (size_t block = 0; block < 9; ++block) {  // that the chunk sees
          ASSERT_EQ(part[head][row * 9 + block], whole[head][(row + 5) * 16 + block])
              << head << " " << row << " " << block;
        }
      }
    }
  }
}

/// Rows and slots of one averaged head in double. -> [n, head_dim]
std::vector<std::vector<double>> mean_rows(const HeadsView& rows, int32_t first, int32_t n) {
  std::vector<std::vector<double>> mean;
  for (int64_t row = 0; row < rows.n_rows; ++row) {
    std::vector<double>& sum = mean.emplace_back(static_cast<size_t>(rows.head_dim));
    for (int32_t head = first; head < first + n; ++head) {
      for (int32_t d = 0; d < rows.head_dim; ++d) sum[static_cast<size_t>(d)] += double{rows.at(row, head)[d]} / n;
    }
  }
  return mean;
}

/// proxy_scores of attention/ops.h in double, of one group.
std::vector<float> plain_proxy(const ProxyArgs& args, int32_t group) {
  const int32_t n_kv = static_cast<int32_t>(args.kv.heads.size()) / args.n_group, dim = args.q.head_dim;
  const KvHead& kv = args.kv.heads[static_cast<size_t>(group * n_kv)];
  std::vector<float> all, one;  // [n_slots, n_kv, dim]
  for (int32_t i = 0; i < n_kv; ++i) {
    ref::pool_keys(args.kv, group * n_kv + i, 1, one);
    all.resize(one.size() * static_cast<size_t>(n_kv));
    for (size_t at = 0; at < one.size(); ++at) {
      const size_t slot = at / static_cast<size_t>(dim), d = at % static_cast<size_t>(dim);
      all[(slot * static_cast<size_t>(n_kv) + static_cast<size_t>(i)) * static_cast<size_t>(dim) + d] = one[at];
    }
  }
  const auto keys = mean_rows({all.data(), kv.n_slots, n_kv, dim, int64_t{n_kv} * dim}, 0, n_kv);
  const int32_t n_q = args.q.n_head / args.n_group;
  const auto queries = mean_rows(args.q, group * n_q, n_q);
  const auto n_block = static_cast<size_t>(ceil_div(visible_slots(kv, args.limit.back()), args.block));
  std::vector<float> scores(static_cast<size_t>(ceil_div(args.q.n_rows, args.block)) * n_block, -INFINITY);
  for (size_t row = 0; row < queries.size(); row += static_cast<size_t>(args.stride)) {
    std::vector<double> logits;
    double total = 0;
    for (int32_t slot = 0; slot < visible_slots(kv, args.limit[row]); slot += args.stride) {
      const std::vector<double>& key = keys[static_cast<size_t>(slot)];
      logits.push_back(std::inner_product(key.begin(), key.end(), queries[row].begin(), 0.0) * double{args.scale});
      total += std::exp(logits.back());
    }
    for (size_t i = 0; i < logits.size(); ++i) {
      const auto block = static_cast<size_t>(args.block);
      float& score = scores[row / block * n_block + i * static_cast<size_t>(args.stride) / block];
      score = std::max(score, static_cast<float>(logits[i] - std::log(total)));
    }
  }
  return scores;
}

Scores proxies_on(const CpuFeatures& features, const ProxyArgs& args, int n_threads) {
  CpuDevice device(n_threads, features);
  Scores scores;
  device.proxy_scores(args, scores);
  EXPECT_EQ(device.memory().held(), 0);
  return scores;
}

ProxyArgs proxies_of(const ProblemData& data, int32_t n_group, int32_t stride, int32_t block) {
  const AttnArgs& args = data.args();
  const std::span<const int32_t> limit(args.limit, static_cast<size_t>(args.q.n_rows));
  return {args.q, args.kv, limit, args.scale, n_group, stride, block};
}

void expect_near(const std::vector<float>& actual, const std::vector<float>& expected, double tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    if (actual[i] == expected[i]) continue;  // nothing seen
    ASSERT_NEAR(actual[i], expected[i], tolerance) << "at " << i;
  }
}

TEST(CpuProxies, AreThoseOfThePlainFormulas) {
  std::vector<std::string> problems(std::begin(kProblems), std::end(kProblems));
  problems.emplace_back(
      "prefill rows=67 slots=130 heads=4 kv=2 dim=64");  // the last row sees a block that no sample does
  for (const std::string& text : problems) {
    const ProblemData data(parse_problem(text));
    const auto n_kv = static_cast<int32_t>(data.args().kv.heads.size());
    for (const auto& [stride, block] : {std::pair{4, 128}, {1, 64}, {16, 64}, {1, 128}}) {
      for (const int32_t n_group : {n_kv, 1}) {
        const ProxyArgs args = proxies_of(data, n_group, stride, block);
        for (const CpuFeatures& features : feature_sets()) {
          const AttendKernel& kernel = *attend_kernels(features).front();
          SCOPED_TRACE(fmt::format("{} stride={} block={} groups={} {}", text, stride, block, n_group, kernel.name));
          const Scores actual = proxies_on(features, args, 2);
          ASSERT_EQ(std::ssize(actual), n_group);
          for (int32_t group = 0; group < n_group; ++group) {
            expect_near(actual[static_cast<size_t>(group)], plain_proxy(args, group),
                        kernel.product == Type::bf16 ? 0.05 : 1e-4);
          }
        }
      }
    }
  }
}

TEST(CpuProxies, ThreadsChangeNothingAndLargeLogitsStayFinite) {
  const ProblemData data(parse_problem("prefill rows=1500 heads=6 kv=2 dim=64"));
  ProxyArgs args = proxies_of(data, 2, 4, 128);
  EXPECT_EQ(proxies_on(machine_features(), args, 1), proxies_on(machine_features(), args, 3));
  args.scale = 3000;
  for (const std::vector<float>& scores : proxies_on(machine_features(), args, 2)) {
    for (const float score : scores) EXPECT_TRUE(score <= 1e-5F && !std::isnan(score)) << score;
  }
}

}  // namespace
}  // namespace winnow::cpu
