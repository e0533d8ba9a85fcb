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
#include <array>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "methods/calibration_file.h"
#include "methods/lists.h"
#include "methods/pieces.h"

namespace winnow {
namespace {

constexpr int32_t kBlock = kBlockSlots;  // rows and slots
constexpr int64_t kTogether = 8;         // blocks of rows that are estimated together: the keys are turned once for all
constexpr double kDense = 1e-5;          // a smaller tau keeps everything
constexpr double kTau = 0.008;           // where calibration starts
constexpr double kFloor = 1e-4;          // a tau that would fall to this or below makes the head dense
constexpr int64_t kSampleBlocks = 8;
constexpr double kTheta = 0.1;

struct Settings {
  int32_t sink_blocks, local_blocks;
  int32_t step;  // of the rows that vote; divides kBlock
};

// Rows of a site that vote for one block of rows or several: every step-th, the last one among them.
struct Voters {
  HeadsView rows;
  int64_t first = 0;  // in the site
};

Voters voters(const Site& site, int64_t begin, int64_t end, int64_t step) {
  const int64_t n = (end - begin + step - 1) / step, first = end - 1 - (n - 1) * step;
  HeadsView rows = site.q.rows(first, n);
  rows.stride *= step;
  return {rows, first};
}

// e^x for x <= 0, to 1e-4 of itself: 2^(whole + rest) by the exponent's bits and a polynomial. Compilers make vectors
// of a loop over this, which they do not of std::exp.
float exp_below_zero(float x) {
  const float y = std::max(x * 1.44269504F, -126.0F) + 126.0F;
  const auto whole = static_cast<int32_t>(y);
  const float rest = y - static_cast<float>(whole);
  const float power = 1 + rest * (0.69513F + rest * (0.22764F + rest * 0.07724F));
  return power * std::bit_cast<float>((whole + 1) << 23);
}

// What one row spends on `logits`, whose maximum and denominator so far are `top` and `sum`.
void spend(std::span<const float> logits, float& top, float& sum) {
  float most = top;
  for (const float x : logits) most = std::max(most, x);
  constexpr size_t kLanes = 8;
  std::array<float, kLanes> part{};
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) part[lane] += exp_below_zero(logits[i + lane] - most);
  }
  for (; i < logits.size(); ++i) part[0] += exp_below_zero(logits[i] - most);
  sum *= std::exp(top - most);
  for (const float x : part) sum += x;
  top = most;
}

class Estimate {
 public:
  Estimate(const Settings& settings, const Site& whole)
      : s_(settings),
        scores_(
            whole.ops.low_bit_scores({.q = whole.q, .kv = whole.kv, .scale = whole.scale, .softcap = whole.softcap})) {}

  /// Lists of all heads for the rows of `site`, the whole one or a piece of it. tau [n_head].
  Selection select(const Site& site, std::span<const double> tau) const {
    const int64_t n_block = ceil_div(site.q.n_rows, kBlock), n_part = ceil_div(n_block, kTogether);
    std::vector<HeadLists> parts(static_cast<size_t>(site.q.n_head * n_part));
    site.ops.for_each(std::ssize(parts), [&](int64_t item, int) {
      const auto head = static_cast<int32_t>(item / n_part);
      const int64_t begin = item % n_part * kTogether * kBlock;
      const int64_t end = std::min(begin + kTogether * kBlock, site.q.n_rows);
      push(site, head, {begin, end}, tau[static_cast<size_t>(head)], parts[static_cast<size_t>(item)]);
    });
    std::vector<HeadLists> lists(static_cast<size_t>(site.q.n_head));
    for (size_t i = 0; i < parts.size(); ++i) append(parts[i], lists[i / static_cast<size_t>(n_part)]);
    return join_lists(lists, kBlock, kBlock);
  }

 private:
  struct Rows {
    int64_t begin, end;
  };
  // Key blocks of one block of rows: [0, sink) and [local, end) in any case.
  struct Edges {
    int32_t sink, local, end;
  };

  static void append(const HeadLists& part, HeadLists& lists) {
    const auto offset = static_cast<int32_t>(lists.block_begin.size());
    lists.block_begin.insert(lists.block_begin.end(), part.block_begin.begin(), part.block_begin.end());
    for (size_t i = 1; i < part.block_ptr.size(); ++i) {
      lists.block_ptr.push_back(part.block_ptr[i] + offset);
      lists.column_ptr.push_back(0);
    }
  }

  Edges edges(const Site& site, const KvHead& kv, int64_t begin, int64_t end) const {
    const int32_t diagonal = slot_of_row(site, kv, begin) / kBlock, last = slot_of_row(site, kv, end - 1) / kBlock;
    const int32_t local = std::max(0, diagonal - s_.local_blocks);
    return {std::min(s_.sink_blocks, local), local, last + 1};
  }

