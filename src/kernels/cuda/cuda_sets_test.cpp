// Ranked blocks and shared sets on the GPU against the same verbs on the host, which ask the GPU for scores only.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "attention/problem.h"
#include "attention/sets.h"
#include "kernels/cuda/gpu_fixture.h"

namespace winnow {
namespace {

using CudaSets = test::GpuTest;

/// A problem on the GPU, the last kv head with only `last_slots` of its slots (0: all).
struct OnGpu {
  OnGpu(Device& device, const std::string& text, int32_t last_slots = 0)
      : data(parse_problem(text)), problem(device, data), args(problem.args()) {
    heads.assign(args.kv.heads.begin(), args.kv.heads.end());
    if (last_slots > 0) heads.back().n_slots = last_slots;
    args.kv.heads = heads;
  }
  std::span<const int32_t> limit() const { return {args.limit, static_cast<size_t>(args.q.n_rows)}; }
  /// Every `step`-th row from `first` on, `n` of them.
  ProbeArgs rows(int64_t first, int64_t n, int64_t step = 1) {
    HeadsView q = args.q.rows(first, n);
    q.stride *= step;
    std::vector<int32_t>& of_rows = limits.emplace_back();
    for (int64_t i = 0; i < n; ++i) of_rows.push_back(args.limit[first + i * step]);
    return {q, args.kv, of_rows.data(), args.scale, args.softcap, 0};
  }
  ProbeArgs last(int64_t n) { return rows(args.q.n_rows - std::min(n, args.q.n_rows), std::min(n, args.q.n_rows)); }

