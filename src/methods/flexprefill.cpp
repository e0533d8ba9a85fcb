// flexprefill: every head decides for every prompt what it computes and how much.
//
// Paper: Lai et al., "FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient Long-Sequence Inference",
// arXiv 2502.20766.
// Idea: the last rows of the prompt are the probe; their exact attention shows which key blocks (verticals) and which
// block distances (slashes) matter, and so many of each are taken that a share gamma of the probe's mass is covered.
// Where the attention of mean queries to mean keys agrees with the exact one (Jensen-Shannon distance below tau), the
// head is query-aware: the pooled map of all blocks is trusted, and its best blocks are added until it too is covered.
// Deviations:
// - A count of tokens becomes one of blocks by dividing by `block`; the reference code divides by 128 for every block
//   size. At the default, 128, they are the same.
// - 0 ln 0 counts as 0 in the divergence; the reference gets a NaN there, and with it vertical-slash.
// - Rows after a cached prefix (a later turn, a chunk) are probed by their own last rows; blocks and distances are
// those
//   of the slots, and a query block that straddles two key blocks computes the union of both rows of the block map.
// - Below `block` rows the probe is all of them.
// - A logit softcap is applied to the probe but not to pooled scores.
#include "attention/cover.h"
#include "base/error.h"
#include "methods/lists.h"

namespace winnow {
namespace {

struct Settings {
  double gamma, tau;
  int32_t block;
  int64_t min_budget, max_budget;  // tokens
};

class FlexPrefill final : public Selector {
 public:
  explicit FlexPrefill(const Settings& settings) : s_(settings) {}

  Selection select(const Site& site) override {
    if (site.q.n_rows <= 1) return {};
    const int32_t least = ceil_div(s_.min_budget, s_.block);
    const int64_t all = cover_all_slots(s_.block, least);
    const auto takes_all = [&](const KvHead& head) { return visible_slots(head, site.limit.back()) <= all; };
    if (std::all_of(site.kv.heads.begin(), site.kv.heads.end(), takes_all)) return {};
    return site.ops.select_cover({.probe = last_rows(site, std::min<int64_t>(s_.block, site.q.n_rows)),
                                  .q = site.q,
                                  .limit = site.limit,
                                  .block = s_.block,
                                  .share = s_.gamma,
                                  .distance = s_.tau,
                                  .least = least,
                                  .most = ceil_div(s_.max_budget, s_.block)});
  }

 private:
  Settings s_;
};

constexpr double kMany = 1e9;
constexpr ParamInfo kParams[] = {
    {"gamma", "share of the probe's attention mass to cover; 1.01 computes everything", 0.9, 0, 1.01, false},
    {"tau", "distance of pooled from exact attention below which a head is query-aware", 0.1, 0, 1, false},
    {"block", "rows and slots of a block: 64 or 128", 128, 64, 128, true},
    {"min_budget", "least tokens of verticals, and of slashes", 1024, 1, kMany, true},
    {"max_budget", "most tokens of verticals, and of slashes", kMany, 1, kMany, true},
    last_rows_param(),
    {"min_len", "tokens in the cache below which prefill is dense", 4096, 0, kMany, true},
};

Method make(const Params& params, const MethodShape&) {
  const Settings settings = {.gamma = params.number("gamma"),
                             .tau = params.number("tau"),
                             .block = block_size(params, "flexprefill"),
                             .min_budget = params.whole("min_budget"),
                             .max_budget = params.whole("max_budget")};
  if (settings.max_budget < settings.min_budget) {
    fail("flexprefill: max_budget={} is below min_budget={}", settings.max_budget, settings.min_budget);
  }
  Method method;
  method.selector = std::make_unique<FlexPrefill>(settings);
  return method;
}

}  // namespace

namespace roster {

const MethodInfo& method_flexprefill() {
  static const MethodInfo kInfo = {
      .name = "flexprefill",
      .title = "block-sparse prefill; pattern and budget chosen per head and prompt",
      .paper = "FlexPrefill, arXiv 2502.20766",
      .parts = "selector",
      .neutral = "flexprefill(gamma=1.01, min_budget=1)",
      .params = kParams,
      .gpu_min_len = 16384,
      .knob = {.param = "gamma", .dense = 0.99, .sparse = 0.5},
      .texts = {},
      .make = make,
      .calibrate = nullptr,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
