// Lists of shared sets against plain sets of slots.
#include "attention/sets.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "attention/problem.h"
#include "site_fixture.h"

namespace winnow {
namespace {

using test::malformed;
using test::ref_ops;
using test::SiteFixture;

/// Each slot with the given probability, and some runs of neighbours.
std::vector<int32_t> some_slots(int32_t n, double share, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> set;
  int32_t run = 0;
  for (int32_t slot = 0; slot < n; ++slot) {
    if (random() % 150 == 0) run = static_cast<int32_t>(random() % 200);
    if (run-- > 0 || random() % 1000 < share * 1000) set.push_back(slot);
  }
  if (set.empty()) set.push_back(n - 1);
  return set;
}

void check(SiteFixture& fixture, double share, int32_t window, int32_t unit) {
  SCOPED_TRACE(fmt::format("{} share={} window={} unit={}", fixture.shape().text(), share, window, unit));
  const Site site = fixture.site(ref_ops());
  std::vector<std::vector<int32_t>> sets;
  const std::vector<double> kept = {0.5, 0.75};
  for (const KvHead& head : site.kv.heads) sets.push_back(some_slots(head.n_slots, share, 5));
  const Selection joined = join_sets(site.kv, sets, std::span(kept).first(sets.size()));
  if (joined.everything()) {
    for (size_t i = 0; i < sets.size(); ++i) ASSERT_EQ(std::ssize(sets[i]), site.kv.heads[i].n_slots);
    return;
  }
  const Selection lists = site.ops.select_sets(
      {.kv = site.kv, .limit = site.limit, .n_head = site.q.n_head, .sets = &joined, .window = window, .unit = unit});
  ASSERT_EQ(malformed(lists, site), "");
  EXPECT_EQ(lists.estimated_mass, joined.estimated_mass);
  size_t n_in_sets = 0;
  for (const std::vector<int32_t>& set : sets) n_in_sets += set.size();
  EXPECT_LE(lists.column.size(), n_in_sets) << "columns were written more than once";
  for (int32_t row = 0; row < site.q.n_rows; ++row) {
    for (int32_t head = 0; head < site.q.n_head; ++head) {
      const auto kv = static_cast<size_t>(fixture.kv_of(head));
      const int32_t n_seen = visible_slots(site.kv.heads[kv], fixture.limit(row / kSetRows * kSetRows));
      const int32_t near = std::max(0, n_seen - window) / unit * unit;
      const std::set<int32_t> set(sets[kv].begin(), sets[kv].end());
      const std::vector<bool> mask = test::computed(lists, fixture, row, head);
      for (int32_t slot = 0; slot < std::ssize(mask); ++slot) {
        const bool expected = fixture.position(static_cast<int32_t>(kv), slot) <= fixture.limit(row) &&
                              (slot >= near || set.contains(slot));
        ASSERT_EQ(mask[static_cast<size_t>(slot)], expected) << "row " << row << " head " << head << " slot " << slot;
      }
    }
  }
}

TEST(SelectSets, TakesTheSetBeforeTheWindowAndAllBehind) {
  for (const auto& [n_q, n_k] : {std::pair{2, 2}, {65, 65}, {129, 300}, {700, 700}}) {
    for (const int32_t n_head_kv : {1, 2}) {
      SiteFixture fixture({n_q, n_k, 4, n_head_kv, 8}, 3);
      for (const double share : {0.0, 0.3, 0.98, 1.0}) {
        for (const auto& [window, unit] : {std::pair{1, 1}, {100, 64}, {512, 64}, {130, 1}}) {
          check(fixture, share, window, unit);
        }
      }
    }
  }
}

TEST(SelectSets, CountsInSlotsWhereSomeWereEvicted) {
  SiteFixture fixture({300, 600, 4, 2, 8}, 3);
  std::vector<int32_t> kept;
  for (int32_t slot = 0; slot < 600; ++slot) {
    if (slot % 3 == 0 || slot >= 300) kept.push_back(slot);
  }
  fixture.keep(1, kept);
  check(fixture, 0.4, 1, 1);
  check(fixture, 0.4, 200, 64);
}

/// The kernels' columns may be shared: every device computes what they name.
TEST(SelectSets, DevicesComputeThem) {
  const auto cpu = make_device("cpu", 2), ref = make_device("ref", 1);
  for (const char* text : {"prefill rows=300 slots=500 heads=4 kv=2 dim=64", "prefill rows=3 slots=200 heads=4 kv=2"}) {
    SCOPED_TRACE(text);
    const ProblemData data(parse_problem(text));
    AttnArgs args = data.args();
    const std::vector<std::vector<int32_t>> sets = {some_slots(args.kv.heads[0].n_slots, 0.3, 1),
                                                    some_slots(args.kv.heads[1].n_slots, 0.5, 2)};
    const Selection joined = join_sets(args.kv, sets, std::vector<double>{1, 1});
    const Selection lists = ref->select_sets({.kv = args.kv,
                                              .limit = {args.limit, static_cast<size_t>(args.q.n_rows)},
                                              .n_head = args.q.n_head,
                                              .sets = &joined});
    args.selection = &lists;
    std::vector<float> o[2];
    AttnCounts counts[2];
    for (const size_t i : {0U, 1U}) {
      o[i].resize(static_cast<size_t>(args.o.n_rows * args.o.stride));
      args.o.data = o[i].data();
      args.counts = &counts[i];
      (i == 0 ? cpu : ref)->attend(args);
    }
    EXPECT_EQ(counts[0].computed, counts[1].computed);
    for (size_t i = 0; i < o[0].size(); ++i) ASSERT_NEAR(o[0][i], o[1][i], 2e-2) << i;
  }
}

}  // namespace
}  // namespace winnow
