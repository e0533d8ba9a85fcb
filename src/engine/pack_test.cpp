// Packed prompts: the bins of the paper's example, and that a prompt read among others is the prompt read alone.
#include "engine/pack.h"

#include <gmock/gmock.h>

#include "tiny_engine.h"

namespace winnow {
namespace {

using testing::ElementsAre;

// Products of few rows use other kernels than products of many; see engine_test.cpp (measured here: at most 0.122).
constexpr double kRefBound = 1e-4, kCpuBound = 0.15;

using Prompts = std::vector<std::vector<int32_t>>;

std::vector<std::span<const int32_t>> spans(const Prompts& prompts) {
  return {prompts.begin(), prompts.end()};
}

Prompts random_prompts(const std::vector<int64_t>& lengths) {
  Prompts prompts;
  for (const int64_t n : lengths) prompts.push_back(random_tokens(n, static_cast<uint32_t>(n)));
  return prompts;
}

/// Sequences that start anew under their policies, and pointers to them.
struct Batch {
  std::vector<Sequence> sequences;
  std::vector<Sequence*> pointers;

  Batch(const TinyEngine& tiny, size_t n, const std::vector<std::vector<std::string>>& specs = {}) {
    for (size_t i = 0; i < n; ++i) {
      sequences.push_back(specs.empty() ? tiny.start() : tiny.start(specs[i % specs.size()]));
    }
    for (Sequence& sequence : sequences) pointers.push_back(&sequence);
  }
};

std::vector<float> row(const std::vector<float>& logits, size_t index, size_t n_rows) {
  const auto n = static_cast<std::ptrdiff_t>(logits.size() / n_rows);
  const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(index) * n;
  return {begin, begin + n};
}

TEST(PackPrompts, WorkedExampleOfTheSpecification) {
  const std::vector<int64_t> lengths = {10, 7, 5, 4, 3, 2};
  EXPECT_THAT(pack_prompts(lengths, 10),
              ElementsAre(ElementsAre(0), ElementsAre(1, 4), ElementsAre(2, 3), ElementsAre(5)));
}

TEST(PackPrompts, EqualLengthsKeepTheirOrderAndLongOnesStandAlone) {
  const std::vector<int64_t> equal = {6, 6, 6};
  EXPECT_THAT(pack_prompts(equal, 6), ElementsAre(ElementsAre(0), ElementsAre(1), ElementsAre(2)));
  const std::vector<int64_t> one_long = {2, 30, 3};
  EXPECT_THAT(pack_prompts(one_long, 8), ElementsAre(ElementsAre(1), ElementsAre(2, 0)));
}

class PackTest : public testing::TestWithParam<std::string> {};

// Logits at the end of every prompt, and three greedy steps after them.
TEST_P(PackTest, EqualsOneByOne) {
  const Prompts prompts = random_prompts({40, 1, 17, 150, 2, 64, 65});
  for (const auto& [device, bound] : {std::pair{"ref", kRefBound}, std::pair{"cpu", kCpuBound}}) {
    const TinyEngine tiny(GetParam(), {}, device);
    Batch batch(tiny, prompts.size());
    const std::vector<float> packed = tiny->prefill(batch.pointers, spans(prompts));
    for (size_t i = 0; i < prompts.size(); ++i) {
      Sequence alone = tiny.start();
      std::vector<float> want = tiny->prefill(alone, prompts[i]);
      std::vector<float> got = row(packed, i, prompts.size());
      EXPECT_LT(relative_distance(got, want), bound) << device << " prompt " << i;
      EXPECT_THAT(batch.sequences[i].tokens(), testing::ElementsAreArray(prompts[i]));
      EXPECT_EQ(batch.sequences[i].stats().counts.permitted, alone.stats().counts.permitted);
      EXPECT_EQ(batch.sequences[i].cache().bytes(), alone.cache().bytes());
      for (int32_t step = 0; step < 3; ++step) {
        want = tiny->decode(alone, step);
        got = tiny->decode(batch.sequences[i], step);
        EXPECT_LT(relative_distance(got, want), bound) << device << " prompt " << i;
      }
    }
  }
}

TEST_P(PackTest, OrderAndChunksChangeNothing) {
  const Prompts prompts = random_prompts({40, 5, 90, 33});
  const Prompts turned = {prompts[2], prompts[0], prompts[3], prompts[1]};
  const size_t place[] = {1, 3, 0, 2};
  const TinyEngine tiny(GetParam(), {}, "ref");
  Batch batch(tiny, prompts.size());
  const std::vector<float> want = tiny->prefill(batch.pointers, spans(prompts));
  for (const int32_t chunk : {32, 4096}) {
    for (const Schedule schedule : {Schedule::layer_major, Schedule::chunk_major}) {
      const TinyEngine other(GetParam(), {.schedule = schedule, .chunk = chunk}, "ref");
      Batch other_batch(other, prompts.size());
      const std::vector<float> got = other->prefill(other_batch.pointers, spans(turned));
      for (size_t i = 0; i < prompts.size(); ++i) {
        EXPECT_LT(relative_distance(row(got, place[i], 4), row(want, i, 4)), kRefBound) << chunk << " prompt " << i;
      }
    }
  }
}

TEST_P(PackTest, APromptDoesNotSeeItsNeighbours) {
  Prompts prompts = random_prompts({40, 70, 9});
  const TinyEngine tiny(GetParam());
  Batch before(tiny, 3), after(tiny, 3);
  const std::vector<float> first = tiny->prefill(before.pointers, spans(prompts));
  prompts[1][35] ^= 1;
  const std::vector<float> second = tiny->prefill(after.pointers, spans(prompts));
  EXPECT_EQ(row(first, 0, 3), row(second, 0, 3));
  EXPECT_NE(row(first, 1, 3), row(second, 1, 3));
  EXPECT_EQ(row(first, 2, 3), row(second, 2, 3));
}

// Each sequence has its own policy and may hold tokens already.
TEST_P(PackTest, PoliciesAndEarlierTokensAreEachSequencesOwn) {
  const TinyEngine tiny(GetParam(), {}, "ref");
  const std::vector<std::vector<std::string>> specs = {
      {}, {"streaming_llm(sinks=4, window=64, min_len=0)"}, {"snapkv(budget=48, window=16)"}};
  Batch batch(tiny, 3, specs), alone(tiny, 3, specs);
  for (Batch* each : {&batch, &alone}) tiny->prefill(each->sequences[1], random_tokens(100, 5));
  const Prompts prompts = random_prompts({140, 200, 120});
  const std::vector<float> packed = tiny->prefill(batch.pointers, spans(prompts));
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_LT(relative_distance(row(packed, i, 3), tiny->prefill(alone.sequences[i], prompts[i])), kRefBound) << i;
    EXPECT_EQ(batch.sequences[i].stats().counts.computed, alone.sequences[i].stats().counts.computed) << i;
    EXPECT_EQ(batch.sequences[i].cache().bytes(), alone.sequences[i].cache().bytes()) << i;
  }
}

TEST_P(PackTest, CancelLeavesAllSequencesAsTheyWere) {
  const TinyEngine tiny(GetParam());
  const std::vector<std::vector<std::string>> specs = {{}, {"snapkv(budget=48, window=16)"}};
  Batch batch(tiny, 2, specs), untouched(tiny, 2, specs);
  for (Batch* each : {&batch, &untouched}) {
    for (Sequence& sequence : each->sequences) tiny->prefill(sequence, random_tokens(100));
  }
  tiny->on_progress = [&](double) { tiny->cancel(); };
  EXPECT_THROW(tiny->prefill(batch.pointers, spans(random_prompts({80, 30}))), Cancelled);
  tiny->on_progress = nullptr;
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(batch.sequences[i].n_tokens(), 100);
    EXPECT_EQ(tiny->decode(batch.sequences[i], 1), tiny->decode(untouched.sequences[i], 1));
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, PackTest, testing::ValuesIn(tiny_architectures()),
                         [](const auto& tested) { return tested.param; });

TEST(PackErrors, NameThePrompt) {
  const TinyEngine tiny("qwen2", {.n_ctx = 100});
  Batch batch(tiny, 2);
  EXPECT_THROW(tiny->prefill(batch.pointers, spans(random_prompts({10, 101}))), Error);
  EXPECT_THROW(tiny->prefill(batch.pointers, spans({{1, 2}, {}})), Error);
  EXPECT_EQ(batch.sequences[0].n_tokens(), 0);
}

// More rows than a bin holds: two passes whose logits come back in the order of the prompts.
TEST(PackBins, LogitsComeInTheOrderOfThePrompts) {
  const TinyEngine tiny("qwen2", {}, "cpu", 2, {.n_layer = 1});
  const Prompts prompts = random_prompts({100, 2500, 50, 2400});
  Batch batch(tiny, prompts.size());
  std::vector<double> shares;
  tiny->on_progress = [&](double share) { shares.push_back(share); };
  const std::vector<float> packed = tiny->prefill(batch.pointers, spans(prompts));
  tiny->on_progress = nullptr;
  for (size_t i = 0; i < prompts.size(); ++i) {
    Sequence alone = tiny.start();
    EXPECT_LT(relative_distance(row(packed, i, 4), tiny->prefill(alone, prompts[i])), kCpuBound) << i;
  }
  EXPECT_TRUE(std::is_sorted(shares.begin(), shares.end()));
  EXPECT_EQ(shares.back(), 1);
}

}  // namespace
}  // namespace winnow
