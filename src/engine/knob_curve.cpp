#include "engine/knob_curve.h"

#include <algorithm>
#include <utility>

#include "engine/attend_layer.h"
#include "engine/stopwatch.h"
#include "methods/last_rows.h"
#include "methods/recall.h"

namespace winnow {
namespace {

constexpr int kPoints = 9;
constexpr int kLayerStep = 3;
constexpr int32_t kRecallRows = 16;

/// The settings of a knob on trial beside a dense prefill.
class Trials {
 public:
  Trials(Engine& engine, std::span<const std::string> specs) : engine_(engine) {
    const KnobOwner owner = find_knob(specs);
    for (int i = 0; i < kPoints; ++i) {
      Trial trial;
      trial.point.place = static_cast<double>(i) / (kPoints - 1);
      trial.point.value = knob_value(*owner.info, trial.point.place);
      const Policy policy(with_knob(specs, owner, trial.point.value), engine.method_shape());
      trial.methods = policy.make();
      trial.last_rows = policy.last_rows();
      for (const Method& method : trial.methods) {
        if (method.selector != nullptr) trial.selector = method.selector.get();
      }
      if (trial.selector == nullptr)
        fail("{} selects nothing in prefill, so there is nothing to turn", specs[owner.spec]);
      trials_.push_back(std::move(trial));
    }
    for (int32_t layer = 0; layer < last_layer(); ++layer) {
      if (engine.model().attention(layer).window == 0) ++n_full_;
    }
  }

  void observe(const Site& site) {
    if (site.window > 0 || site.layer == last_layer()) return;
    // The second of every three, since the first layer is unlike all others.
    if (n_seen_++ % kLayerStep != std::min(1, n_full_ - 1)) return;
    ++n_tried_;
    const Scratch o = engine_.device().activations(site.q.n_rows, int64_t{site.q.n_head} * site.q.head_dim);
    AttnCounts not_wanted;
    timed(dense_s_, [&] { attend(site, {}, o, not_wanted); });
    for (Trial& trial : trials_) try_one(site, trial, o);
  }

  /// `prefill_s`: of the dense prefill, without what was done here.
  KnobCurve curve(int64_t n_tokens, double prefill_s) const {
    const double layers = n_tried_ == 0 ? 0 : static_cast<double>(n_full_) / n_tried_;
    KnobCurve curve;
    curve.n_tokens = n_tokens;
    curve.attend_s = std::min(dense_s_ * layers, prefill_s);
    curve.rest_s = prefill_s - curve.attend_s;
    for (const Trial& trial : trials_) {
      KnobPoint point = trial.point;
      point.density = trial.counts.density();
      point.recall = trial.recall.n == 0 ? 1 : trial.recall.sum / static_cast<double>(trial.recall.n);
      point.seconds = trial.seconds * layers;
      curve.points.push_back(point);
    }
    return curve;
  }

 private:
  struct Trial {
    KnobPoint point;
    std::vector<Method> methods;
    Selector* selector = nullptr;
    int32_t last_rows = 0;
    AttnCounts counts;
    Recall recall;
    double seconds = 0;
  };

  /// Only a few rows of it are computed.
  int32_t last_layer() const { return engine_.model().shape().n_layer - 1; }

  template <typename Work>
  void timed(double& seconds, const Work& work) {
    engine_.device().sync();
    const Stopwatch watch(seconds);
    work();
    engine_.device().sync();
  }

  void try_one(const Site& site, Trial& trial, Mat o) {
    Selection selection;
    timed(trial.seconds, [&] {
      selection = with_full_rows(trial.selector->select(site), site, trial.last_rows);
      attend(site, selection, o, trial.counts);
    });
    if (selection.everything()) return;
    const Recall recall = sample_recall(site, selection, kRecallRows);
    trial.recall.sum += recall.sum;
    trial.recall.n += recall.n;
  }

  void attend(const Site& site, const Selection& selection, Mat o, AttnCounts& counts) {
    attend_layer(engine_.device(), site, selection, {.o = o.heads(site.q.head_dim), .counts = &counts});
  }

