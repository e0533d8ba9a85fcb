// sale: every logit is estimated in few bits, and key blocks that cannot matter are left out.
//
// Paper: Ji et al., "SALE: Low-bit Estimation for Efficient Sparse Attention in Long-context LLM Prefilling",
// arXiv 2505.24179.
// Idea: products of rounded queries and keys cost a fraction of attention and miss nothing that pooling blocks would
// blur. The first tokens and the diagonal's neighbourhood are computed in any case; what a row spends on them says how
// large another logit must be to matter: a key block stays if for any row exp(logit - m) / l > tau, m and l being
// maximum and denominator over sink and local keys, frozen. One tau for each head, found by `calibrate`; 0 keeps all.
// Deviations:
// - Eight bits where the paper's GPUs multiply four: the estimate is the verb low_bit_scores, which takes the mean
// query
//   and, unless it reads a cache that is stored in q8_0 already, the mean key out before it rounds.
// - Logits of sink and local keys are estimated, too, by the same numbers; the paper computes these in 16 bits.
// - Key blocks have 64 slots, the kernel's, and not 32; sinks and window are covered by whole blocks.
// - Of a block of 64 rows every step-th votes (8 rows by default): eight-bit products are but two to three times as
//   fast as attention's on a CPU, where four-bit ones are eight times as fast on the paper's GPU. step=1 is the paper.
// - The paper's bound on the calibration's error is absolute, for one model's magnitudes; theta is a share of the dense
//   output's. Errors are compared on eight blocks of 64 rows of each prompt, and all layers see dense inputs.
// - In a layer with a softcap estimates go through it; merged slots' bias is added before it instead of after.
//
// The calibration file: "layers", per layer the tau of each head; 0: dense.
#include <cmath>

#include "attention/outstanding.h"
#include "base/error.h"
#include "methods/calibration_file.h"
#include "methods/lists.h"
#include "methods/pieces.h"

namespace winnow {
namespace {

constexpr int32_t kBlock = kBlockSlots;  // rows and slots
constexpr double kTau = 0.008;           // where calibration starts
constexpr double kFloor = 1e-4;          // a tau that would fall to this or below makes the head dense
constexpr int64_t kSampleBlocks = 8;
constexpr double kTheta = 0.1;

struct Settings {
  int32_t sink_blocks, local_blocks;
  int32_t step;  // of the rows that vote; divides kBlock
};

OutstandingArgs outstanding_of(const Site& site, const Settings& settings, std::span<const double> tau) {
  return {.q = site.q,
          .kv = site.kv,
          .limit = site.limit,
          .scale = site.scale,
          .softcap = site.softcap,
          .sink_blocks = settings.sink_blocks,
          .local_blocks = settings.local_blocks,
          .step = settings.step,
          .tau = tau};
}

class Sale final : public Selector {
 public:
  Sale(const Settings& settings, std::vector<double> tau, int32_t n_head)
      : s_(settings), tau_(std::move(tau)), n_head_(n_head) {}

  Selection select(const Site& site) override {
    if (site.q.n_rows <= 1) return {};
    const auto first = tau_.begin() + (tau_.size() == 1 ? 0 : int64_t{site.layer} * n_head_);
    std::vector<double> tau(static_cast<size_t>(site.q.n_head), *first);
    if (tau_.size() > 1) tau.assign(first, first + n_head_);
    const bool dense = std::all_of(tau.begin(), tau.end(), [](double t) { return t < kNoTau; });
    const auto near = [&](const KvHead& kv) {
      return ceil_div(kv.n_slots, kBlock) <= s_.sink_blocks + s_.local_blocks + 1;
    };
    if (dense || std::all_of(site.kv.heads.begin(), site.kv.heads.end(), near)) return {};
    return site.ops.select_outstanding(outstanding_of(site, s_, tau));
  }

 private:
  Settings s_;
  std::vector<double> tau_;  // [1] or [n_layer * n_head]
  int32_t n_head_;
};

class Thresholds final : public Calibration {
 public:
  Thresholds(const Settings& settings, double theta, const MethodShape& shape)
      : s_(settings),
        theta_(theta),
        shape_(shape),
        tau_(static_cast<size_t>(shape.n_layer), std::vector<double>(static_cast<size_t>(shape.n_head), kTau)) {}

  void observe(const Site& site) override {
    std::vector<double>& tau = tau_[static_cast<size_t>(site.layer)];
    const auto scores =
        site.ops.low_bit_scores({.q = site.q, .kv = site.kv, .scale = site.scale, .softcap = site.softcap});
    const std::vector<Site> pieces = sample_blocks(site, kSampleBlocks, kBlock);
    std::vector<std::vector<float>> dense;
    dense.reserve(pieces.size());
    for (const Site& piece : pieces) dense.push_back(attend_site(piece, nullptr, nullptr, nullptr));
    for (bool all_fit = false; !all_fit;) {
      const std::vector<double> error = errors(pieces, dense, *scores, tau);
      all_fit = true;
      for (size_t head = 0; head < tau.size(); ++head) {
        if (tau[head] == 0 || error[head] < theta_) continue;
        all_fit = false;
        tau[head] /= 2;
        if (tau[head] <= kFloor) tau[head] = 0;
      }
    }
    seen_ = true;
  }