  void push(const Site& site, int32_t head, const Rows& rows, double tau, HeadLists& lists) const {
    const KvHead& kv = kv_head_of(site, head);
    const int32_t farthest = edges(site, kv, (rows.end - 1) / kBlock * kBlock, rows.end).local;
    // The last, shorter block has voters of its own: they are counted from its end.
    const int64_t whole = tau < kDense ? rows.begin : rows.begin + (rows.end - rows.begin) / kBlock * kBlock;
    std::vector<float> largest;
    if (whole > rows.begin) estimate(site, head, {rows.begin, whole}, farthest, largest);
    for (int64_t begin = rows.begin; begin < rows.end; begin += kBlock) {
      const int64_t end = std::min(begin + kBlock, rows.end);
      const Edges e = edges(site, kv, begin, end);
      int64_t first_vote = (begin - rows.begin) / s_.step;
      if (begin >= whole && tau >= kDense) {
        estimate(site, head, {begin, end}, farthest, largest);
        first_vote = 0;
      }
      std::vector<uint8_t> kept(static_cast<size_t>(e.end), tau < kDense ? 1 : 0);
      if (tau >= kDense && e.sink < e.local) {
        const std::vector<float> least = thresholds(site, head, {begin, end}, e, std::log(tau));
        const int64_t n_middle = farthest - s_.sink_blocks;
        for (int64_t r = 0; r < std::ssize(least); ++r) {
          const float* of_row = largest.data() + (first_vote + r) * n_middle;
          for (int32_t c = e.sink; c < e.local; ++c) {
            kept[static_cast<size_t>(c)] |= of_row[c - e.sink] > least[static_cast<size_t>(r)] ? 1 : 0;
          }
        }
      }
      for (int32_t c = 0; c < e.end; ++c) {
        if (c < e.sink || c >= e.local || kept[static_cast<size_t>(c)] != 0) lists.block_begin.push_back(c * kBlock);
      }
      lists.end_block();
    }
  }

  // The largest estimated logit of each voter and key block from the sinks to `end`.
  void estimate(const Site& site, int32_t head, const Rows& rows, int32_t end, std::vector<float>& largest) const {
    scores_->score(voters(site, rows.begin, rows.end, s_.step).rows, head,
                   {s_.sink_blocks * kBlock, std::max(end, s_.sink_blocks) * kBlock, kBlock}, largest);
  }

  // m + ln(l) + ln(tau) of each voter of one block of rows.
  std::vector<float> thresholds(const Site& site, int32_t head, const Rows& rows, const Edges& e,
                                double log_tau) const {
    const KvHead& kv = kv_head_of(site, head);
    const Voters vote = voters(site, rows.begin, rows.end, s_.step);
    const int32_t local = e.local * kBlock, end = std::min(e.end * kBlock, kv.n_slots);
    std::vector<float> sink_logits, local_logits, least;
    scores_->score(vote.rows, head, {0, e.sink * kBlock, 1}, sink_logits);
    scores_->score(vote.rows, head, {local, end, 1}, local_logits);
    for (int64_t r = 0; r < vote.rows.n_rows; ++r) {
      const auto n_sink = static_cast<size_t>(e.sink * kBlock), n_local = static_cast<size_t>(end - local);
      const int32_t own = slot_of_row(site, kv, vote.first + r * s_.step);
      float top = -1e30F, sum = 0;
      spend(std::span(sink_logits).subspan(static_cast<size_t>(r) * n_sink, n_sink), top, sum);
      spend(std::span(local_logits)
                .subspan(static_cast<size_t>(r) * n_local, static_cast<size_t>(std::max(0, own + 1 - local))),
            top, sum);
      least.push_back(top + std::log(sum) + static_cast<float>(log_tau));
    }
    return least;
  }

  Settings s_;
  std::unique_ptr<LowBitScores> scores_;
};

class Sale final : public Selector {
 public:
  Sale(const Settings& settings, std::vector<double> tau, int32_t n_head)
      : s_(settings), tau_(std::move(tau)), n_head_(n_head) {}

  Selection select(const Site& site) override {
    if (site.q.n_rows <= 1) return {};
    const auto first = tau_.begin() + (tau_.size() == 1 ? 0 : int64_t{site.layer} * n_head_);
    std::vector<double> tau(static_cast<size_t>(site.q.n_head), *first);
    if (tau_.size() > 1) tau.assign(first, first + n_head_);
    const bool dense = std::all_of(tau.begin(), tau.end(), [](double t) { return t < kDense; });
    const auto near = [&](const KvHead& kv) {
      return ceil_div(kv.n_slots, kBlock) <= s_.sink_blocks + s_.local_blocks + 1;
    };
    if (dense || std::all_of(site.kv.heads.begin(), site.kv.heads.end(), near)) return {};
    return Estimate(s_, site).select(site, tau);
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
    const Estimate estimate(s_, site);
    const std::vector<Site> pieces = sample_blocks(site, kSampleBlocks, kBlock);
    std::vector<std::vector<float>> dense;
    dense.reserve(pieces.size());
    for (const Site& piece : pieces) dense.push_back(attend_site(piece, nullptr, nullptr, nullptr));
    for (bool all_fit = false; !all_fit;) {
      const std::vector<double> error = errors(pieces, dense, estimate, tau);
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
  static std::vector<double> errors(std::span<const Site> pieces, std::span<const std::vector<float>> dense,
                                    const Estimate& estimate, std::span<const double> tau) {
    std::vector<double> error(tau.size()), size(tau.size());
    for (size_t i = 0; i < pieces.size(); ++i) {
      const Selection selection = estimate.select(pieces[i], tau);
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
      .texts = kTexts,
      .make = make,
      .calibrate = calibrate,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
