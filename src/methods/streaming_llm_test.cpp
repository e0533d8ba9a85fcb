#include <gtest/gtest.h>

#include "site_fixture.h"

namespace winnow {
namespace {

using test::computed;
using test::make_method;
using test::malformed;
using test::ref_ops;
using test::SiteFixture;

std::string spec(int sinks, int window, const std::string& rest = "") {
  return fmt::format("streaming_llm(sinks={}, window={}{})", sinks, window, rest);
}

Selection select(const std::string& text, SiteFixture& fixture) {
  return make_method(text, fixture.method_shape()).selector->select(fixture.site(ref_ops()));
}

// The paper's mask for one row.
bool promised(int32_t slot, int32_t position, int sinks, int window) {
  return slot <= position && (slot < sinks || position - slot < window);
}

TEST(StreamingLlm, ComputesSinksExactlyAndTheWindowCoveredByBlocks) {
  for (const auto& [sinks, window] : {std::pair{4, 1}, {4, 100}, {0, 64}, {70, 30}, {200, 65}, {1, 257}}) {
    for (const int32_t n_k : {65, 130, 400}) {
      for (const int32_t n_q : {n_k, 65, 64, 2}) {
        SiteFixture fixture({.n_q = n_q, .n_k = n_k}, 1);
        const Selection selection = select(spec(sinks, window), fixture);
        EXPECT_EQ(malformed(selection, fixture.site(ref_ops())), "");
        for (int32_t row = 0; row < n_q; ++row) {
          const int32_t own = n_k - n_q + row, first = n_k - n_q + row / 64 * 64;
          const std::vector<bool> mask = computed(selection, fixture, row, 1);
          const int32_t cover = std::max(0, first - window + 1) / 64 * 64;
          for (int32_t slot = 0; slot <= own; ++slot) {
            const bool expected = selection.everything() || slot < sinks || slot >= cover;
            ASSERT_EQ(mask[static_cast<size_t>(slot)], expected) << n_q << " of " << n_k << ", " << row << ", " << slot;
            ASSERT_TRUE(expected || !promised(slot, own, sinks, window));
          }
        }
      }
    }
  }
}

TEST(StreamingLlm, IsDenseWhileTheWindowReachesTheSinks) {
  for (int32_t n = 1; n <= 257; n += 16) {
    SiteFixture fixture({.n_q = n, .n_k = n}, 2);
    EXPECT_EQ(select(spec(4, 100), fixture).everything(), n <= 104 || n == 1) << n;
    EXPECT_TRUE(select("streaming_llm(window=1000000000)", fixture).everything());
  }
}

TEST(StreamingLlm, LeavesDecodeRowsAlone) {
  SiteFixture fixture({.n_q = 1, .n_k = 500}, 3);
  EXPECT_TRUE(select(spec(4, 10), fixture).everything());
}

TEST(StreamingLlm, EveryHeadSharesOneListUnlessTheCacheIsRagged) {
  SiteFixture fixture({.n_q = 100, .n_k = 400, .n_head = 4, .n_head_kv = 2}, 4);
  EXPECT_EQ(select(spec(4, 50), fixture).n_head, 1);

  std::vector<int32_t> kept;
  for (int32_t slot = 0; slot < 400; ++slot) {
    if (slot < 2 || slot % 3 == 0 || slot >= 300) kept.push_back(slot);
  }
  fixture.keep(1, kept);
  const Selection selection = select(spec(4, 50), fixture);
  EXPECT_EQ(selection.n_head, 4);
  EXPECT_EQ(malformed(selection, fixture.site(ref_ops())), "");
  for (const int32_t head : {0, 2}) {
    for (int32_t row = 0; row < 100; ++row) {
      const std::vector<bool> mask = computed(selection, fixture, row, head);
      for (int32_t slot = 0; slot < fixture.n_slots(fixture.kv_of(head)); ++slot) {
        const int32_t position = fixture.position(fixture.kv_of(head), slot);
        ASSERT_TRUE(mask[static_cast<size_t>(slot)] || !promised(position, fixture.limit(row), 4, 50));
      }
    }
  }
}

TEST(StreamingLlm, BehindAPromptTheCacheKeepsTheSinksAndTheLastWindowSlots) {
  SiteFixture fixture({.n_q = 40, .n_k = 40, .n_head = 4, .n_head_kv = 2}, 5);
  const Method method = make_method(spec(3, 5), fixture.method_shape());
  const KvEdit edit = method.compressor->compress(fixture.site(ref_ops()), true);
  ASSERT_EQ(edit.head.size(), 2U);
  for (const KvEdit::Head& head : edit.head) {
    EXPECT_FALSE(head.all);
    EXPECT_TRUE(head.merge.empty());
    EXPECT_EQ(head.keep, (std::vector<int32_t>{0, 1, 2, 35, 36, 37, 38, 39}));
  }
}

// However late slots go: each decoded row computes the paper's mask.
TEST(StreamingLlm, DecodedRowsComputeSinksAndWindowExactlyWhileTheCacheLetsGoOf64SlotsAtATime) {
  for (const auto& [sinks, window] : {std::pair{3, 5}, {0, 70}, {130, 1}}) {
    const Method method = make_method(spec(sinks, window), {1, 2, 1, 16});
    std::vector<int32_t> kept;
    bool let_go = false;
    for (int32_t n = 1; n <= 400; ++n) {  // token n - 1 was just added
      SiteFixture fixture({.n_q = 1, .n_k = n}, 6);
      kept.push_back(n - 1);
      fixture.keep(0, kept);
      const Site site = fixture.site(ref_ops());
      const Selection selection = method.compressor->select_row(site);
      ASSERT_EQ(malformed(selection, site), "");
      const std::vector<bool> mask = computed(selection, fixture, 0, 1);
      int32_t n_computed = 0;
      for (size_t slot = 0; slot < kept.size(); ++slot) {
        ASSERT_EQ(mask[slot], promised(kept[slot], n - 1, sinks, window)) << n << " slot " << slot;
        n_computed += mask[slot] ? 1 : 0;
      }
      ASSERT_EQ(n_computed, std::min(n, sinks + window));
      const KvEdit edit = method.compressor->compress(site, false);
      if (!edit.head.empty()) {
        std::vector<int32_t> left;
        for (const int32_t slot : edit.head[0].keep) left.push_back(kept[static_cast<size_t>(slot)]);
        EXPECT_EQ(kept.size() - left.size(), 64U);
        kept = left;
        let_go = true;
      }
      ASSERT_LT(std::ssize(kept), sinks + window + 64);
    }
    EXPECT_TRUE(let_go);
  }
}

TEST(StreamingLlm, FlagsChooseTheParts) {
  const MethodShape shape = {1, 2, 1, 16};
  EXPECT_EQ(make_method("streaming_llm(prefill=0)", shape).selector, nullptr);
  EXPECT_NE(make_method("streaming_llm(prefill=0)", shape).compressor, nullptr);
  EXPECT_NE(make_method("streaming_llm(cache=0)", shape).selector, nullptr);
  EXPECT_EQ(make_method("streaming_llm(cache=0)", shape).compressor, nullptr);
  EXPECT_THROW(make_method("streaming_llm(cache=0, prefill=0)", shape), Error);
}

}  // namespace
}  // namespace winnow
