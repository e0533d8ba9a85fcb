// The laws that every method obeys, over all of the roster: a new file in src/methods is tested without being listed.
#include <gtest/gtest.h>

#include <array>

#include "site_fixture.h"

namespace winnow {
namespace {

using test::make_method;
using test::ref_ops;
using test::SiteFixture;
using test::SiteShape;

// Default parameters (with random weights too, where weights may be given), neutral ones, and every parameter but the
// break-even at either end of its range, one at a time.
std::vector<std::string> specs_of(const MethodInfo& info) {
  std::vector<std::string> specs = {std::string(info.name), std::string(info.neutral)};
  if (info.weights != nullptr && !info.needs_weights) specs.push_back(std::string(info.name) + "(weights=random)");
  for (const ParamInfo& param : info.params) {
    if (param.name == "min_len") continue;
    for (const double value : {param.min, param.max}) {
      std::string spec = fmt::format("{}({}={})", info.name, param.name, value);
      try {
        make_method(spec, SiteFixture(SiteShape{}, 0).method_shape());
        specs.push_back(std::move(spec));
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()), "");  // refused beside the other defaults: a sentence, not a crash
      }
    }
  }
  return specs;
}

// Lengths 1..257 in steps that meet one row, one slot, a block, one more than a block; with and without a prefix.
#ifdef __SANITIZE_ADDRESS__  // which makes these tests ten times as slow: fewer of each kind
constexpr std::array kLengths = {1, 63, 64, 129, 257};
constexpr std::array kPrefixes = {0, 77};
#else
constexpr std::array kLengths = {1, 2, 31, 63, 64, 65, 100, 127, 128, 129, 192, 193, 255, 256, 257};
constexpr std::array kPrefixes = {0, 1, 64, 77};
#endif

std::vector<SiteShape> shapes() {
  std::vector<SiteShape> all;
  for (const int32_t n : kLengths) {
    for (const int32_t prefix : kPrefixes) {
      all.push_back({.n_q = n, .n_k = n + prefix, .n_head = 2, .n_head_kv = 1, .head_dim = 8});
    }
  }
  all.push_back({.n_q = 300, .n_k = 300, .n_head = 6, .n_head_kv = 2, .head_dim = 16});
  all.push_back({.n_q = 190, .n_k = 460, .n_head = 4, .n_head_kv = 4, .head_dim = 24});
  all.push_back({.n_q = 700, .n_k = 700, .n_head = 2, .n_head_kv = 2, .head_dim = 16, .contrast = 4});
  all.push_back({.n_q = 700, .n_k = 700, .n_head = 2, .n_head_kv = 1, .head_dim = 16, .contrast = 0});
  return all;
}

// Every other slot of the prefix is gone from the last kv head, as after an eviction in an earlier turn.
void make_ragged(SiteFixture& fixture) {
  std::vector<int32_t> kept;
  const SiteShape& shape = fixture.shape();
  for (int32_t slot = 0; slot < shape.n_k; ++slot) {
    if (slot % 2 == 0 || slot >= shape.n_k - shape.n_q) kept.push_back(slot);
  }
  fixture.keep(shape.n_head_kv - 1, kept);
}

void check_selection(const Selection& selection, SiteFixture& fixture) {
  const Site site = fixture.site(ref_ops());
  ASSERT_EQ(test::malformed(selection, site), "");
  const double estimate = selection.estimated_mass.value_or(1);
  ASSERT_TRUE(estimate > 0 && estimate <= 1) << estimate;
  for (int32_t row = 0; row < fixture.shape().n_q; row += 1 + fixture.shape().n_q / 40) {
    if (!selection.everything() && selection.block_of(row) < 0) continue;
    for (int32_t head = 0; head < fixture.shape().n_head; ++head) {
      const int32_t kv = fixture.kv_of(head);
      const std::vector<bool> mask = test::computed(selection, fixture, row, head);
      int32_t own = fixture.n_slots(kv) - 1;
      while (fixture.position(kv, own) > fixture.limit(row)) --own;
      ASSERT_TRUE(mask[static_cast<size_t>(own)]) << "row " << row << " does not see itself";
    }
  }
  AttnCounts counts;
  for (const float value : test::attend(site, selection, nullptr, &counts)) ASSERT_TRUE(std::isfinite(value));
  ASSERT_LE(counts.computed, counts.permitted);
}

void check_edit(const KvEdit& edit, SiteFixture& fixture, const std::string& spec) {
  if (edit.head.empty()) return;
  ASSERT_EQ(edit.head.size(), static_cast<size_t>(fixture.shape().n_head_kv));
  size_t n_kept = 0;
  for (int32_t kv = 0; kv < fixture.shape().n_head_kv; ++kv) {
    const KvEdit::Head& head = edit.head[static_cast<size_t>(kv)];
    n_kept += head.all ? static_cast<size_t>(fixture.n_slots(kv)) : head.keep.size();
    if (head.all) continue;
    ASSERT_FALSE(head.keep.empty());
    ASSERT_EQ(head.keep.back(), fixture.n_slots(kv) - 1) << "the last slot is gone";
    ASSERT_GE(head.keep.front(), 0);
    ASSERT_EQ(std::adjacent_find(head.keep.begin(), head.keep.end(), std::greater_equal<>()), head.keep.end());
  }
  const MethodInfo& info = find_method(parse_spec(spec).name);
  const Params params = resolve(parse_spec(spec), info.params, info.texts);
  for (const ParamInfo& param : info.params) {
    if (param.name != "budget") continue;
    ASSERT_LE(static_cast<double>(n_kept), params.number("budget") * fixture.shape().n_head_kv);
  }
}

