// The laws of the project over every method there is: a new file in src/methods is tested here without being listed.
#include <gmock/gmock.h>

#include "tiny_engine.h"

namespace winnow {
namespace {

constexpr int32_t kPrompt = 640;

std::vector<std::string> all_methods() {
  std::vector<std::string> names;
  for (const MethodInfo* info : method_roster()) names.emplace_back(info->name);
  return names;
}

// A method that acts on prompts of a few hundred tokens already.
std::string eager(const MethodInfo& info) {
  for (const ParamInfo& param : info.params) {
    if (param.name == "min_len") return std::string(info.name) + "(min_len=0)";
  }
  return std::string(info.name);
}

class LawTest : public testing::TestWithParam<std::string> {
 protected:
  const MethodInfo& info() const { return find_method(GetParam()); }
  static std::vector<float> logits(const TinyEngine& tiny, const std::vector<std::string>& specs, int32_t n_tokens,
                                   int32_t n_decode) {
    Sequence sequence = tiny.start(specs);
    std::vector<float> result = tiny->prefill(sequence, random_tokens(n_tokens));
    for (int32_t i = 0; i < n_decode; ++i) result = tiny->decode(sequence, i);
    return result;
  }
};

// Law 1. Exactly: a neutral method selects everything, and then the same kernel does the same work.
TEST_P(LawTest, NeutralParametersGiveTheDenseResult) {
  for (const std::string& architecture : tiny_architectures()) {
    const TinyEngine tiny(architecture);
    const std::vector<float> dense = logits(tiny, {}, kPrompt, 3);
    const std::vector<float> neutral = logits(tiny, {std::string(info().neutral)}, kPrompt, 3);
    EXPECT_LT(relative_distance(neutral, dense), 1e-3) << architecture;
  }
}

// Law 3: no crash and no NaN on any length.
TEST_P(LawTest, EveryLength) {
  const TinyEngine tiny("qwen2", {}, "cpu", 2, {.n_layer = 1});
  for (int32_t n = 1; n <= 257; n += n < 140 ? 7 : 3) {
    for (const float value : logits(tiny, {eager(info())}, n, 2)) ASSERT_FALSE(std::isnan(value)) << n;
  }
}

// Law 4. In layer-major prefill chunks only cut the products, so that selections are the same.
TEST_P(LawTest, ChunksOfProductsChangeNothing) {
  const TinyEngine whole("llama", {.chunk = 4096}, "ref");
  const std::vector<float> want = logits(whole, {eager(info())}, kPrompt, 2);
  for (const int32_t chunk : {64, 256}) {
    const TinyEngine tiny("llama", {.chunk = chunk}, "ref");
    EXPECT_LT(relative_distance(logits(tiny, {eager(info())}, kPrompt, 2), want), 1e-4) << chunk;
  }
}

TEST_P(LawTest, ThreadCountChangesNothing) {
  std::vector<std::vector<float>> results;
  for (const int n_threads : {1, 3}) {
    results.push_back(logits(TinyEngine("qwen3", {}, "cpu", n_threads), {eager(info())}, kPrompt, 3));
  }
  EXPECT_EQ(results[0], results[1]);
}

TEST_P(LawTest, TwoSequencesInABatchEqualTwoAlone) {
  const TinyEngine tiny("qwen2");
  const std::vector<std::string> specs = {eager(info())};
  Sequence a = tiny.start(specs), b = tiny.start(specs), c = tiny.start(specs), d = tiny.start(specs);
  for (Sequence* sequence : {&a, &c}) tiny->prefill(*sequence, random_tokens(kPrompt, 1));
  for (Sequence* sequence : {&b, &d}) tiny->prefill(*sequence, random_tokens(70, 2));
  Sequence* const batch[] = {&c, &d};
  for (int32_t step = 0; step < 3; ++step) {
    const int32_t next[] = {step, step + 9};
    std::vector<float> want = tiny->decode(a, next[0]);
    const std::vector<float> second = tiny->decode(b, next[1]);
    want.insert(want.end(), second.begin(), second.end());
    EXPECT_LT(relative_distance(tiny->decode(batch, next), want), 1e-5);
  }
}

// Law 6: reported bytes are those of the blocks and tables that exist.
TEST_P(LawTest, ReportedBytesAreAllocatedBytes) {
  for (const Type type : {Type::f16, Type::q8_0, Type::fp8}) {
    const TinyEngine tiny("qwen2", {.kv_type = type});
    Sequence sequence = tiny.start({eager(info())});
    tiny->prefill(sequence, random_tokens(kPrompt));
    const ModelShape& shape = tiny->model().shape();
    size_t blocks = 0, table = 0;
    for (int32_t layer = 0; layer < shape.n_layer; ++layer) {
      for (const KvHead& head : sequence.cache().view(layer).heads) {
        blocks += static_cast<size_t>((head.n_slots + kBlockSlots - 1) / kBlockSlots);
        if (head.idx != nullptr) table += static_cast<size_t>(head.n_slots) * sizeof(int32_t);
      }
    }
    EXPECT_EQ(sequence.cache().bytes(), blocks * 2 * kv_block_bytes(type, shape.head_dim) + table);
  }
}

// Law 7: after edits the cache can be cut anywhere and goes on.
TEST_P(LawTest, TruncateAfterEditsLeavesAUsableCache) {
  const TinyEngine tiny("gemma3");
  for (const int32_t cut : {0, 1, 63, 64, 65, 320, kPrompt - 1}) {
    Sequence sequence = tiny.start({eager(info())});
    tiny->prefill(sequence, random_tokens(kPrompt));
    tiny->decode(sequence, 1);
    sequence.truncate(cut);
    const std::vector<float> after = tiny->prefill(sequence, random_tokens(100, 3));
    for (const float value : after) ASSERT_FALSE(std::isnan(value));
    EXPECT_EQ(sequence.n_tokens(), cut + 100);
    for (const KvHead& head : sequence.cache().view(0).heads) EXPECT_LE(head.n_slots, cut + 100);
  }
}

TEST_P(LawTest, ChunkMajorPrefillRuns) {
  const TinyEngine tiny("llama", {.schedule = Schedule::chunk_major, .chunk = 128});
  for (const float value : logits(tiny, {eager(info())}, kPrompt, 2)) ASSERT_FALSE(std::isnan(value));
}

INSTANTIATE_TEST_SUITE_P(Methods, LawTest, testing::ValuesIn(all_methods()),
                         [](const auto& tested) { return tested.param; });

}  // namespace
}  // namespace winnow
