// proxyattn: one averaged head ranks the blocks of a group of heads; each head has its own budget.
//
// Paper: Wang et al., "ProxyAttn: Guided Sparse Attention via Representative Heads", arXiv 2509.24745.
// Idea: heads of a layer agree on which tokens matter and differ in how many they need. So the queries and the keys of
// a group of heads are averaged into one proxy head, whose attention among every `stride`-th token ranks the blocks
// once for the group (a block's score for a block of rows is the largest probability between them), and the exact
// attention of each head's last rows says what share of the blocks this head needs to cover `gamma` of its mass. This
// rests on descriptions of the paper, not on its text or code; what they do not say is our choice:
// - A head that needs k of N blocks in the last row of blocks gets ceil(k (m + 1) / N) of the m + 1 that block row m
//   sees. `literal=1` takes k in every row, which makes early rows dense.
// - The first block and those of the rows themselves are always computed, within the count. Ties take the lower block.
// - Blocks are of 128. Without a number of groups there is one for each kv head where there are at most 4 (few keys
//   cancel when they are averaged), else one in all; the paper has 4 for Qwen2.5-7B and 1 for Llama-3.1-8B.
// - Rows after a cached prefix are sampled from their own first one on, and budgets come from their own last rows.
// - Where kv heads hold different slots, after an eviction, each is a group of its own.
// - A softcap is applied to the budgets' probabilities but not to the proxies' scores.
// - On a GPU (H100, 8B shape, time of a prompt beside dense): 4,096 tokens 98 %, 8,192 93 %, 32,768 74 %, 131,072 59 %;
//   choosing takes 7 to 3 % of it.
#include "base/error.h"
#include "methods/lists.h"

namespace winnow {
namespace {

constexpr double kTolerance = 1e-6;  // of a share that floats add up to

struct Settings {
  int32_t groups, stride, block;
  double gamma;
  int64_t min_budget;  // tokens
  bool literal;
};

class ProxyAttn final : public Selector {
 public:
  ProxyAttn(const Settings& settings, const MethodShape& shape) : s_(settings) {
    if (s_.groups == 0) s_.groups = shape.n_head_kv <= 4 ? shape.n_head_kv : 1;
  }

  Selection select(const Site& site) override {
    const std::span<const KvHead> kv = site.kv.heads;
    const auto n_keys = [&](const KvHead& head) { return visible_slots(head, site.limit.back()); };
    const auto within = [&](const KvHead& head) { return n_keys(head) <= s_.min_budget; };
    if (site.q.n_rows <= 1 || s_.gamma >= 1 || std::all_of(kv.begin(), kv.end(), within)) return {};
    const bool alike = std::all_of(kv.begin(), kv.end(), [&](const KvHead& head) {
      return head.idx == nullptr && head.n_slots == kv.front().n_slots;
    });
    const auto n_group = alike ? s_.groups : static_cast<int32_t>(kv.size());
    const ProxyArgs scores = {.q = site.q,
                              .kv = site.kv,
                              .limit = site.limit,
                              .scale = site.scale,
                              .n_group = n_group,
                              .stride = s_.stride,
                              .block = s_.block};
    return site.ops.select_ranked({.scores = scores,
                                   .probe = last_rows(site, std::min<int64_t>(s_.block, site.q.n_rows)),
                                   .share = s_.gamma - kTolerance,
                                   .least = ceil_div(s_.min_budget, s_.block),
                                   .same_all = s_.literal});
  }

 private:
  Settings s_;
};

constexpr double kMany = 1e9;
constexpr ParamInfo kParams[] = {
    {"groups", "proxy heads, a divisor of the kv heads; 0: one for each kv head if there are at most 4, else 1", 0, 0,
     1024, true},
    {"stride", "every stride-th token takes part in scoring: a power of two", 4, 1, 16, true},
    {"gamma", "share of a head's attention mass that sets its budget; 1 computes everything", 0.95, 0, 1, false},
    {"min_budget", "least tokens that a row computes", 2048, 1, kMany, true},
    {"literal", "1: early rows get as many blocks as the last ones, not their share", 0, 0, 1, true},
    {"block", "rows and slots of a block: 64 or 128", 128, 64, 128, true},
    last_rows_param(),
    {"min_len", "tokens in the cache below which prefill is dense", 4096, 0, kMany, true},
};

Method make(const Params& params, const MethodShape& shape) {
  const Settings settings = {.groups = params.whole("groups"),
                             .stride = params.whole("stride"),
                             .block = block_size(params, "proxyattn"),
                             .gamma = params.number("gamma"),
                             .min_budget = params.whole("min_budget"),
                             .literal = params.flag("literal")};
  if (settings.block % settings.stride != 0) {
    fail("proxyattn: stride={} must be a power of two, at most 16", settings.stride);
  }
  if (settings.groups > 0 && shape.n_head_kv % settings.groups != 0) {
    fail("proxyattn: groups={} must divide the model's {} kv heads", settings.groups, shape.n_head_kv);
  }
  Method method;
  method.selector = std::make_unique<ProxyAttn>(settings, shape);
  return method;
}

}  // namespace

namespace roster {

const MethodInfo& method_proxyattn() {
  static const MethodInfo kInfo = {
      .name = "proxyattn",
      .title = "block-sparse prefill; averaged heads rank the blocks, each head has its budget",
      .paper = "ProxyAttn, arXiv 2509.24745",
      .parts = "selector",
      .neutral = "proxyattn(gamma=1)",
      .params = kParams,
      .gpu_min_len = 8192,
      .knob = {.param = "gamma", .dense = 0.99, .sparse = 0.5},
      .texts = {},
      .make = make,
      .calibrate = nullptr,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