// Those of the slots that all kv heads hold are the candidates.
void check_pruner(Pruner& pruner, const Site& site) {
  std::vector<int32_t> candidate;
  candidate.reserve(static_cast<size_t>(site.kv.heads.back().n_slots));
  for (int32_t slot = 0; slot < site.kv.heads.back().n_slots; ++slot) {
    candidate.push_back(site.kv.heads.back().position(slot));
  }
  const std::vector<int32_t> kept = pruner.prune(site, candidate);
  if (kept.empty()) return;
  ASSERT_EQ(kept.back(), static_cast<int32_t>(candidate.size()) - 1) << "the last token is gone";
  ASSERT_GE(kept.front(), 0);
  ASSERT_EQ(std::adjacent_find(kept.begin(), kept.end(), std::greater_equal<>()), kept.end());
}

void check(const std::string& spec, const SiteShape& shape, bool ragged) {
  SCOPED_TRACE(spec + " " + shape.text() + (ragged ? " ragged" : ""));
  SiteFixture fixture(shape, 21);
  if (ragged) make_ragged(fixture);
  const Method method = make_method(spec, fixture.method_shape());
  const Site site = fixture.site(ref_ops());
  if (method.selector != nullptr) {
    const Selection selection = method.selector->select(site);
    check_selection(selection, fixture);
    static test::RefOps threads(3);
    const Selection again = make_method(spec, fixture.method_shape()).selector->select(fixture.site(threads));
    ASSERT_EQ(selection.block_begin, again.block_begin);
    ASSERT_EQ(selection.column, again.column);
    ASSERT_EQ(selection.column_end, again.column_end);
    ASSERT_EQ(selection.rows, again.rows);
    ASSERT_EQ(selection.estimated_mass, again.estimated_mass);
  }
  if (method.compressor != nullptr) {
    check_edit(method.compressor->compress(site, true), fixture, spec);
    check_edit(method.compressor->compress(site, false), fixture, spec);
  }
  if (method.pruner != nullptr) check_pruner(*make_method(spec, fixture.method_shape(4)).pruner, site);
}

class EveryMethod : public ::testing::TestWithParam<const MethodInfo*> {};

TEST_P(EveryMethod, DescribesItself) {
  const MethodInfo& info = *GetParam();
  EXPECT_FALSE(info.title.empty());
  EXPECT_NE(info.paper.find("arXiv"), std::string_view::npos);
  EXPECT_EQ(parse_spec(info.neutral).name, info.name);
  for (const ParamInfo& param : info.params) {
    EXPECT_FALSE(param.meaning.empty()) << param.name;
    EXPECT_LE(param.min, param.initial) << param.name;
    EXPECT_LE(param.initial, param.max) << param.name;
  }
  const Method method = make_method(std::string(info.name), {1, 2, 1, 16});
  const auto has = [&](std::string_view part) { return info.parts.find(part) != std::string_view::npos; };
  EXPECT_EQ(method.selector != nullptr, has("selector"));
  EXPECT_EQ(method.compressor != nullptr, has("compressor"));
  EXPECT_EQ(method.pruner != nullptr, has("pruner"));
  EXPECT_EQ(method.skip.prefill > 0 || method.skip.decode > 0, has("skip-softmax"));
  EXPECT_EQ(info.knob.param.empty(), !has("selector")) << "what selects has a knob";
}

TEST_P(EveryMethod, KeepsTheLawsOnAllShapesAndParameters) {
  for (const std::string& spec : specs_of(*GetParam())) {
    for (const SiteShape& shape : shapes()) {
      check(spec, shape, false);
      if (shape.n_k > shape.n_q) check(spec, shape, true);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(EveryMethod, NeutralParametersAreDenseAttention) {
  for (const SiteShape& shape : shapes()) {
    SCOPED_TRACE(shape.text());
    SiteFixture fixture(shape, 22);
    const Method method = make_method(std::string(GetParam()->neutral), fixture.method_shape());
    const Site site = fixture.site(ref_ops());
    if (method.selector != nullptr) {
      const Selection selection = method.selector->select(site);
      AttnCounts counts;
      const std::vector<float> dense = test::attend(site, {}), sparse = test::attend(site, selection, nullptr, &counts);
      EXPECT_EQ(counts.computed, counts.permitted);
      for (size_t i = 0; i < dense.size(); ++i) ASSERT_NEAR(dense[i], sparse[i], 1e-5) << i;
    }
    if (method.compressor != nullptr) {
      for (const bool prefill : {true, false}) {
        const KvEdit edit = method.compressor->compress(site, prefill);
        for (const KvEdit::Head& head : edit.head) EXPECT_TRUE(head.all && head.merge.empty());
      }
      EXPECT_TRUE(method.compressor->select_row(site).everything());
    }
    if (method.pruner != nullptr) {
      EXPECT_TRUE(method.pruner->prune(site, site.limit).empty());
    }
    EXPECT_EQ(method.skip.prefill, 0);
    EXPECT_EQ(method.skip.decode, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Roster, EveryMethod, ::testing::ValuesIn(method_roster().begin(), method_roster().end()),
                         [](const auto& instance) { return std::string(instance.param->name); });

}  // namespace
}  // namespace winnow
