// Rows that a selection leaves out, from one attention call up to whole runs.
#include "engine/attend_layer.h"

#include <gmock/gmock.h>

#include <numeric>

#include "attention/lists.h"
#include "methods/density.h"
#include "methods/last_rows.h"
#include "methods/recall.h"
#include "site_fixture.h"
#include "tiny_engine.h"

namespace winnow {
namespace {

using test::attend;
using test::SiteFixture;
using test::SiteShape;

// Blocks of the rows that see the first slots and some before their own, under one list for all heads.
Selection near_slots(const Site& site, std::vector<int32_t> rows) {
  HeadLists lists;
  for (size_t first = 0; first < rows.size(); first += 64) {
    const int32_t begin = std::max(2, site.limit[static_cast<size_t>(rows[first])] - 30);
    lists.column.insert(lists.column.end(), {0, 1});
    for (const int32_t offset : {0, 64, 128, 192}) {
      if (begin + offset < site.kv.heads.front().n_slots) lists.block_begin.push_back(begin + offset);
    }
    lists.end_block();
  }
  Selection selection = join_lists({&lists, 1}, 64, 64);
  selection.rows = std::move(rows);
  return selection;
}

std::vector<int32_t> all_but_every(int32_t step, int32_t n_rows) {
  std::vector<int32_t> rows;
  for (int32_t row = 0; row < n_rows; ++row) {
    if (row % step != 1) rows.push_back(row);
  }
  return rows;
}

// More rows than one call takes, so that they go in pieces; in place and elsewhere.
TEST(AttendLayer, RowsThatDoNotAttendGetNothing) {
  const auto device = make_device("cpu", 2);
  const SiteShape shape = {.n_q = 5000, .n_k = 5100, .n_head = 2, .n_head_kv = 1, .head_dim = 16};
  SiteFixture fixture(shape, 31);
  const Site site = fixture.site(*device);
  std::vector<int32_t> rows = all_but_every(7, shape.n_q - 3);
  ASSERT_GT(std::ssize(rows), device->rows_at_once().attend);
  const Selection selection = near_slots(site, rows);
  ASSERT_EQ(test::malformed(selection, fixture.site(test::ref_ops())),
            "rows range, or the last one does not attend");  // which the engine does not mind
  const std::vector<float> want = attend(site, selection);   // by one call of the same kernel

  AttnCounts counts;
  int n_piece = 0;
  std::vector<float> o(want.size(), 7);
  HeadsView to = site.q;
  to.data = o.data();
  attend_layer(*device, site, selection, {.o = to, .counts = &counts, .after_piece = [&] { ++n_piece; }});
  EXPECT_EQ(n_piece, 2);
  for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(o[i], want[i], 1e-5) << i;
  for (int32_t row = 1; row < shape.n_q; row += 7) {
    for (size_t d = 0; d < 32; ++d) ASSERT_EQ(o[static_cast<size_t>(row) * 32 + d], 0) << row;
  }
  EXPECT_EQ(counts.permitted, int64_t{2} * (int64_t{5000} * 100 + int64_t{5000} * 5001 / 2));
  const std::vector<AttnCounts> counted = count_selected(site, selection);
  EXPECT_EQ(counts.permitted, counted[0].permitted + counted[1].permitted);
  EXPECT_EQ(counts.computed, counted[0].computed + counted[1].computed);
  EXPECT_LT(counts.density(), 0.1);

  attend_layer(*device, site, selection, {.o = site.q});
  EXPECT_EQ(std::vector<float>(site.q.data, site.q.data + want.size()), o);
}

// Rows that see everything beside rows that follow lists, all of the site's or some of them; more than one call takes.
TEST(AttendLayer, LastRowsSeeEverything) {
  const auto device = make_device("cpu", 2);
  const SiteShape shape = {.n_q = 5000, .n_k = 5100, .n_head = 2, .n_head_kv = 1, .head_dim = 16};
  SiteFixture fixture(shape, 33);
  const Site site = fixture.site(*device);
  std::vector<int32_t> every(5000);
  std::iota(every.begin(), every.end(), 0);
  for (const bool some : {false, true}) {
    Selection lists = near_slots(site, some ? all_but_every(7, shape.n_q) : every);
    if (!some) lists.rows.clear();
    const std::vector<float> sparse = attend(site, lists);
    for (const int32_t last_rows : {1, 300, 4500}) {
      const Selection selection = with_full_rows(lists, site, last_rows);
      const auto is_full = [&](int32_t row) {
        const int32_t block = selection.block_of(row);
        return block >= 0 && selection.full(block);
      };
      // The dense oracle takes these rows alone, since few rows have a kernel of their own.
      std::vector<float> q;
      std::vector<int32_t> limit;
      for (const int32_t row : every) {
        if (!is_full(row)) continue;
        q.insert(q.end(), site.q.at(row, 0), site.q.at(row, 0) + 32);
        limit.push_back(site.limit[static_cast<size_t>(row)]);
      }
      Site full = site;
      full.q.data = q.data();
      full.q.n_rows = std::ssize(limit);
      full.q.stride = 32;
      full.limit = limit;
      const std::vector<float> dense = attend(full, {});
      AttnCounts counts;
      std::vector<float> o(sparse.size(), 7);
      HeadsView to = site.q;
      to.data = o.data();
      attend_layer(*device, site, selection, {.o = to, .counts = &counts});
      size_t n_seen = 0;
      for (int32_t row = 0; row < shape.n_q; ++row) {
        if (row >= shape.n_q - last_rows) {
          ASSERT_TRUE(is_full(row));
        }
        const auto at = static_cast<size_t>(row) * 32;
        const float* const want = is_full(row) ? &dense[32 * n_seen++] : &sparse[at];
        for (size_t d = 0; d < 32; ++d) ASSERT_NEAR(o[at + d], want[d], 5e-4) << row;
      }
      const std::vector<AttnCounts> counted = count_selected(site, selection);
      EXPECT_EQ(counts.permitted, counted[0].permitted + counted[1].permitted);
      EXPECT_EQ(counts.computed, counted[0].computed + counted[1].computed);
    }
  }
}

TEST(AttendLayer, RowsThatDoNotAttendKeepNothing) {
  SiteFixture fixture({.n_q = 200, .n_k = 200, .n_head = 2, .n_head_kv = 1}, 32);
  const Site site = fixture.site(test::ref_ops());
  const Selection selection = near_slots(site, all_but_every(3, 200));
  double sum = 0;
  for (int32_t row = 0; row < 200; ++row) {
    for (int32_t head = 0; head < 2; ++head) {
      const std::vector<double> p = fixture.probabilities(row, head);
      const std::vector<bool> mask = test::computed(selection, fixture, row, head);
      for (size_t slot = 0; slot < p.size(); ++slot) sum += row % 3 != 1 && mask[slot] ? p[slot] : 0;
    }
  }
  const Recall recall = sample_recall(site, selection, 200);
  EXPECT_EQ(recall.n, 400);
  EXPECT_NEAR(recall.sum, sum, 1e-3);
}

// zipvl leaves rows out. Whole runs of it, on both schedules.
constexpr const char* kSpec = "zipvl(min_len=0, tau=0.8, all_rows=0)";

class RowsTest : public testing::TestWithParam<Schedule> {
 protected:
  EngineOptions options() const { return {.schedule = GetParam(), .chunk = 192, .recall_rows = 8}; }
};

TEST_P(RowsTest, TheTraceCountsWhatARunReports) {
  const TinyEngine tiny("qwen2", options());
  AttnCounts traced;
  int64_t n_rows = 0, n_attending = 0;
  double estimated = 0;
  tiny->on_selection = [&](const Site& site, const Selection& selection) {
    for (const AttnCounts& head : count_selected(site, selection)) {
      traced.permitted += head.permitted;
      traced.computed += head.computed;
    }
    n_rows += site.q.n_rows;
    estimated += selection.estimated_mass.value_or(-1) * static_cast<double>(site.q.n_rows);
    n_attending += selection.rows.empty() ? site.q.n_rows : std::ssize(selection.rows);
  };
  Sequence sequence = tiny.start({kSpec});
  tiny->prefill(sequence, random_tokens(700));
  const RunStats& stats = sequence.stats();
  EXPECT_EQ(stats.counts.permitted, traced.permitted);
  EXPECT_EQ(stats.counts.computed, traced.computed);
  EXPECT_LT(stats.counts.density(), 0.9);
  EXPECT_LT(n_attending, n_rows);
  EXPECT_EQ(stats.estimate_n, n_rows);
  EXPECT_NEAR(stats.estimated_mass(), estimated / static_cast<double>(n_rows), 1e-9);
  EXPECT_LT(stats.recall(), static_cast<double>(n_attending) / static_cast<double>(n_rows) + 0.1);
}

// No scores decide who attends here: the first 300 tokens, and the last of what is read at once.
TEST_P(RowsTest, DevicesAgree) {
  const std::vector<std::string> spec = {"zipvl(min_len=0, tau=0, protect=300, all_rows=0)"};
  std::vector<std::vector<float>> logits;
  std::vector<AttnCounts> counts;
  for (const char* device : {"ref", "cpu"}) {
    const TinyEngine tiny("qwen3", options(), device);
    Sequence sequence = tiny.start(spec);
    logits.push_back(tiny->prefill(sequence, random_tokens(640)));
    counts.push_back(sequence.stats().counts);
    if (GetParam() == Schedule::layer_major) {
      const KvHead& head = sequence.cache().view(0).heads.front();
      EXPECT_EQ(head.n_slots, 301);
      EXPECT_EQ(head.position(300), 639);
    }
  }
  EXPECT_LT(relative_distance(logits[1], logits[0]), 0.15);  // the devices' products differ; see pack_test.cpp
  EXPECT_EQ(counts[1].permitted, counts[0].permitted);
  EXPECT_EQ(counts[1].computed, counts[0].computed);
}

TEST_P(RowsTest, ASecondTurnAndPackedPromptsAreAsAlone) {
  const TinyEngine tiny("llama", options(), "ref", 2, {.n_layer = 2});
  const std::vector<int32_t> first = random_tokens(300, 1), second = random_tokens(200, 2),
                             other = random_tokens(260, 3);
  std::vector<float> want;
  for (const bool packed : {false, true}) {
    Sequence a = tiny.start({kSpec}), b = tiny.start({"zipvl(min_len=0, tau=0.6, cache=0, all_rows=0)"});
    tiny->prefill(a, first);
    tiny->prefill(b, first);
    std::vector<float> got;
    if (packed) {
      Sequence* const sequences[] = {&a, &b};
      const std::span<const int32_t> prompts[] = {second, other};
      got = tiny->prefill(sequences, prompts);
    } else {
      got = tiny->prefill(a, second);
      const std::vector<float> more = tiny->prefill(b, other);
      got.insert(got.end(), more.begin(), more.end());
    }
    for (const float value : got) ASSERT_TRUE(std::isfinite(value));
    EXPECT_LT(a.stats().counts.density(), 0.9);
    if (want.empty()) want = got;
    if (packed && GetParam() == Schedule::layer_major) {
      EXPECT_LT(relative_distance(got, want), 1e-4);
    }
  }
}

TEST_P(RowsTest, LogitsThatAreWantedComeFromRowsThatAttend) {
  const TinyEngine tiny("qwen2", options());
  int64_t n_missed = 0, n_seen = 0;
  tiny->on_selection = [&](const Site& site, const Selection& selection) {
    if (selection.everything()) return;
    for (int64_t row = site.q.n_rows - site.n_wanted; row < site.q.n_rows; ++row) {
      ++n_seen;
      n_missed += selection.block_of(row) < 0 ? 1 : 0;
    }
  };
  Sequence sequence = tiny.start({kSpec});
  int64_t n_logits = 0;
  tiny->prefill(sequence, random_tokens(700), 250, [&](int64_t, Mat rows) { n_logits += rows.rows; });
  EXPECT_EQ(n_logits, 250);
  EXPECT_EQ(n_seen, 250 * tiny->model().shape().n_layer);
  EXPECT_EQ(n_missed, 0);
}

// However a prompt is cut, a row knows how many come after it; chunks of whole blocks then compute the same.
TEST(LastRows, AreThoseOfThePromptInChunksToo) {
  constexpr int32_t kRows = 700, kLast = 200, kBlock = 64;
  for (const char* spec : {"xattention(min_len=0, block=64, threshold=0.3, last_rows=200)",
                           "streaming_llm(sinks=4, window=64, last_rows=200)",
                           "zipvl(min_len=0, tau=0.6, cache=0, all_rows=0, last_rows=200)"}) {
    SCOPED_TRACE(spec);
    std::vector<float> want;
    for (const EngineOptions& options :
         {EngineOptions{.recall_rows = 8}, EngineOptions{.schedule = Schedule::chunk_major, .chunk = 3 * kBlock},
          EngineOptions{.schedule = Schedule::chunk_major, .chunk = 100}}) {
      const TinyEngine tiny("qwen2", options, "ref");
      int64_t n_full = 0;
      AttnCounts counted;
      tiny->on_selection = [&](const Site& site, const Selection& selection) {
        EXPECT_EQ(site.limit.back() + 1 + site.n_later, kRows);
        for (int64_t row = 0; row < site.q.n_rows; ++row) {
          if (site.limit[static_cast<size_t>(row)] < kRows - kLast) continue;
          ++n_full;
          EXPECT_TRUE(selection.everything() || selection.full(selection.block_of(row))) << row;
        }
        for (const AttnCounts& head : count_selected(site, selection)) counted.computed += head.computed;
      };
      Sequence sequence = tiny.start({spec});
      const std::vector<float> got = tiny->prefill(sequence, random_tokens(kRows));
      EXPECT_GE(n_full, kLast * (tiny->model().shape().n_layer - 1));  // the last layer may hold fewer rows
      EXPECT_LT(sequence.stats().counts.density(), 0.9);
      EXPECT_EQ(sequence.stats().counts.computed, counted.computed);
      if (want.empty()) want = got;
      if (options.chunk % kBlock == 0 && std::string_view(spec).front() == 'x') {
        EXPECT_LT(relative_distance(got, want), 1e-4);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Schedules, RowsTest, testing::Values(Schedule::layer_major, Schedule::chunk_major),
                         [](const auto& tested) {
                           return tested.param == Schedule::layer_major ? "layers" : "chunks";
                         });

}  // namespace
}  // namespace winnow
