// The attention of models with planted weights is what src/model/synthetic.h says, in the first layer and in the last.
#include "model/synthetic.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "engine/engine.h"

namespace winnow {
namespace {

constexpr int32_t kRows = 64;
constexpr int32_t kPlantedTokens = 16;
constexpr SyntheticShape kShape = {"small", 8, 512, 8, 2, 128, 128, 500'000};

/// What the last rows of a prompt look at, as means over rows.
class Observer : public Calibration {
 public:
  struct Head {
    int32_t layer, head;
    SyntheticHead plan;
    std::vector<double> log_ratio;  // [distances] ln(p(distance) / p(distance 0)) where both are ordinary tokens
    double mass = 0;                // that lies in what was planted
    double keys = 0;                // share of the keys that hold 90 % of a row's mass
  };

  Observer(std::span<const int32_t> tokens, std::vector<int32_t> distances)
      : tokens_(tokens), distances_(std::move(distances)) {}

  void observe(const Site& site) override {
    const int64_t begin = site.q.n_rows - kRows;
    const ProbeArgs probe = {.q = site.q.rows(begin, kRows),
                             .kv = site.kv,
                             .limit = site.limit.data() + begin,
                             .scale = site.scale,
                             .softcap = 0,
                             .window = 0};
    std::vector<float> probabilities;
    for (int32_t head = 0; head < site.q.n_head; ++head) {
      site.ops.score_window(probe, head, probabilities);
      heads.push_back({site.layer, head, synthetic_head(site.layer, head), {}});
      std::vector<std::span<const float>> rows;
      for (int32_t row = 0; row < kRows; ++row) {
        const auto n = static_cast<size_t>(begin) + static_cast<size_t>(row) + 1;
        rows.emplace_back(probabilities.data() + static_cast<size_t>(row) * tokens_.size(), n);
      }
      measure(rows, heads.back());
    }
  }
  std::string result() const override { return {}; }

  std::vector<Head> heads;

 private:
  void measure(const std::vector<std::span<const float>>& rows, Head& head) const {
    for (const std::span<const float> p : rows) {
      for (size_t slot = 0; slot < p.size(); ++slot) {
        if (is_planted(head.plan, slot, p.size() - 1)) head.mass += double{p[slot]} / kRows;
      }
      head.keys += keys_of_mass(p, 0.9) / kRows;
    }
    for (const int32_t distance : distances_) {
      double sum = 0;
      int n = 0;
      for (const std::span<const float> p : rows) {
        const size_t own = p.size() - 1, slot = own - static_cast<size_t>(distance);
        if (tokens_[own] < kPlantedTokens || tokens_[slot] < kPlantedTokens) continue;
        sum += std::log(double{p[slot]} / double{p[own]});
        ++n;
      }
      head.log_ratio.push_back(sum / n);
    }
  }

  static double keys_of_mass(std::span<const float> p, double mass) {
    std::vector<float> sorted(p.begin(), p.end());
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    size_t n = 0;
    for (double sum = 0; sum < mass && n < sorted.size(); ++n) sum += double{sorted[n]};
    return static_cast<double>(n) / static_cast<double>(p.size());
  }

  bool is_planted(const SyntheticHead& plan, size_t slot, size_t row) const {
    if (tokens_[slot] < kPlantedTokens) return true;
    const auto distance = static_cast<int32_t>(row - slot);
    const auto near = [&](const SyntheticHead::Peak& peak) { return std::abs(distance - peak.distance) <= 32; };
    return distance < 128 || std::any_of(plan.diagonals.begin(), plan.diagonals.end(), near);
  }

  std::span<const int32_t> tokens_;
  std::vector<int32_t> distances_;
};

std::vector<Observer::Head> observe(int64_t n, const std::vector<int32_t>& distances) {
  const std::vector<std::byte> bytes = synthetic_gguf(kShape);
  Engine engine(load_model(Gguf::parse("synthetic", bytes.data(), bytes.size())), make_device("cpu", 2), {});
  const std::vector<int32_t> tokens = synthetic_tokens(n);
  Observer observer(tokens, distances);
  engine.calibrate(tokens, observer);
  return observer.heads;
}

TEST(Synthetic, HeadsLookAtWhatIsPlanted) {
  int n_flat = 0, n_concentrated = 0;
  const std::vector<Observer::Head> heads = observe(3000, {});
  ASSERT_EQ(heads.size(), static_cast<size_t>(kShape.n_layer * kShape.n_head));
  for (const Observer::Head& head : heads) {
    const std::string where = fmt::format("layer {} head {}", head.layer, head.head);
    if (head.plan.flat) {
      EXPECT_GT(head.keys, 0.4) << where;
      ++n_flat;
    } else {
      EXPECT_GT(head.mass, 0.6) << where;
      EXPECT_LT(head.keys, 0.3) << where;
      n_concentrated += head.keys < 0.05 ? 1 : 0;
    }
  }
  const auto n_head = static_cast<int>(heads.size());
  EXPECT_GE(n_flat, n_head / 12);
  EXPECT_LE(n_flat, n_head / 3);
  EXPECT_GE(n_concentrated, (n_head - n_flat) * 3 / 4);
}

TEST(Synthetic, LogitsFollowTheFormula) {
  const std::vector<int32_t> distances = {1, 7, 60, 500, 2500};
  double squares = 0, n = 0;
  for (const Observer::Head& head : observe(3000, distances)) {
    for (size_t i = 0; i < distances.size(); ++i) {
      const double want = synthetic_logit(kShape, head.plan, distances[i]) - synthetic_logit(kShape, head.plan, 0);
      EXPECT_NEAR(head.log_ratio[i], want, 1.5)
          << fmt::format("layer {} head {} distance {}", head.layer, head.head, distances[i]);
      squares += (head.log_ratio[i] - want) * (head.log_ratio[i] - want);
      ++n;
    }
  }
  EXPECT_LT(std::sqrt(squares / n), 0.4);  // noise, less by the root of the rows
}

TEST(Synthetic, APeakHasItsHeightAtItsDistance) {
  for (const SyntheticShape& shape : synthetic_shapes()) {
    SyntheticHead head;
    head.diagonals = {{2000, 10}};
    EXPECT_NEAR(synthetic_logit(shape, head, 2000), 10, 1e-9) << shape.name;
    EXPECT_NEAR(synthetic_logit(shape, head, 2008), synthetic_logit(shape, head, 1992), 1e-9) << shape.name;
    EXPECT_GT(synthetic_logit(shape, head, 2008), 8) << shape.name;
    EXPECT_LT(synthetic_logit(shape, head, 2500), 6) << shape.name;
    head.band.height = 12;
    EXPECT_NEAR(synthetic_logit(shape, head, 0), 12, 6) << shape.name;
  }
}

TEST(Synthetic, LargeShapesShareMatrices) {
  const SyntheticShape& shape = synthetic_shapes().front();
  ASSERT_EQ(shape.name, "llama-3-8b");
  const std::vector<std::byte> bytes = synthetic_gguf(shape);
  EXPECT_LT(bytes.size(), 300'000'000);
  const auto model = load_model(Gguf::parse("synthetic", bytes.data(), bytes.size()));
  EXPECT_EQ(model->shape().n_layer, 32);
  EXPECT_EQ(model->shape().name, "llama-3-8b (random weights)");
  const std::vector<const Weight*> first = model->layer_weights(0), last = model->layer_weights(31);
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_NE(first[i], last[i]);
    EXPECT_EQ(first[i]->data, last[i]->data) << first[i]->name;
  }
}

TEST(Synthetic, Tokens) {
  const std::vector<int32_t> tokens = synthetic_tokens(100'000);
  EXPECT_THAT(std::vector<int32_t>(tokens.begin(), tokens.begin() + 4), ::testing::Each(0));
  EXPECT_EQ(std::vector<int32_t>(tokens.begin(), tokens.begin() + 3000), synthetic_tokens(3000));
  EXPECT_EQ(std::count(tokens.begin() + 4, tokens.end(), 0), 0);
  const auto planted = std::count_if(tokens.begin() + 4, tokens.end(), [](int32_t token) { return token < 16; });
  EXPECT_NEAR(static_cast<double>(planted), 100'000.0 / 256, 150);
  EXPECT_LT(*std::max_element(tokens.begin(), tokens.end()), 4096);
}

}  // namespace
}  // namespace winnow
