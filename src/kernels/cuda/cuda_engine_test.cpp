// Whole runs on the GPU: tiny models of every architecture and every method, against the same runs on ref.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cuda/gpu_fixture.h"
#include "tiny_engine.h"

namespace winnow {
namespace {

// Activations in bf16: 8 bits of mantissa at every op. Rows of tiny models are too short for rounding to average out.
constexpr double kBound = 0.15;

class CudaEngine : public test::GpuTest {
 protected:
  static std::vector<float> logits(const TinyEngine& tiny, const std::vector<std::string>& specs, int32_t n_tokens,
                                   int32_t n_decode) {
    Sequence sequence = tiny.start(specs);
    std::vector<float> result = tiny->prefill(sequence, random_tokens(n_tokens));
    for (int32_t i = 0; i < n_decode; ++i) result = tiny->decode(sequence, i);
    return result;
  }

  /// A method that acts on prompts of a few hundred tokens already.
  static std::string eager(const MethodInfo& info) {
    for (const ParamInfo& param : info.params) {
      if (param.name == "min_len") return std::string(info.name) + "(min_len=0)";
    }
    return std::string(info.name);
  }
};

TEST_F(CudaEngine, ModelsEqualRef) {
  for (const std::string& architecture : tiny_architectures()) {
    for (const Type kv : {Type::f16, Type::q8_0, Type::fp8}) {
      // Values at the border of two codes of fp8 go to either side.
      const double bound = kv == Type::fp8 ? 2 * kBound : kBound;
      const TinyEngine here(architecture, {.kv_type = kv}, "ref"), there(architecture, {.kv_type = kv}, "cuda");
      for (const int32_t n : {1, 5, 17, 100, 300}) {
        EXPECT_LT(relative_distance(logits(there, {}, n, 0), logits(here, {}, n, 0)), bound) << architecture << n;
      }
      EXPECT_LT(relative_distance(logits(there, {}, 70, 70), logits(here, {}, 70, 70)), bound) << architecture;
    }
  }
}

TEST_F(CudaEngine, QuantisedWeightsEqualRef) {
  const TinyOptions options{.n_embd = 256, .head_dim = 64, .type = Type::q4_K};
  const TinyEngine here("qwen2", {}, "ref", 2, options), there("qwen2", {}, "cuda", 2, options);
  EXPECT_LT(relative_distance(logits(there, {}, 200, 5), logits(here, {}, 200, 5)), kBound);
}

TEST_F(CudaEngine, ChunksChangeLittle) {
  const TinyEngine whole("gemma3", {}, "cuda");
  const std::vector<float> want = logits(whole, {}, 640, 2);
  for (const Schedule schedule : {Schedule::layer_major, Schedule::chunk_major}) {
    const TinyEngine chunks("gemma3", {.schedule = schedule, .chunk = 96}, "cuda");
    EXPECT_LT(relative_distance(logits(chunks, {}, 640, 2), want), kBound);
  }
}

TEST_F(CudaEngine, CountsEqualRef) {
  const TinyEngine here("gemma3", {}, "ref"), there("gemma3", {}, "cuda");
  Sequence a = here.start(), b = there.start();
  here->prefill(a, random_tokens(200));
  there->prefill(b, random_tokens(200));
  EXPECT_EQ(b.stats().counts.permitted, a.stats().counts.permitted);
  EXPECT_EQ(b.stats().counts.computed, a.stats().counts.computed);
  here->decode(a, 1);
  there->decode(b, 1);
  EXPECT_EQ(b.stats().decode_counts.computed, a.stats().decode_counts.computed);
}

TEST_F(CudaEngine, NeutralMethodsAreDense) {
  const TinyEngine tiny("qwen3", {}, "cuda");
  const std::vector<float> dense = logits(tiny, {}, 640, 3);
  for (const MethodInfo* info : method_roster()) {
    EXPECT_LT(relative_distance(logits(tiny, {std::string(info->neutral)}, 640, 3), dense), 1e-3) << info->name;
  }
}

/// Choices by scores may fall otherwise than on ref where scores are close: only runs are compared that must agree.
TEST_F(CudaEngine, EveryMethodRuns) {
  const TinyEngine tiny("qwen2", {}, "cuda");
  for (const MethodInfo* info : method_roster()) {
    for (const int32_t n : {1, 63, 64, 65, 200, 700}) {
      Sequence sequence = tiny.start({eager(*info)});
      std::vector<float> result = tiny->prefill(sequence, random_tokens(n));
      for (int32_t i = 0; i < 3; ++i) result = tiny->decode(sequence, i);
      for (const float value : result) ASSERT_TRUE(std::isfinite(value)) << info->name << " " << n;
      EXPECT_LE(sequence.stats().counts.computed, sequence.stats().counts.permitted);
      EXPECT_GT(sequence.stats().counts.computed, 0);
      sequence.truncate(n / 2);
      for (const float value : tiny->prefill(sequence, random_tokens(70, 3))) ASSERT_TRUE(std::isfinite(value));
    }
  }
}

TEST_F(CudaEngine, StreamingEqualsRef) {
  const TinyEngine here("llama", {}, "ref"), there("llama", {}, "cuda");
  const std::string spec = "streaming_llm(min_len=0, sinks=4, window=100)";
  EXPECT_LT(relative_distance(logits(there, {spec}, 640, 5), logits(here, {spec}, 640, 5)), kBound);
}

// No scores decide who attends here: the first 300 tokens and the last one.
TEST_F(CudaEngine, RowsThatDoNotAttendEqualRef) {
  const TinyEngine here("qwen3", {}, "ref"), there("qwen3", {}, "cuda");
  const std::string spec = "zipvl(min_len=0, tau=0, protect=300, all_rows=0)";
  EXPECT_LT(relative_distance(logits(there, {spec}, 640, 5), logits(here, {spec}, 640, 5)), kBound);
  Sequence a = here.start({spec}), b = there.start({spec});
  here->prefill(a, random_tokens(640));
  there->prefill(b, random_tokens(640));
  EXPECT_EQ(b.stats().counts.permitted, a.stats().counts.permitted);
  EXPECT_EQ(b.stats().counts.computed, a.stats().counts.computed);
}

TEST_F(CudaEngine, EvictionKeepsTheBudget) {
  const TinyEngine tiny("llama", {}, "cuda");
  Sequence sequence = tiny.start({"snapkv(budget=300, adaptive=0)"});
  tiny->prefill(sequence, random_tokens(640));
  for (int32_t layer = 0; layer < tiny->model().shape().n_layer; ++layer) {
    for (const KvHead& head : sequence.cache().view(layer).heads) EXPECT_EQ(head.n_slots, 300);
  }
  for (const float value : tiny->decode(sequence, 1)) ASSERT_TRUE(std::isfinite(value));
}

TEST_F(CudaEngine, TwoSequencesInABatchEqualTwoAlone) {
  const TinyEngine tiny("qwen2", {}, "cuda");
  Sequence a = tiny.start(), b = tiny.start(), c = tiny.start(), d = tiny.start();
  for (Sequence* sequence : {&a, &c}) tiny->prefill(*sequence, random_tokens(200, 1));
  for (Sequence* sequence : {&b, &d}) tiny->prefill(*sequence, random_tokens(70, 2));
  Sequence* const batch[] = {&c, &d};
  for (int32_t step = 0; step < 3; ++step) {
    const int32_t next[] = {step, step + 9};
    std::vector<float> want = tiny->decode(a, next[0]);
    const std::vector<float> second = tiny->decode(b, next[1]);
    want.insert(want.end(), second.begin(), second.end());
    EXPECT_EQ(tiny->decode(batch, next), want);
  }
}

TEST_F(CudaEngine, ForksShareBlocks) {
  const TinyEngine tiny("qwen2", {}, "cuda");
  Sequence a = tiny.start();
  tiny->prefill(a, random_tokens(100));
  Sequence b = a.fork();
  const std::vector<float> first = tiny->decode(a, 5);
  tiny->decode(b, 7);
  Sequence c = tiny.start();
  tiny->prefill(c, random_tokens(100));
  EXPECT_EQ(tiny->decode(c, 5), first);
}

}  // namespace
}  // namespace winnow