  std::string result() const override {
    if (!seen_) fail("sale: there is nothing to calibrate on; the model has no full-attention layer");
    nlohmann::ordered_json file = open_calibration("sale", shape_);
    file["layers"] = tau_;
    return file.dump() + "\n";
  }

 private:
  // Sum of absolute errors of each head as a share of the dense output's sum.
  std::vector<double> errors(std::span<const Site> pieces, std::span<const std::vector<float>> dense,
                             const LowBitScores& scores, std::span<const double> tau) const {
    std::vector<double> error(tau.size()), size(tau.size());
    for (size_t i = 0; i < pieces.size(); ++i) {
      const Selection selection = outstanding_blocks(pieces[i].ops, outstanding_of(pieces[i], s_, tau), scores);
      const std::vector<float> sparse = attend_site(pieces[i], &selection, nullptr, nullptr);
      const auto dim = static_cast<size_t>(pieces[i].q.head_dim);
      for (size_t j = 0; j < sparse.size(); ++j) {
        error[j / dim % tau.size()] += std::abs(double{sparse[j]} - double{dense[i][j]});
        size[j / dim % tau.size()] += std::abs(double{dense[i][j]});
      }
    }
    for (size_t head = 0; head < tau.size(); ++head) error[head] /= std::max(size[head], 1e-30);
    return error;
  }

  Settings s_;
  double theta_;
  MethodShape shape_;
  std::vector<std::vector<double>> tau_;  // [n_layer][n_head]
  bool seen_ = false;
};

constexpr double kMany = 1e9;
constexpr ParamInfo kParams[] = {
    {"tau", "share of what a row spends on sink and local keys above which a key matters; 0: all do", kTau, 0, 1,
     false},
    {"sinks", "first tokens that every row sees, in whole blocks of 64", 32, 0, kMany, true},
    {"local", "tokens before a block of 64 rows that it sees, in whole blocks of 64", 128, 0, kMany, true},
    {"step", "of each 64 rows every step-th votes: 1, 2, 4, ... 64", 8, 1, kBlock, true},
    {"theta", "for calibrate: error of a head's output that is accepted, as a share of its size", kTheta, 0, 1, false},
    last_rows_param(),
    {"min_len", "tokens in the cache below which prefill is dense", 2048, 0, kMany, true},
};
constexpr std::string_view kTexts[] = {"calibration"};

Settings settings_of(const Params& params) {
  const Settings settings = {.sink_blocks = ceil_div(params.whole("sinks"), kBlock),
                             .local_blocks = ceil_div(params.whole("local"), kBlock),
                             .step = params.whole("step")};
  if (kBlock % settings.step != 0) fail("sale: step={} must be 1, 2, 4, 8, 16, 32 or 64", settings.step);
  return settings;
}

Method make(const Params& params, const MethodShape& shape) {
  const Settings settings = settings_of(params);
  std::vector<double> tau = {params.number("tau")};
  const std::string& path = params.text("calibration");
  if (!path.empty()) {
    if (tau.front() != kTau) fail("sale: tau cannot be given beside a calibration file, which sets it for each head");
    read_calibration(path, "sale", shape, [&](const nlohmann::json& file) {
      tau.clear();
      for (const nlohmann::json& head : calibrated_heads(file, shape, shape.n_head)) {
        tau.push_back(head.get<double>());
        if (!(tau.back() >= 0 && tau.back() <= 1)) fail("a tau is {}, which is not in [0, 1]", tau.back());
      }
    });
  }
  Method method;
  method.selector = std::make_unique<Sale>(settings, std::move(tau), shape.n_head);
  return method;
}

std::unique_ptr<Calibration> calibrate(const Params& params, const MethodShape& shape) {
  return std::make_unique<Thresholds>(settings_of(params), params.number("theta"), shape);
}

}  // namespace

namespace roster {

const MethodInfo& method_sale() {
  static const MethodInfo kInfo = {
      .name = "sale",
      .title = "block-sparse prefill; all logits are estimated in eight bits and held against sink and local mass",
      .paper = "SALE, arXiv 2505.24179",
      .parts = "selector",
      .neutral = "sale(tau=0)",
      .params = kParams,
      .gpu_min_len = 8192,
      .knob = {.param = "tau", .dense = 0.0001, .sparse = 0.2, .geometric = true},
      .texts = kTexts,
      .make = make,
      .calibrate = calibrate,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
