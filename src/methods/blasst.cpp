// blasst: tiles of keys far below the running maximum are skipped inside the kernel ("skip softmax").
//
// Paper: "BLASST: Dynamic BLocked Attention Sparsity via Softmax Thresholding", arXiv 2512.12087.
// Idea: when a tile's best logit lies more than ln(1/lambda) below the running maximum of every row of its query tile,
// none of its probabilities can reach lambda: its exponentials, values and product are left out. Nothing is estimated
// beforehand and nothing is stored. One lambda does not fit all lengths; lambda = factor / length nearly does, with one
// factor for prefill and one for decode. `calibrate` measures what share of the work a lambda skips at several lengths,
// and fits factor = a * exp(b * sparsity), so that a user may ask for a sparsity.
// Deviations:
// - The tiles are those of this machine's kernels, so a factor made for others skips another share. Initial values are
//   those with which the authors' kernels skip 30 % on Qwen3-30B-A3B; calibrate for the model at hand.
// - A factor that is not below the length would skip everything: such short sequences stay dense.
// - Layers with a sliding window are left alone: they have nothing to gain.
// - On a GPU the votes cost more than they save (a million tokens, 73 % computed: 1.23 times dense attention's time):
//   there min_len is beyond every length.
// - Calibration reads prompts, and their first eighth, quarter and half as prompts of their own. Prefill is measured on
//   16 blocks of 64 rows, decode on four single rows at the end of each of these prompts; sparsity is counted in
//   (row, key) pairs, not tiles.
// - The fit minimises squared errors of ln(factor), which is what the sparsity is proportional to; the authors'
//   tool fits the factor itself unless told otherwise.
//
// The calibration file: "prefill" and "decode", each {"a", "b", "least", "most", "points"}: the fit, the range of
// measured sparsity that it rests on, and the points [length, lambda, sparsity] themselves.
#include <array>
#include <cmath>
#include <map>

#include "base/error.h"
#include "methods/calibration_file.h"
#include "methods/pieces.h"

namespace winnow {
namespace {

constexpr int64_t kRows = 64;                         // of a sampled query block
constexpr int64_t kSample = 16;                       // query blocks
constexpr int64_t kDecodeRows = 4, kDecodeStep = 16;  // single rows at the end of a prompt, and how far apart
constexpr int64_t kShortest = 512;  // tokens; with fewer, the tiles that are always kept outweigh the others
constexpr std::array<int64_t, 4> kShares = {8, 4, 2, 1};  // a prompt's length by these are the lengths measured
constexpr double kLeast = 0.1, kMost = 0.9;               // sparsities outside say little about the curve
constexpr size_t kFewestPoints = 10;
constexpr double kSteepest = 20;  // of b
constexpr std::array<double, 20> kLambdas = {1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, .01, .02,
                                             .05,  .1,   .2,   .3,   .5,   .7,   .8,   .9,   .95, .99};

struct Point {
  int64_t length;
  double lambda, sparsity;
};

// ln(lambda * length) = ln(a) + b * sparsity.
struct Fit {
  double a = 0, b = 0;
};

Fit least_squares(std::span<const Point> points) {
  double sx = 0, sy = 0, sxx = 0, sxy = 0;
  for (const Point& point : points) {
    const double y = std::log(point.lambda * static_cast<double>(point.length));
    sx += point.sparsity;
    sy += y;
    sxx += point.sparsity * point.sparsity;
    sxy += point.sparsity * y;
  }
  const auto n = static_cast<double>(points.size());
  const double spread = n * sxx - sx * sx;
  const double b = spread > 0 ? std::clamp((n * sxy - sx * sy) / spread, 0.0, kSteepest) : 0.0;
  return {std::exp((sy - b * sx) / n), b};
}

// What was computed and permitted at one length, per trial lambda, over all layers and prompts.
using Counts = std::array<AttnCounts, kLambdas.size()>;

class Phase {
 public:
  /// `counts` of rows whose keys, all of them, are the first `length` of a prompt.
  void add(int64_t length, const Counts& counts) {
    for (size_t i = 0; i < counts.size(); ++i) {
      AttnCounts& sum = by_length_[length][i];
      sum.permitted += counts[i].permitted;
      sum.computed += counts[i].computed;
    }
  }

  nlohmann::ordered_json result(std::string_view name) const {
    std::vector<Point> points;
    for (const auto& [length, counts] : by_length_) {
      for (size_t i = 0; i < counts.size(); ++i) {
        const double sparsity = 1 - counts[i].density();
        if (sparsity >= kLeast && sparsity <= kMost) points.push_back({length, kLambdas[i], sparsity});
      }
    }
    if (points.size() < kFewestPoints) {
      fail(
          "blasst: {} of the measured points of {} lie between 10 and 90 % sparsity, and the fit needs {}; calibrate "
          "on "
          "more or longer prompts",
          points.size(), name, kFewestPoints);
    }
    const Fit fit = least_squares(points);
    const auto less = [](const Point& a, const Point& b) { return a.sparsity < b.sparsity; };
    const auto [least, most] = std::minmax_element(points.begin(), points.end(), less);
    nlohmann::ordered_json json = {
        {"a", fit.a}, {"b", fit.b}, {"least", least->sparsity}, {"most", most->sparsity}, {"points", nullptr}};
    for (const Point& point : points) json["points"].push_back({point.length, point.lambda, point.sparsity});
    return json;
  }