  Engine& engine_;
  std::vector<Trial> trials_;
  int n_full_ = 0, n_seen_ = 0, n_tried_ = 0;  // layers without a window, but for the last
  double dense_s_ = 0;
};

/// Times on a curve's text, told for another length.
class Clock {
 public:
  Clock(const KnobCurve& curve, int64_t n_tokens)
      : rest_(curve.rest_s), ratio_(static_cast<double>(n_tokens) / static_cast<double>(curve.n_tokens)) {}
  double prefill(double attention_s) const { return (rest_ + attention_s * ratio_) * ratio_; }

 private:
  double rest_, ratio_;
};

/// The place between `from` and `to` where a figure that runs straight from a to b is `wanted`.
double place_between(const KnobPoint& from, const KnobPoint& to, double a, double b, double wanted) {
  const double share = a == b ? 0 : std::clamp((wanted - a) / (b - a), 0.0, 1.0);
  return from.place + (to.place - from.place) * share;
}

double place_of_recall(const KnobCurve& curve, const MethodInfo& info, double wanted) {
  const std::vector<KnobPoint>& points = curve.points;
  if (points.front().recall < wanted) {
    fail("a recall of {} is beyond {}: with {}={}, where it computes most, it keeps {:.4f}", wanted, info.name,
         info.knob.param, points.front().value, points.front().recall);
  }
  for (size_t i = 1; i < points.size(); ++i) {
    if (points[i].recall >= wanted) continue;
    return place_between(points[i - 1], points[i], points[i - 1].recall, points[i].recall, wanted);
  }
  return points.back().place;
}

double place_of_speedup(const KnobCurve& curve, const MethodInfo& info, double wanted, int64_t n_tokens) {
  const Clock clock(curve, n_tokens);
  const double dense_s = clock.prefill(curve.attend_s);
  const auto speedup = [&](const KnobPoint& point) { return dense_s / clock.prefill(point.seconds); };
  const double limit = dense_s / clock.prefill(0);
  if (wanted > limit) {
    fail(
        "a speed-up of {} cannot be had at {} tokens: attention is {:.0f}% of the dense prefill there, so that leaving "
        "out all of it would bring {:.2f}",
        wanted, n_tokens, 100 - 100 / limit, limit);
  }
  const std::vector<KnobPoint>& points = curve.points;
  double best = 0;
  for (size_t i = 0; i < points.size(); ++i) {
    best = std::max(best, speedup(points[i]));
    if (speedup(points[i]) < wanted) continue;
    if (i == 0) return points[i].place;
    return place_between(points[i - 1], points[i], clock.prefill(points[i - 1].seconds),
                         clock.prefill(points[i].seconds), dense_s / wanted);
  }
  fail("a speed-up of {} is beyond {} at {} tokens: it reaches {:.2f}, with {}={} ({:.0f}% of attention computed)",
       wanted, info.name, n_tokens, best, info.knob.param, points.back().value, 100 * points.back().density);
}

}  // namespace

KnobCurve measure_knob(Engine& engine, std::span<const std::string> specs, std::span<const int32_t> tokens) {
  Trials trials(engine, specs);
  Sequence sequence = engine.start(Policy());
  auto hook = std::exchange(engine.on_selection, [&](const Site& site, const Selection&) { trials.observe(site); });
  try {
    engine.prefill(sequence, tokens);
  } catch (...) {
    engine.on_selection = std::move(hook);
    throw;
  }
  engine.on_selection = std::move(hook);
  return trials.curve(std::ssize(tokens), sequence.stats().prefill_s);
}

KnobSetting choose_setting(const KnobCurve& curve, const MethodInfo& info, const KnobAim& aim, int64_t n_tokens) {
  const double place =
      aim.recall > 0 ? place_of_recall(curve, info, aim.recall) : place_of_speedup(curve, info, aim.speedup, n_tokens);
  const std::vector<KnobPoint>& points = curve.points;
  size_t after = 1;
  while (after + 1 < points.size() && points[after].place < place) ++after;
  const KnobPoint &from = points[after - 1], &to = points[after];
  const double share = (place - from.place) / (to.place - from.place);
  const auto between = [&](double a, double b) { return a + (b - a) * share; };
  const Clock clock(curve, n_tokens);
  KnobSetting setting;
  setting.value = knob_value(info, place, aim.recall > 0);
  setting.density = between(from.density, to.density);
  setting.recall = between(from.recall, to.recall);
  setting.dense_s = clock.prefill(curve.attend_s);
  setting.speedup = setting.dense_s / clock.prefill(between(from.seconds, to.seconds));
  return setting;
}

}  // namespace winnow
