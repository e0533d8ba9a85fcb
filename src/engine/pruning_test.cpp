// The engine under a pruner that revives, against LazyLLM written down plainly: one row at a time, with sets and maps.
#include <gmock/gmock.h>

#include <map>
#include <set>

#include "tiny_engine.h"

namespace winnow {
namespace {

constexpr double kRefBound = 1e-4;
const std::string kLazy =
    "lazyllm(prune=0.4, every=0.3, min_len=0)";  // of four layers: after the first, second and third

using Values = std::vector<float>;

/// LazyLLM by the paper's section 3: sets of tokens, every token's keys and values by layer, the auxiliary cache.
class PlainLazy {
 public:
  PlainLazy(const Engine& engine, Device& device, double prune)
      : model_(engine.model()), device_(device), prune_(prune), layers_(static_cast<size_t>(model_.shape().n_layer)) {}

  Values step(std::span<const int32_t> tokens) {
    std::map<int32_t, Values> flight;  // states of the tokens that this step computes
    for (const int32_t token : tokens) {
      const Scratch x = device_.scratch(1, model_.shape().n_embd);
      model_.embed(device_, {&token, 1}, x);
      flight[n_++] = read(x);
    }
    std::set<int32_t> alive;
    for (int32_t i = 0; i < n_; ++i) alive.insert(i);
    for (size_t l = 0; l < layers_.size(); ++l) {
      for (const int32_t i : alive) {
        if (layers_[l].k.count(i) == 0 && flight.count(i) == 0) flight[i] = layers_[l - 1].states.at(i);
      }
      const std::vector<double> score = layer(static_cast<int32_t>(l), alive, flight);
      if (l + 1 < layers_.size()) drop(l, score, alive, flight);
    }
    const Scratch logits = device_.scratch(1, model_.shape().n_vocab);
    model_.logits(device_, write(flight.at(n_ - 1)), logits);
    return read(logits);
  }

  std::vector<int32_t> held(int32_t l) const {
    std::vector<int32_t> positions;
    for (const auto& [position, k] : layers_[static_cast<size_t>(l)].k) positions.push_back(position);
    return positions;
  }

 private:
  struct Layer {
    std::map<int32_t, Values> k, v, states;
  };

  static Values read(const Scratch& mat) { return {mat->data, mat->data + mat->cols}; }
  Scratch write(const Values& values) {
    Scratch mat = device_.scratch(1, std::ssize(values));
    std::copy(values.begin(), values.end(), mat->data);
    return mat;
  }

  // -> mean attention of the last token on each of `alive`, in their order
  std::vector<double> layer(int32_t l, const std::set<int32_t>& alive, std::map<int32_t, Values>& flight) {
    const ModelShape& shape = model_.shape();
    Layer& here = layers_[static_cast<size_t>(l)];
    std::map<int32_t, Values> queries;
    for (const auto& [i, x] : flight) {
      const Scratch q = device_.scratch(1, int64_t{shape.n_head} * shape.head_dim);
      const Scratch k = device_.scratch(1, int64_t{shape.n_head_kv} * shape.head_dim);
      const Scratch v = device_.scratch(1, int64_t{shape.n_head_kv} * shape.head_dim);
      model_.qkv(device_, l, write(x), {&i, 1}, q, k, v);
      EXPECT_EQ(here.k.count(i), 0U) << "token " << i << " is computed twice in layer " << l;
      queries[i] = read(q);
      here.k[i] = read(k);
      here.v[i] = read(v);
    }
    std::vector<double> score;
    for (auto& [i, x] : flight) {
      Values o(queries[i].size());
      score.assign(alive.size(), 0);
      for (int32_t h = 0; h < shape.n_head; ++h) attend(here, alive, i, h, queries[i], o, score);
      const Scratch mat = write(x);
      model_.mix(device_, l, mat, write(o));
      x = read(mat);
    }
    return score;
  }

