// The engine over tiny models of every architecture: however a prompt is cut, batched, rolled back or interrupted, the
// logits are those of one plain prefill.
#include "engine/engine.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include "tiny_engine.h"

namespace winnow {
namespace {

// Products of few rows use other kernels than products of many, and the cache rounds K and V to f16 before both: on the
// ref device only the order of sums differs, on cpu the precision of the products too (measured: at most 0.083, where
// products of many rows round weights to 8 bits as well).
constexpr double kRefBound = 1e-4, kCpuBound = 0.12;

class EngineTest : public testing::TestWithParam<std::string> {
 protected:
  static std::vector<float> plain(const TinyEngine& tiny, std::span<const int32_t> tokens) {
    Sequence sequence = tiny.start();
    return tiny->prefill(sequence, tokens);
  }
};

TEST_P(EngineTest, PiecesAndDecodeEqualOnePrefill) {
  for (const auto& [device, bound] : {std::pair{"ref", kRefBound}, std::pair{"cpu", kCpuBound}}) {
    const TinyEngine tiny(GetParam(), {}, device);
    const std::vector<int32_t> tokens = random_tokens(150);
    const std::vector<float> want = plain(tiny, tokens);
    Sequence sequence = tiny.start();
    const std::span<const int32_t> all(tokens);
    tiny->prefill(sequence, all.subspan(0, 70));
    tiny->prefill(sequence, all.subspan(70, 77));
    std::vector<float> logits;
    for (const int32_t token : all.subspan(147)) logits = tiny->decode(sequence, token);
    EXPECT_THAT(sequence.tokens(), testing::ElementsAreArray(tokens));
    EXPECT_LT(relative_distance(logits, want), bound) << device;
  }
}

TEST_P(EngineTest, ChunkSizesAndSchedulesAgree) {
  const std::vector<int32_t> tokens = random_tokens(300);
  const TinyEngine whole(GetParam(), {.chunk = 4096}, "ref");
  const std::vector<float> want = plain(whole, tokens);
  for (const int32_t chunk : {64, 100, 256}) {
    for (const Schedule schedule : {Schedule::layer_major, Schedule::chunk_major}) {
      const TinyEngine tiny(GetParam(), {.schedule = schedule, .chunk = chunk}, "ref");
      EXPECT_LT(relative_distance(plain(tiny, tokens), want), kRefBound) << chunk;
    }
  }
}

// What rounding K and V costs; measured on ref: at most 0.001, 0.008, 0.037 and 0.16.
TEST_P(EngineTest, EveryStorageTypeOfTheCacheStaysNearFloat32) {
  const std::vector<int32_t> tokens = random_tokens(150);
  const TinyEngine exact(GetParam(), {.kv_type = Type::f32}, "ref");
  const std::vector<float> want = plain(exact, tokens);
  const std::pair<Type, double> bounds[] = {
      {Type::f16, 4e-3}, {Type::bf16, 2e-2}, {Type::q8_0, 8e-2}, {Type::fp8, 0.25}};
  for (const auto& [type, bound] : bounds) {
    for (const auto& [device, products] : {std::pair{"ref", 0.0}, std::pair{"cpu", kCpuBound}}) {
      const TinyEngine tiny(GetParam(), {.kv_type = type}, device);
      Sequence sequence = tiny.start();
      tiny->prefill(sequence, std::span(tokens).first(140));
      std::vector<float> logits;
      for (const int32_t token : std::span(tokens).subspan(140)) logits = tiny->decode(sequence, token);
      EXPECT_LT(relative_distance(logits, want), bound + products) << type_info(type).name << " on " << device;
    }
  }
}

TEST_P(EngineTest, NothingIsSkippedBelowTheBreakEven) {
  const TinyEngine tiny(GetParam());
  const std::vector<int32_t> tokens = random_tokens(300);
  for (const bool skips : {true, false}) {
    Sequence sequence = tiny.start({fmt::format("blasst(prefill=0, decode=299, min_len={})", skips ? 301 : 330)});
    tiny->prefill(sequence, tokens);
    for (int32_t token = 0; token < 10; ++token) tiny->decode(sequence, token);
    const AttnCounts& counts = sequence.stats().decode_counts;
    EXPECT_EQ(counts.computed < counts.permitted, skips) << counts.computed << " of " << counts.permitted;
  }
}

TEST_P(EngineTest, TwoSequencesInABatchEqualTwoAlone) {
  const TinyEngine tiny(GetParam());
  const std::vector<int32_t> a = random_tokens(90, 1), b = random_tokens(33, 2);
  Sequence alone_a = tiny.start(), alone_b = tiny.start(), batch_a = tiny.start(), batch_b = tiny.start();
  for (Sequence* sequence : {&alone_a, &batch_a}) tiny->prefill(*sequence, a);
  for (Sequence* sequence : {&alone_b, &batch_b}) tiny->prefill(*sequence, b);
  Sequence* const batch[] = {&batch_a, &batch_b};
  for (int32_t step = 0; step < 5; ++step) {
    const int32_t next[] = {step, 7 * step + 1};
    std::vector<float> want = tiny->decode(alone_a, next[0]);
    const std::vector<float> second = tiny->decode(alone_b, next[1]);
    want.insert(want.end(), second.begin(), second.end());
    EXPECT_LT(relative_distance(tiny->decode(batch, next), want), 1e-5);
  }
}

TEST_P(EngineTest, ThreadCountChangesNothing) {
  const std::vector<int32_t> tokens = random_tokens(200);
  std::vector<std::vector<float>> results;
  for (const int n_threads : {1, 2, 3}) {
    const TinyEngine tiny(GetParam(), {}, "cpu", n_threads);
    Sequence sequence = tiny.start();
    tiny->prefill(sequence, tokens);
    results.push_back(tiny->decode(sequence, 5));
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST_P(EngineTest, TruncateGoesBackToAPrefix) {
  const TinyEngine tiny(GetParam());
  const std::vector<int32_t> tokens = random_tokens(140);
  Sequence fresh = tiny.start();
  tiny->prefill(fresh, std::span(tokens).first(100));
  const std::vector<float> want = tiny->prefill(fresh, std::span(tokens).subspan(100));
  Sequence sequence = tiny.start();
  tiny->prefill(sequence, std::span(tokens).first(100));
  tiny->prefill(sequence, random_tokens(60, 9));
  tiny->decode(sequence, 3);
  sequence.truncate(100);
  EXPECT_EQ(tiny->prefill(sequence, std::span(tokens).subspan(100)), want);
}

TEST_P(EngineTest, LogitsInPiecesAreThoseOfEachPrefix) {
  const TinyEngine tiny(GetParam(), {}, "ref");
  const std::vector<int32_t> tokens = random_tokens(60);
  Sequence sequence = tiny.start();
  int64_t n_seen = 0;
  tiny->prefill(sequence, tokens, 10, [&](int64_t first_row, Mat rows) {
    EXPECT_EQ(first_row, n_seen);
    for (int64_t r = 0; r < rows.rows; ++r) {
      const std::vector<float> got(rows.row(r), rows.row(r) + rows.cols);
      const auto n_prefix = static_cast<size_t>(50 + first_row + r + 1);
      EXPECT_LT(relative_distance(got, plain(tiny, std::span(tokens).first(n_prefix))), kRefBound);
    }
    n_seen += rows.rows;
  });
  EXPECT_EQ(n_seen, 10);
}

// Rows whose logits nobody wants are left out of the last layer; those that are wanted do not notice.
TEST_P(EngineTest, RowsThatNobodyReadsChangeNothing) {
  const std::vector<int32_t> tokens = random_tokens(400);
  for (const EngineOptions& options :
       {EngineOptions{}, EngineOptions{.schedule = Schedule::chunk_major, .chunk = 128}}) {
    const TinyEngine tiny(GetParam(), options, "ref");  // on others, products of many rows round otherwise
    Sequence all = tiny.start(), last = tiny.start();
    std::vector<float> want;
    tiny->prefill(all, tokens, 400, [&](int64_t /*first_row*/, Mat rows) {
      want.assign(rows.row(rows.rows - 1), rows.row(rows.rows - 1) + rows.cols);
    });
    EXPECT_EQ(tiny->prefill(last, tokens), want);
    EXPECT_LT(last.stats().counts.permitted, all.stats().counts.permitted);
    EXPECT_EQ(tiny->decode(last, 1), tiny->decode(all, 1));
  }
}

TEST_P(EngineTest, CancelLeavesTheSequenceAsItWas) {
  const TinyEngine tiny(GetParam());
  for (const std::vector<std::string>& specs :
       {std::vector<std::string>{}, {"streaming_llm(sinks=4,window=32,prefill=0,cache=1)"}, {"snapkv(budget=50)"}}) {
    Sequence sequence = tiny.start(specs), untouched = tiny.start(specs);
    for (Sequence* each : {&sequence, &untouched}) tiny->prefill(*each, random_tokens(100));
    tiny->on_progress = [&](double) { tiny->cancel(); };
    EXPECT_THROW(tiny->prefill(sequence, random_tokens(80, 4)), Cancelled);
    tiny->on_progress = nullptr;
    EXPECT_EQ(sequence.n_tokens(), 100);
    EXPECT_EQ(sequence.cache().bytes(), untouched.cache().bytes());
    EXPECT_EQ(tiny->decode(sequence, 1), tiny->decode(untouched, 1));
    tiny->cancel();
    EXPECT_THROW(tiny->decode(sequence, 2), Cancelled);
    EXPECT_EQ(sequence.n_tokens(), 101);
    EXPECT_EQ(tiny->decode(sequence, 3), tiny->decode(untouched, 3));
  }
}

// Whether the step that is stopped would have let go of slots or not.
TEST_P(EngineTest, CancelTakesBackWhatADecodedTokenDropped) {
  const TinyEngine tiny(GetParam());
  Sequence sequence = tiny.start({"streaming_llm(sinks=4,window=32)"});
  Sequence untouched = tiny.start({"streaming_llm(sinks=4,window=32)"});
  for (Sequence* each : {&sequence, &untouched}) tiny->prefill(*each, random_tokens(50));
  for (int32_t i = 0; i < 70; ++i) {
    tiny->cancel();
    EXPECT_THROW(tiny->decode(sequence, i + 1), Cancelled);
    ASSERT_EQ(tiny->decode(sequence, i), tiny->decode(untouched, i)) << i;
    ASSERT_EQ(sequence.cache().bytes(), untouched.cache().bytes()) << i;
  }
  EXPECT_LT(sequence.cache().view(0).heads[0].n_slots, 4 + 32 + 64);
}

TEST_P(EngineTest, CountsWhatItHolds) {
  const TinyEngine tiny(GetParam());
  const int64_t before = tiny->device().memory().held();
  std::vector<float> logits;
  {
    Sequence sequence = tiny.start();
    logits = tiny->prefill(sequence, random_tokens(130));
    const ModelShape& shape = tiny->model().shape();
    const int64_t blocks = 3;  // of 64 slots, for 130 tokens
    EXPECT_EQ(static_cast<int64_t>(sequence.cache().bytes()),
              blocks * kBlockSlots * 2 * 2 * shape.n_layer * shape.n_head_kv * shape.head_dim);
    EXPECT_GE(tiny->device().memory().peak(), static_cast<int64_t>(sequence.cache().bytes()));
    EXPECT_EQ(sequence.stats().n_prefill, 130);
    EXPECT_EQ(sequence.stats().counts.computed, sequence.stats().counts.permitted);
  }
  EXPECT_GE(tiny->device().memory().held(), before);
}

INSTANTIATE_TEST_SUITE_P(Architectures, EngineTest, testing::ValuesIn(tiny_architectures()),
                         [](const auto& tested) { return tested.param; });

TEST(EngineErrors, NameTheLimit) {
  const TinyEngine tiny("qwen2", {.n_ctx = 100});
  Sequence sequence = tiny.start();
  const auto message = [&](std::span<const int32_t> tokens) -> std::string {
    try {
      tiny->prefill(sequence, tokens);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(message(random_tokens(101)), testing::HasSubstr("101 tokens, and the context holds 100"));
  EXPECT_THAT(message({}), testing::HasSubstr("the prompt is empty"));
  EXPECT_EQ(sequence.n_tokens(), 0);
  tiny->prefill(sequence, random_tokens(100));
  EXPECT_THROW(tiny->decode(sequence, 1), Error);
  EXPECT_THROW(TinyEngine("qwen2", {.n_ctx = 5000}), Error);
  EXPECT_THROW(TinyEngine("qwen2", {.chunk = -1}), Error);
}

}  // namespace
}  // namespace winnow
