// Decode steps sent as graphs: they equal those that are launched kernel by kernel, bit for bit, and graphs are made
// once and used again.
#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/gpu_fixture.h"
#include "tiny_engine.h"

namespace winnow {
namespace {

using Logits = std::vector<std::vector<float>>;

class CudaStep : public test::GpuTest {
 protected:
  static StepCounts counts(const TinyEngine& tiny) { return step_counts(tiny->device()); }

  static Sequence read(const TinyEngine& tiny, const std::vector<std::string>& specs, int32_t n_tokens) {
    Sequence sequence = tiny.start(specs);
    tiny->prefill(sequence, random_tokens(n_tokens));
    return sequence;
  }

  static std::vector<Sequence*> batch_of(std::vector<Sequence>& sequences) {
    std::vector<Sequence*> batch(sequences.size());
    std::ranges::transform(sequences, batch.begin(), [](Sequence& sequence) { return &sequence; });
    return batch;
  }

  /// A step of five other sequences, whose products are cuBLAS's, between any two steps: so hardly a part of a step
  /// does as many launches as that of the step before.
  static Logits one_by_one(const TinyEngine& tiny, Sequence& sequence, int32_t n_steps) {
    std::vector<Sequence> others;
    for (int32_t n = 1; n <= 5; ++n) others.push_back(read(tiny, {}, n));
    const std::vector<Sequence*> batch = batch_of(others);
    const std::vector<int32_t> tokens(batch.size(), 1);
    const StepCounts before = counts(tiny);
    Logits logits;
    for (int32_t i = 0; i < n_steps; ++i) {
      tiny->decode(batch, tokens);
      logits.push_back(tiny->decode(sequence, i));
    }
    const StepCounts after = counts(tiny);
    EXPECT_LT(10 * (after.replayed - before.replayed), after.launches - before.launches);
    return logits;
  }

  static Logits in_graphs(const TinyEngine& tiny, Sequence& sequence, int32_t n_steps) {
    Logits logits;
    for (int32_t i = 0; i < n_steps; ++i) logits.push_back(tiny->decode(sequence, i));
    return logits;
  }

  static void expect_equal(const Logits& got, const Logits& want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) ASSERT_EQ(got[i], want[i]) << "step " << i;
  }
};

TEST_F(CudaStep, GraphsEqualLaunchesAcrossBlocks) {
  for (const std::string& architecture : tiny_architectures()) {
    for (const Type kv : {Type::f16, Type::q8_0, Type::fp8}) {
      const TinyEngine tiny(architecture, {.kv_type = kv}, "cuda");
      const Sequence base = read(tiny, {}, 50);
      Sequence a = base.fork(), b = base.fork();
      const Logits want = one_by_one(tiny, a, 90);  // borders at 64 and 128
      expect_equal(in_graphs(tiny, b, 90), want);
      EXPECT_GT(counts(tiny).replayed, 60 * 8) << architecture;
    }
  }
}

TEST_F(CudaStep, GraphsServeMethods) {
  for (const char* spec : {"snapkv(budget=200)", "streaming_llm(min_len=0, sinks=4, window=100)", "hip(min_len=0)",
                           "blasst(min_len=0, decode=20)"}) {
    const TinyEngine tiny("llama", {}, "cuda", 2, {.n_layer = 4});
    const Sequence base = read(tiny, {spec}, 500);
    Sequence a = base.fork(), b = base.fork();
    const Logits want = one_by_one(tiny, a, 30);
    expect_equal(in_graphs(tiny, b, 30), want);
    EXPECT_EQ(b.stats().decode_counts.computed, a.stats().decode_counts.computed) << spec;
  }
}

TEST_F(CudaStep, GraphsServeSequencesInTurn) {
  const TinyEngine tiny("qwen2", {}, "cuda", 2, {.n_layer = 4});
  const Sequence shorter = read(tiny, {}, 60), longer = read(tiny, {}, 300);
  Sequence a = shorter.fork(), b = longer.fork(), c = shorter.fork(), d = longer.fork();
  const Logits want_a = one_by_one(tiny, a, 40), want_b = one_by_one(tiny, b, 40);
  for (int32_t i = 0; i < 40; ++i) {
    ASSERT_EQ(tiny->decode(c, i), want_a[static_cast<size_t>(i)]) << i;
    ASSERT_EQ(tiny->decode(d, i), want_b[static_cast<size_t>(i)]) << i;
  }
  EXPECT_GT(counts(tiny).replayed, 0);
}

TEST_F(CudaStep, GraphsServeBatches) {
  for (const size_t n : {2U, 3U, 5U}) {
    const TinyEngine tiny("qwen3", {}, "cuda", 2, {.n_layer = 4});
    std::vector<Sequence> alone, batch;
    for (size_t i = 0; i < n; ++i) {
      batch.push_back(read(tiny, {}, static_cast<int32_t>(30 + 50 * i)));
      alone.push_back(batch.back().fork());
    }
    const std::vector<Sequence*> together = batch_of(batch);
    std::vector<Logits> want(n);
    for (size_t i = 0; i < n; ++i) want[i] = one_by_one(tiny, alone[i], 20);
    for (int32_t step = 0; step < 20; ++step) {
      const std::vector<int32_t> tokens(n, step);
      const std::vector<float> got = tiny->decode(together, tokens);
      for (size_t i = 0; i < n; ++i) {
        const std::vector<float>& row = want[i][static_cast<size_t>(step)];
        const auto begin = got.begin() + static_cast<std::ptrdiff_t>(i * row.size());
        const std::vector<float> mine(begin, begin + static_cast<std::ptrdiff_t>(row.size()));
        if (n <= 3) {
          ASSERT_EQ(mine, row) << n << " sequences, step " << step;
        } else {  // by cuBLAS, in another order of sums
          ASSERT_LT(relative_distance(mine, row), 0.15);
        }
      }
    }
  }
}

TEST_F(CudaStep, GraphsAreMadeOnceAndChangeLittle) {
  const TinyEngine tiny("llama", {}, "cuda", 2, {.n_layer = 12});
  Sequence sequence = read(tiny, {}, 100);
  in_graphs(tiny, sequence, 20);
  const StepCounts before = counts(tiny);
  in_graphs(tiny, sequence, 200);
  const StepCounts after = counts(tiny);
  EXPECT_EQ(after.graphs, before.graphs);
  EXPECT_LE(after.graphs, 5);
  const auto launches = static_cast<double>(after.launches - before.launches);
  EXPECT_GT(static_cast<double>(after.replayed - before.replayed), 0.85 * launches);
  EXPECT_LT(static_cast<double>(after.changed - before.changed), 0.1 * launches);
}

}  // namespace
}  // namespace winnow