  void attend(const Layer& here, const std::set<int32_t>& alive, int32_t i, int32_t h, const Values& q, Values& o,
              std::vector<double>& score) const {
    const ModelShape& shape = model_.shape();
    const auto dim = static_cast<size_t>(shape.head_dim), at = static_cast<size_t>(h) * dim;
    const size_t kv_at = static_cast<size_t>(h / (shape.n_head / shape.n_head_kv)) * dim;
    std::vector<double> weight;
    double sum = 0;
    for (const int32_t j : alive) {
      double logit = 0;
      for (size_t d = 0; d < dim; ++d) logit += double{q[at + d]} * double{here.k.at(j)[kv_at + d]};
      weight.push_back(j > i ? 0 : std::exp(logit * double{model_.attention(0).scale}));
      sum += weight.back();
    }
    size_t index = 0;
    for (const int32_t j : alive) {
      const double p = weight[index] / sum;
      score[index++] += p / shape.n_head;
      for (size_t d = 0; d < dim; ++d) o[at + d] += static_cast<float>(p * double{here.v.at(j)[kv_at + d]});
    }
  }

  void drop(size_t l, const std::vector<double>& score, std::set<int32_t>& alive, std::map<int32_t, Values>& flight) {
    std::vector<std::pair<double, int32_t>> order;
    size_t index = 0;
    for (const int32_t i : alive) {
      order.emplace_back(i == n_ - 1 ? INFINITY : score[index], i);
      ++index;
    }
    std::sort(order.begin(), order.end());
    order.resize(static_cast<size_t>(prune_ * static_cast<double>(alive.size()) + 1e-9));
    for (const auto& [s, i] : order) {
      alive.erase(i);
      if (flight.count(i) != 0 && layers_[l + 1].k.count(i) == 0 && layers_[l].states.count(i) == 0) {
        layers_[l].states[i] = flight.at(i);
      }
      flight.erase(i);
    }
  }