 private:
  std::map<int64_t, Counts> by_length_;
};

Counts measure(const Site& piece) {
  Counts counts;
  for (size_t i = 0; i < kLambdas.size(); ++i) {
    const std::vector<float> skip(static_cast<size_t>(piece.q.n_head), static_cast<float>(std::log(kLambdas[i])));
    attend_site(piece, nullptr, skip.data(), &counts[i]);
  }
  return counts;
}

// The lengths that a prompt of n tokens is measured at.
std::vector<int64_t> lengths_of(int64_t n) {
  std::vector<int64_t> lengths;
  for (const int64_t share : kShares) {
    if (share == 1 || n / share >= kShortest) lengths.push_back(n / share);
  }
  return lengths;
}

class Fitting final : public Calibration {
 public:
  explicit Fitting(const MethodShape& shape) : shape_(shape) {}

  void observe(const Site& site) override {
    const int64_t n = site.limit.back() + 1;
    const auto lengths = lengths_of(n);
    // The vote compares logits with lambda alone: one measurement serves every length that a row belongs to.
    for (const Site& piece : sample_blocks(site, kSample, kRows)) {
      const Counts counts = measure(piece);
      for (const int64_t length : lengths) {
        if (piece.limit.back() < length) prefill_.add(length, counts);
      }
    }
    for (const int64_t length : lengths) {
      for (int64_t i = 0; i < kDecodeRows; ++i) {
        const int64_t row = site.q.n_rows - 1 - (n - length) - i * kDecodeStep;
        if (row < 0) break;
        Site one = site;
        one.q = site.q.rows(row, 1);
        one.limit = site.limit.subspan(static_cast<size_t>(row), 1);
        decode_.add(length, measure(one));
      }
    }
  }

  std::string result() const override {
    nlohmann::ordered_json file = open_calibration("blasst", shape_);
    file["prefill"] = prefill_.result("prefill");
    file["decode"] = decode_.result("decode");
    return file.dump() + "\n";
  }

 private:
  MethodShape shape_;
  Phase prefill_, decode_;
};

constexpr double kMany = 1e9;
constexpr double kPrefillFactor = 104.97, kDecodeFactor = 2.30, kSparsity = 0.5;
constexpr ParamInfo kParams[] = {
    {"prefill", "factor of prefill, lambda times the length; 0: off", kPrefillFactor, 0, kMany, false},
    {"decode", "factor of decode; 0: off", kDecodeFactor, 0, kMany, false},
    {"prefill_sparsity", "share of prefill to skip, by a calibration file; 0: off", kSparsity, 0, 0.9, false},
    {"decode_sparsity", "the same of decode", kSparsity, 0, 0.9, false},
    {"min_len", "tokens in the cache below which nothing is skipped", 0, 0, kMany, true},
};
constexpr std::string_view kTexts[] = {"calibration"};

Method make(const Params& params, const MethodShape& shape) {
  const double prefill = params.number("prefill"), decode = params.number("decode");
  const double prefill_sparsity = params.number("prefill_sparsity"), decode_sparsity = params.number("decode_sparsity");
  const std::string& path = params.text("calibration");
  Method method;
  if (path.empty()) {
    if (prefill_sparsity != kSparsity || decode_sparsity != kSparsity) {
      fail("blasst: a sparsity needs a calibration file, which says what factor reaches it; give calibration=PATH");
    }
    method.skip = {prefill, decode};
    return method;
  }
  if (prefill != kPrefillFactor || decode != kDecodeFactor) {
    fail(
        "blasst: prefill and decode cannot be given beside a calibration file; give prefill_sparsity, decode_sparsity");
  }
  read_calibration(path, "blasst", shape, [&](const nlohmann::json& file) {
    const auto factor = [&](const char* phase, double sparsity) {
      const Fit fit = {file.at(phase).at("a").get<double>(), file.at(phase).at("b").get<double>()};
      if (!(fit.a >= 0) || !(fit.b >= 0) || fit.b > kSteepest) fail("{}: a={} b={} is no fit", phase, fit.a, fit.b);
      return sparsity == 0 ? 0.0 : fit.a * std::exp(fit.b * sparsity);
    };
    method.skip = {factor("prefill", prefill_sparsity), factor("decode", decode_sparsity)};
  });
  return method;
}

std::unique_ptr<Calibration> calibrate(const Params&, const MethodShape& shape) {
  return std::make_unique<Fitting>(shape);
}

}  // namespace

namespace roster {

const MethodInfo& method_blasst() {
  static const MethodInfo kInfo = {
      .name = "blasst",
      .title = "skips key tiles inside the kernel whose scores are far below the maximum",
      .paper = "BLASST, arXiv 2512.12087",
      .parts = "skip-softmax",
      .neutral = "blasst(prefill=0, decode=0)",
      .params = kParams,
      .gpu_min_len = kNeverGains,
      .knob = {},
      .texts = kTexts,
      .make = make,
      .calibrate = calibrate,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