  ProblemData data;
  ProblemOn problem;
  AttnArgs args;
  std::vector<KvHead> heads;
  std::vector<std::vector<int32_t>> limits;
};

struct Case {
  std::string text;
  int32_t last_slots = 0;
};

std::vector<Case> cases() {
  std::vector<Case> all = {{"prefill rows=1000 heads=6 kv=2 dim=128 type=bf16 softcap=5"},
                           {"prefill rows=700 slots=3000 heads=4 kv=2 dim=128 type=bf16"},
                           {"prefill rows=700 slots=3000 heads=4 kv=2 dim=64 type=bf16", 2900},
                           {"prefill rows=300 slots=2000 heads=4 kv=2 dim=64 type=bf16 holes=0.3"},
                           {"prefill rows=300 slots=2000 heads=4 kv=2 dim=64 type=bf16 holes=0.3", 1700},
                           {"prefill rows=5000 slots=5000 heads=2 kv=1 dim=96 type=bf16"}};
  for (const int n : {2, 17, 63, 64, 65, 127, 128, 129, 191, 200, 256, 257}) {
    all.push_back({fmt::format("prefill rows={} heads=4 kv=2 dim=64 type=bf16", n)});
  }
  return all;
}

/// Entries that one of two selections' lists alone has, as a share of all.
double difference(const Selection& actual, const Selection& expected) {
  EXPECT_EQ(actual.n_head, expected.n_head);
  EXPECT_EQ(actual.group, expected.group);
  EXPECT_EQ(actual.n_block_q, expected.n_block_q);
  EXPECT_EQ(actual.block_q, expected.block_q);
  EXPECT_EQ(actual.block_k, expected.block_k);
  if (actual.block_ptr.size() != expected.block_ptr.size()) return 1;
  std::vector<int32_t> apart;
  size_t n = 0, n_apart = 0;
  for (int64_t list = 0; list + 1 < std::ssize(expected.block_ptr); ++list) {
    for (const auto part : {&Selection::blocks, &Selection::columns}) {
      apart.clear();
      std::ranges::set_symmetric_difference((actual.*part)(list), (expected.*part)(list), std::back_inserter(apart));
      n_apart += apart.size();
      n += (expected.*part)(list).size();
    }
  }
  return static_cast<double>(n_apart) / static_cast<double>(std::max<size_t>(n, 1));
}

TEST_F(CudaSets, RankedBlocks) {
  for (const Case& one : cases()) {
    OnGpu on_gpu(device(), one.text, one.last_slots);
    const bool alike = one.last_slots == 0;
    for (const int32_t n_group : {1, static_cast<int32_t>(on_gpu.args.kv.heads.size())}) {
      if (!alike && n_group == 1) continue;
      for (const auto& [block, share, least, same_all] :
           {std::tuple{128, 0.5, 0, false}, {64, 0.9, 3, false}, {64, 0.3, 0, true}, {128, -1e-6, 1, false}}) {
        SCOPED_TRACE(fmt::format("{} last={} groups={} block={} share={} same_all={}", one.text, one.last_slots,
                                 n_group, block, share, same_all));
        const RankedArgs args = {.scores = {.q = on_gpu.args.q,
                                            .kv = on_gpu.args.kv,
                                            .limit = on_gpu.limit(),
                                            .scale = on_gpu.args.scale,
                                            .n_group = n_group,
                                            .stride = 4,
                                            .block = block},
                                 .probe = on_gpu.last(block),
                                 .share = share,
                                 .least = least,
                                 .same_all = same_all};
        const Selection made = device().select_ranked(args);
        ASSERT_NE(made.on_device, nullptr);
        // Sums in another order may move a budget by one.
        const Selection expected = device().Ops::select_ranked(args);
        EXPECT_LE(difference(device().on_host(made), expected), 0.01);
        EXPECT_NEAR(made.estimated_mass.value(), expected.estimated_mass.value(), 0.01);
      }
    }
  }
}

TEST_F(CudaSets, RowsOfEqualScoresTakeTheLowerBlocks) {
  OnGpu on_gpu(device(), "prefill rows=2000 heads=2 kv=1 dim=64 type=bf16");
  const RankedArgs args = {.scores = {.q = on_gpu.args.q,
                                      .kv = on_gpu.args.kv,
                                      .limit = on_gpu.limit(),
                                      .scale = 0,
                                      .n_group = 1,
                                      .stride = 1,
                                      .block = 64},
                           .probe = on_gpu.last(64),
                           .share = 0.5};
  EXPECT_EQ(difference(device().on_host(device().select_ranked(args)), device().Ops::select_ranked(args)), 0);
}

/// How far two choices of sets are apart, both of everything or neither.
void expect_same_sets(const Selection& made, const Selection& expected, Device& device) {
  ASSERT_EQ(made.everything(), expected.everything());
  if (made.everything()) return;
  ASSERT_NE(made.on_device, nullptr);
  EXPECT_LE(difference(device.on_host(made), expected), 0.005);
  EXPECT_NEAR(made.estimated_mass.value(), expected.estimated_mass.value(), 1e-3);
}

TEST_F(CudaSets, Cores) {
  for (const Case& one : cases()) {
    OnGpu on_gpu(device(), one.text, one.last_slots);
    const size_t n_kv = on_gpu.heads.size();
    for (const auto& [n_votes, begin, sinks] : {std::array{1, 0, 4}, {64, 0, 0}, {1, 100, 130}, {20, 1 << 20, 4}}) {
      SCOPED_TRACE(fmt::format("{} last={} votes={} begin={}", one.text, one.last_slots, n_votes, begin));
      std::vector<int32_t> begins(n_kv, begin), near;
      begins.back() = begin / 2;
      std::vector<CoreShares> shares(n_kv, {0.05, 0.1, 0.2, 0.3, 0.2, 0.1, 0.05});
      shares.back() = {0, 0, 0.5, 0, 0, 0, 0.5};
      for (const KvHead& head : on_gpu.heads) near.push_back(std::max(0, head.n_slots - 200) / 64 * 64);
      const CoreArgs args = {
          .votes = on_gpu.last(n_votes), .begin = begins, .shares = shares, .sinks = sinks, .near = near};
      expect_same_sets(device().choose_core(args), device().Ops::choose_core(args), device());
    }
  }
}

TEST_F(CudaSets, ImportantSlots) {
  for (const Case& one : cases()) {
    OnGpu on_gpu(device(), one.text, one.last_slots);
    for (const auto& [share, first, together] :
         {std::tuple{0.975, 0, true}, {0.5, 0, false}, {0.3, 100, true}, {0.0, 0, true}, {0.9999, 0, true}}) {
      if (together && one.last_slots > 0) continue;
      SCOPED_TRACE(fmt::format("{} last={} share={} first={}", one.text, one.last_slots, share, first));
      const int64_t n_rows = on_gpu.args.q.n_rows;
      std::vector<ProbeArgs> probes = {on_gpu.last(64)};
      if (n_rows > 128) probes.push_back(on_gpu.rows(3, 60, (n_rows - 64) / 64));
      const ImportantArgs args = {.probes = probes, .share = share, .first = first, .together = together};
      expect_same_sets(device().choose_important(args), device().Ops::choose_important(args), device());
    }
  }
}

/// Runs of neighbours and single slots.
std::vector<int32_t> some_slots(int32_t n, int32_t of, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> set;
  int32_t run = 0;
  for (int32_t slot = 0; slot < n; ++slot) {
    if (random() % 150 == 0) run = static_cast<int32_t>(random() % 300);
    if (run-- > 0 || static_cast<int32_t>(random() % 10) < of) set.push_back(slot);
  }
  if (set.empty() || std::ssize(set) == n) set = {n / 2};
  return set;
}

TEST_F(CudaSets, ListsAreThoseOfTheHost) {
  for (const Case& one : cases()) {
    OnGpu on_gpu(device(), one.text, one.last_slots);
    for (const int32_t of : {0, 3, 9}) {
      for (const auto& [n_set, window, unit] :
           {std::array{1, 1, 1}, {2, 1, 1}, {2, 130, 64}, {1, 512, 64}, {2, 1000, 1}}) {
        if (n_set > std::ssize(on_gpu.heads) || (n_set == 1 && one.last_slots > 0)) continue;
        SCOPED_TRACE(fmt::format("{} last={} of={} sets={} window={}", one.text, one.last_slots, of, n_set, window));
        std::vector<std::vector<int32_t>> sets;
        sets.reserve(static_cast<size_t>(n_set));
        for (int32_t i = 0; i < n_set; ++i) {
          sets.push_back(some_slots(on_gpu.heads[static_cast<size_t>(i)].n_slots, of, static_cast<uint32_t>(i)));
        }
        const Selection joined = join_sets(on_gpu.args.kv, sets, std::vector<double>(sets.size(), 0.5));
        const SetArgs args = {.kv = on_gpu.args.kv,
                              .limit = on_gpu.limit(),
                              .n_head = on_gpu.args.q.n_head,
                              .sets = &joined,
                              .window = window,
                              .unit = unit};
        const Selection made = device().select_sets(args), expected = device().Ops::select_sets(args);
        ASSERT_NE(made.on_device, nullptr);
        const Selection actual = device().on_host(made);
        EXPECT_EQ(actual.block_ptr, expected.block_ptr);
        EXPECT_EQ(actual.block_begin, expected.block_begin);
        EXPECT_EQ(difference(actual, expected), 0);
        EXPECT_LE(actual.column.size(), sets.front().size() + sets.back().size());
        EXPECT_EQ(actual.estimated_mass, expected.estimated_mass);
      }
    }
  }
}

/// Sets of which rows are few or many, and rows that only another head's set has.
TEST_F(CudaSets, RowsOfSetsAreThoseOfTheHost) {
  for (const Case& one : cases()) {
    if (one.last_slots > 0) continue;  // some rows there have no slot of their own
    OnGpu on_gpu(device(), one.text);
    const KvHead& head = on_gpu.heads.front();
    std::vector<int32_t> limit;
    for (int64_t row = on_gpu.args.q.n_rows; row > 0; --row) {
      limit.push_back(head.position(head.n_slots - static_cast<int32_t>(row)));
    }
    for (const int32_t of : {0, 3, 9}) {
      for (const auto& [n_set, n_wanted] : {std::pair{1, 1}, {1, 0}, {2, 1}, {2, 150}, {1, 90}, {2, 1 << 20}}) {
        if (n_set > std::ssize(on_gpu.heads)) continue;
        SCOPED_TRACE(fmt::format("{} of={} sets={} wanted={}", one.text, of, n_set, n_wanted));
        std::vector<std::vector<int32_t>> sets;
        for (int32_t i = 0; i < n_set; ++i) {
          const int32_t n = on_gpu.heads[static_cast<size_t>(i)].n_slots;
          sets.push_back(some_slots(n, of, static_cast<uint32_t>(i)));
          if (n_wanted == 0 && sets.back().back() != n - 1) sets.back().push_back(n - 1);
        }
        const Selection joined = join_sets(on_gpu.args.kv, sets, std::vector<double>(sets.size(), 0.5));
        if (joined.everything()) continue;
        const SetArgs args = {.kv = on_gpu.args.kv,
                              .limit = limit,
                              .n_head = on_gpu.args.q.n_head,
                              .sets = &joined,
                              .only_rows_of_sets = true,
                              .n_wanted = n_wanted};
        const Selection made = device().select_sets(args), expected = device().Ops::select_sets(args);
        ASSERT_NE(made.on_device, nullptr);
        const Selection actual = device().on_host(made);
        EXPECT_EQ(actual.rows, expected.rows);
        EXPECT_EQ(actual.block_ptr, expected.block_ptr);
        EXPECT_EQ(actual.block_begin, expected.block_begin);
        EXPECT_EQ(difference(actual, expected), 0);
        EXPECT_EQ(actual.estimated_mass, expected.estimated_mass);
      }
    }
  }
}

}  // namespace
}  // namespace winnow