  const Model& model_;
  Device& device_;
  double prune_;
  std::vector<Layer> layers_;
  int32_t n_ = 0;
};

std::vector<int32_t> held(const Sequence& sequence, int32_t layer) {
  std::vector<int32_t> positions;
  positions.reserve(static_cast<size_t>(sequence.n_tokens()));
  const KvHead& head = sequence.cache().view(layer).heads.front();
  for (int32_t slot = 0; slot < head.n_slots; ++slot) positions.push_back(head.position(slot));
  return positions;
}

class PruningTest : public testing::TestWithParam<std::string> {};

TEST_P(PruningTest, EqualsThePlainFormInPrefillDecodeAndASecondTurn) {
  const TinyEngine tiny(GetParam(), {.kv_type = Type::f32, .chunk = 32}, "ref", 1, {.n_layer = 4});
  PlainLazy plain(*tiny.engine, tiny->device(), 0.4);
  Sequence sequence = tiny.start({kLazy});
  const auto expect = [&](const Values& got, const Values& want, const std::string& what) {
    EXPECT_LT(relative_distance(got, want), kRefBound) << what;
    for (int32_t layer = 0; layer < 4; ++layer) EXPECT_EQ(held(sequence, layer), plain.held(layer)) << what << layer;
  };
  const std::vector<int32_t> prompt = random_tokens(90), second = random_tokens(75, 5);
  expect(tiny->prefill(sequence, prompt), plain.step(prompt), "prompt ");
  EXPECT_EQ(sequence.cache().n_slots(3, 0), 20);  // 90 -> 54 -> 33 -> 20
  const size_t n_asleep = sequence.hidden(0).size();
  for (int32_t token = 0; token < 6; ++token) expect(tiny->decode(sequence, token), plain.step({&token, 1}), "decode ");
  expect(tiny->prefill(sequence, second), plain.step(second), "second turn ");
  for (int32_t token = 0; token < 3; ++token) expect(tiny->decode(sequence, token), plain.step({&token, 1}), "decode ");
  EXPECT_EQ(n_asleep, 36U);
  EXPECT_GT(sequence.cache().n_slots(3, 0), 20 + 75 / 4);
}

// A rate that drops nobody runs all of the machinery and changes no bit.
TEST_P(PruningTest, DroppingNobodyIsTheDenseResultToTheBit) {
  const TinyEngine tiny(GetParam(), {}, "cpu", 2, {.n_layer = 4});
  Sequence dense = tiny.start(), lazy = tiny.start({"lazyllm(prune=0.001, min_len=0)"});
  EXPECT_EQ(tiny->prefill(lazy, random_tokens(200)), tiny->prefill(dense, random_tokens(200)));
  for (int32_t token = 0; token < 4; ++token) EXPECT_EQ(tiny->decode(lazy, token), tiny->decode(dense, token));
  EXPECT_EQ(lazy.bytes(), dense.cache().bytes());
  EXPECT_EQ(lazy.stats().counts.permitted, dense.stats().counts.permitted);
  EXPECT_EQ(lazy.stats().counts.computed, dense.stats().counts.computed);
}

// Below the break-even nothing is dropped, and decode goes the common way; from there on the pruner works.
TEST_P(PruningTest, MinLenIsWherePruningBegins) {
  const TinyEngine tiny(GetParam(), {}, "cpu", 2, {.n_layer = 4});
  Sequence dense = tiny.start(), lazy = tiny.start({"lazyllm(prune=0.4, every=0.3, min_len=93)"});
  EXPECT_EQ(tiny->prefill(lazy, random_tokens(90)), tiny->prefill(dense, random_tokens(90)));
  for (int32_t token = 0; token < 2; ++token) EXPECT_EQ(tiny->decode(lazy, token), tiny->decode(dense, token));
  EXPECT_EQ(lazy.bytes(), dense.cache().bytes());
  tiny->decode(lazy, 2);  // the 93rd token
  EXPECT_EQ(lazy.cache().n_slots(3, 0), 92 + 1);
  EXPECT_LT(lazy.stats().decode_counts.density(), 1);
}

TEST_P(PruningTest, DensityIsOfWhatPlainAttentionComputes) {
  const TinyEngine tiny(GetParam(), {}, "cpu", 2, {.n_layer = 4});
  Sequence dense = tiny.start(), lazy = tiny.start({kLazy});
  for (Sequence* sequence : {&dense, &lazy}) tiny->prefill(*sequence, random_tokens(90));
  EXPECT_EQ(lazy.stats().counts.permitted, dense.stats().counts.permitted);
  const auto triangle = [](int64_t n) { return n * (n + 1) / 2; };
  const int64_t computed = triangle(90) + triangle(54) + triangle(33) + triangle(20);
  EXPECT_EQ(lazy.stats().counts.computed, computed * tiny->model().shape().n_head);
}

// Without revival a token stays where it stopped, whatever decode looks at.
TEST_P(PruningTest, StaticPruningLeavesTheCacheAlone) {
  const TinyEngine tiny(GetParam(), {}, "cpu", 2, {.n_layer = 4});
  Sequence sequence = tiny.start({"lazyllm(prune=0.4, every=0.3, revive=0, min_len=0)"});
  tiny->prefill(sequence, random_tokens(90));
  std::vector<std::vector<int32_t>> before;
  before.reserve(4);
  for (int32_t layer = 0; layer < 4; ++layer) before.push_back(held(sequence, layer));
  for (int32_t token = 0; token < 5; ++token) tiny->decode(sequence, token);
  for (int32_t layer = 0; layer < 4; ++layer) {
    std::vector<int32_t>& want = before[static_cast<size_t>(layer)];
    for (int32_t position = 90; position < 95; ++position) want.push_back(position);
    EXPECT_EQ(held(sequence, layer), want);
    EXPECT_EQ(sequence.hidden(layer).size(), 0U);
  }
}

TEST_P(PruningTest, TruncateAndForkKeepWhatTheyNeed) {
  const TinyEngine tiny(GetParam(), {}, "cpu", 2, {.n_layer = 4});
  for (const int32_t cut : {0, 1, 40, 89, 90, 92}) {
    Sequence sequence = tiny.start({kLazy});
    tiny->prefill(sequence, random_tokens(90));
    for (int32_t token = 0; token < 4; ++token) tiny->decode(sequence, token);
    Sequence copy = sequence.fork();
    EXPECT_EQ(copy.bytes(), sequence.bytes());
    for (Sequence* each : {&sequence, &copy}) each->truncate(cut);
    EXPECT_EQ(tiny->prefill(sequence, random_tokens(50, 3)), tiny->prefill(copy, random_tokens(50, 3))) << cut;
    EXPECT_EQ(tiny->decode(sequence, 3), tiny->decode(copy, 3)) << cut;
  }
}

TEST_P(PruningTest, CancelTakesRevivedTokensBack) {
  const TinyEngine tiny(GetParam(), {}, "cpu", 2, {.n_layer = 4});
  Sequence sequence = tiny.start({kLazy}), untouched = tiny.start({kLazy});
  for (Sequence* each : {&sequence, &untouched}) tiny->prefill(*each, random_tokens(100));
  for (const double stop : {0.3, 0.6, 0.9}) {
    tiny->on_progress = [&](double share) {
      if (share > stop) tiny->cancel();
    };
    EXPECT_THROW(tiny->prefill(sequence, random_tokens(80, 4)), Cancelled);
  }
  tiny->on_progress = nullptr;
  EXPECT_EQ(sequence.bytes(), untouched.bytes());
  EXPECT_EQ(tiny->decode(sequence, 1), tiny->decode(untouched, 1));
}

// Packed with others, beside a selector, and decoded in one batch with a plain sequence: each is as it is alone.
TEST_P(PruningTest, WorksBesideSelectorsAndInBatches) {
  const TinyEngine tiny(GetParam(), {}, "ref", 1, {.n_layer = 4});
  const std::vector<std::string> both = {kLazy, "streaming_llm(sinks=4, window=64, cache=0, min_len=0)"};
  const std::vector<std::vector<std::string>> specs = {{kLazy}, {}, both};
  const std::vector<std::vector<int32_t>> prompts = {random_tokens(90, 1), random_tokens(70, 2), random_tokens(300, 3)};
  std::vector<Sequence> alone, batch;
  for (const auto& spec : specs) {
    alone.push_back(tiny.start(spec));
    batch.push_back(tiny.start(spec));
  }
  std::vector<Sequence*> pointers = {&batch[0], &batch[1], &batch[2]};
  const std::vector<std::span<const int32_t>> spans(prompts.begin(), prompts.end());
  const auto compare = [&](const Values& all, size_t i, const Values& want) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(i * want.size());
    EXPECT_LT(relative_distance({begin, begin + static_cast<std::ptrdiff_t>(want.size())}, want), kRefBound) << i;
  };
  const Values packed = tiny->prefill(pointers, spans);
  for (size_t i = 0; i < 3; ++i) compare(packed, i, tiny->prefill(alone[i], prompts[i]));
  for (int32_t token = 0; token < 3; ++token) {
    const std::vector<int32_t> next = {token, token, token};
    const Values together = tiny->decode(pointers, next);
    for (size_t i = 0; i < 3; ++i) compare(together, i, tiny->decode(alone[i], token));
  }
  EXPECT_LT(batch[2].stats().counts.density(), 0.4);
}

INSTANTIATE_TEST_SUITE_P(Architectures, PruningTest, testing::Values("llama", "qwen2", "qwen3"),
                         [](const auto& tested) { return tested.param; });

}  // namespace
}  // namespace winnow
