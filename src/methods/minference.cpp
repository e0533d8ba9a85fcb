// minference: every head has one of three sparse patterns; where its lines or blocks lie is estimated for each prompt.
//
// Paper: Jiang et al., "MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention",
// arXiv 2407.02490.
// Idea: what long attention looks like is a property of the head, where it lies is one of the prompt. An A-shape head
// sees the first tokens and a local window. A vertical-slash head sees the key columns and the diagonals that weigh
// most in the exact attention of the last 64 rows. A block-sparse head sees, for each block of rows, the key blocks
// whose mean key scores highest with the mean query. `calibrate` searches, per head, for the pattern that changes the
// attention's output least at equal cost of the kernel.
// Deviations:
// - Without a calibration file every head is vertical-slash with n/32 columns (128 to 1000) and n/16 diagonals (256 to
//   6096): at 100K tokens the paper's default of (1000, 6096), which computes everything up to 6096 tokens, and the
//   same share of a shorter prompt. v_size and s_size set other numbers.
// - Sizes of a calibration file hold for prompts as long as the one it was made with; shorter ones get their share.
// - Block-sparse heads always compute the first block and the diagonal, counted in their budget.
// - The search starts from the paper's settings, but for a prompt of 30K tokens: at other lengths cost and settings
//   shrink in proportion. It looks at eight blocks of 64 rows. Errors are squared, relative, summed over prompts.
// - Rows after a cached prefix probe with their own last 64 rows; columns and distances are those of the slots.
//
// The calibration file: "n_tokens" of the longest prompt, and "layers", per layer and head
// [pattern, size, size, error]: ["vertical_slash", columns, diagonals, e], ["a_shape", first tokens, window, e] or
// ["block_sparse", blocks, 0, e].
#include <array>
#include <cmath>
#include <limits>

#include "attention/lines.h"
#include "base/error.h"
#include "methods/calibration_file.h"
#include "methods/lists.h"
#include "methods/pieces.h"

namespace winnow {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int32_t kBlock = kLineBlock;     // rows and slots
constexpr int64_t kProbe = 64;             // rows
constexpr int32_t kForcedVerticals = 30;   // first columns, always taken; the code's numbers, the paper has none
constexpr int32_t kForcedSlashes = 100;    // shortest distances, always taken
constexpr int32_t kLeastSlashes = 50;      // floor of a given number of diagonals
constexpr int32_t kSampleBlocks = 8;       // query blocks that the search compares outputs on
constexpr int32_t kSearchTokens = 30'000;  // the length that the search's settings belong to
constexpr int32_t kSizeStep = 50;          // of the search, in columns or diagonals at that length

enum class Kind { vertical_slash, a_shape, block_sparse };
constexpr std::array<std::string_view, 3> kKindNames = {"vertical_slash", "a_shape", "block_sparse"};

struct Pattern {
  Kind kind = Kind::vertical_slash;
  int32_t first = 1000, second = 6096;  // the reference's default

  Pattern times(double ratio) const {
    const auto scaled = [ratio](int32_t size) { return static_cast<int32_t>(std::min(std::round(size * ratio), 1e9)); };
    return {kind, scaled(first), scaled(second)};
  }
  bool covers(int32_t n) const {
    if (kind == Kind::block_sparse) return first >= ceil_div(n, kBlock);
    return second >= n || (kind == Kind::vertical_slash && first >= n);
  }
};

// What is known of one head before its pattern is laid out.
struct Estimate {
  int32_t head = 0;
  LineMass mass;                   // vertical-slash
  std::vector<float> pooled_keys;  // [n_block_k, head_dim]; block-sparse
};

int32_t n_keys(const Site& site, const KvHead& kv) {
  return visible_slots(kv, site.limit.back());
}

ProbeArgs probe_of(const Site& site) {
  return last_rows(site, std::min(kProbe, site.q.n_rows));
}

LineBudget budget_of(const Pattern& pattern) {
  return {std::max(pattern.first, kForcedVerticals), std::max(pattern.second, kLeastSlashes), kForcedVerticals,
          kForcedSlashes};
}

Lines choose(const Estimate& estimate, const Pattern& pattern) {
  return pattern.kind == Kind::vertical_slash ? choose_lines(estimate.mass, budget_of(pattern)) : Lines{};
}

void push_blocks(const Site& site, const KvHead& kv, const Pattern& pattern, int64_t row, std::span<float> scores,
                 HeadLists& lists) {
  const int64_t last_row = std::min(row + kBlock, site.q.n_rows) - 1;
  const int32_t first = slot_of_row(site, kv, row) / kBlock, last = slot_of_row(site, kv, last_row) / kBlock;
  const std::span<float> seen = scores.first(static_cast<size_t>(last) + 1);
  seen.front() = kInfinity;
  for (int32_t c = first; c <= last; ++c) seen[static_cast<size_t>(c)] = kInfinity;
  const int64_t n_forced = std::count(seen.begin(), seen.end(), kInfinity);
  for (const int32_t c : top_k(seen, std::max<int64_t>(pattern.first, n_forced))) {
    lists.block_begin.push_back(c * kBlock);
  }
}

// Lists of one head for all rows of `site`, which may be a piece of the site that `estimate` was made on. `lines` are
// what was chosen for this pattern.
HeadLists build(const Site& site, const Estimate& estimate, const Pattern& pattern, const Lines& lines) {
  const KvHead& kv = kv_head_of(site, estimate.head);
  HeadLists lists;
  std::vector<float> pooled_queries, map;  // map: [n_block_q, n_block_k]
  if (pattern.kind == Kind::block_sparse) {
    site.ops.pool_queries(site.q, estimate.head, kBlock, pooled_queries);
    site.ops.score_blocks(pooled_queries, estimate.pooled_keys, site.q.head_dim, site.scale, map);
  }
  const size_t n_block_k = estimate.pooled_keys.size() / static_cast<size_t>(site.q.head_dim);
  for (int64_t row = 0; row < site.q.n_rows; row += kBlock) {
    const int32_t own = slot_of_row(site, kv, row);
    const int32_t n_seen = slot_of_row(site, kv, std::min(row + kBlock, site.q.n_rows) - 1) + 1;
    if (pattern.kind == Kind::vertical_slash) {
      push_lines(lines, own, n_seen, lists);
    } else if (pattern.kind == Kind::a_shape) {
      push_sinks_and_window(lists, pattern.first, std::max(0, own + 1 - std::max(pattern.second, 1)), n_seen, kBlock);
    } else {
      const auto block = static_cast<size_t>(row / kBlock);
      push_blocks(site, kv, pattern, row, std::span(map).subspan(block * n_block_k, n_block_k), lists);
    }
    lists.end_block();
  }
  return lists;
}

class MInference final : public Selector {
 public:
  MInference(const Params& params, const MethodShape& shape)
      : v_size_(params.whole("v_size")),
        s_size_(params.whole("s_size")),
        ratio_(params.number("ratio")),
        n_head_(shape.n_head) {
    const std::string& path = params.text("calibration");
    if (path.empty()) return;
    if (v_size_ != 0 || s_size_ != 0) {
      fail("minference: v_size and s_size cannot be given beside a calibration file, which sets them for each head");
    }
    read_calibration(path, "minference", shape, [&](const nlohmann::json& file) { read(file, shape); });
  }

  Selection select(const Site& site) override {
    if (site.q.n_rows <= 1) return {};
    bool all = true;
    std::vector<Pattern> patterns;
    for (int32_t head = 0; head < site.q.n_head; ++head) {
      const int32_t n = n_keys(site, kv_head_of(site, head));
      patterns.push_back(pattern_of(site.layer, head, n));
      all = all && patterns.back().covers(n);
    }
    if (all) return {};
    if (std::all_of(patterns.begin(), patterns.end(),
                    [](const Pattern& p) { return p.kind == Kind::vertical_slash; })) {
      std::vector<LineBudget> budget;
      std::transform(patterns.begin(), patterns.end(), std::back_inserter(budget), budget_of);
      return site.ops.select_lines({probe_of(site), site.limit, budget});
    }
    const auto group = site.q.n_head / static_cast<int64_t>(site.kv.heads.size());
    std::vector<HeadLists> lists(patterns.size());
    site.ops.for_each(site.q.n_head, [&](int64_t head, int) {
      const Pattern& pattern = patterns[static_cast<size_t>(head)];
      Estimate estimate{.head = static_cast<int32_t>(head), .mass = {}, .pooled_keys = {}};
      std::vector<float> probabilities;
      if (pattern.kind == Kind::vertical_slash) {
        estimate.mass = line_mass(site.ops, probe_of(site), estimate.head, probabilities);
      }
      if (pattern.kind == Kind::block_sparse) {
        site.ops.pool_keys(site.kv, static_cast<int32_t>(head / group), kBlock, estimate.pooled_keys);
      }
      const Lines lines = choose(estimate, pattern);
      HeadLists& own = lists[static_cast<size_t>(head)] = build(site, estimate, pattern, lines);
      if (pattern.kind == Kind::vertical_slash) {
        own.kept.add(share_of_lines(probe_of(site), estimate.head, probabilities, lines));
      }
    });
    return join_lists(lists, kBlock, kBlock);
  }

 private:
  void read(const nlohmann::json& file, const MethodShape& shape) {
    n_tokens_ = file.at("n_tokens").get<int32_t>();
    if (n_tokens_ < 1) fail("n_tokens is {}", n_tokens_);
    for (const nlohmann::json& head : calibrated_heads(file, shape, shape.n_head)) {
      const auto name = head.at(0).get<std::string>();
      const auto* kind = std::find(kKindNames.begin(), kKindNames.end(), name);
      if (kind == kKindNames.end()) fail("there is no pattern \"{}\"", name);
      const Pattern pattern = {static_cast<Kind>(kind - kKindNames.begin()), head.at(1).get<int32_t>(),
                               head.at(2).get<int32_t>()};
      if (pattern.first < 0 || pattern.second < 0) fail("a size is negative");
      calibrated_.push_back(pattern);
    }
  }

  Pattern pattern_of(int32_t layer, int32_t head, int32_t n) const {
    if (!calibrated_.empty()) {
      const Pattern& pattern =
          calibrated_[static_cast<size_t>(layer) * static_cast<size_t>(n_head_) + static_cast<size_t>(head)];
      return pattern.times(ratio_ * std::min(1.0, static_cast<double>(n) / n_tokens_));
    }
    const int32_t columns = v_size_ > 0 ? v_size_ : std::clamp(n / 32, 128, 1000);
    const int32_t diagonals = s_size_ > 0 ? s_size_ : std::clamp(n / 16, 256, 6096);
    return Pattern{Kind::vertical_slash, columns, diagonals}.times(ratio_);
  }

  int32_t v_size_, s_size_;
  double ratio_;
  int32_t n_head_;
  int32_t n_tokens_ = 0;
  std::vector<Pattern> calibrated_;  // [n_layer, n_head] or empty
};

// The offline search: every candidate gets the size at which it costs the kernel what the first, an A-shape, costs.
class Search final : public Calibration {
 public:
  explicit Search(const MethodShape& shape)
      : shape_(shape), heads_(static_cast<size_t>(shape.n_layer) * static_cast<size_t>(shape.n_head)) {}

  void observe(const Site& site) override {
    const auto n_head = static_cast<size_t>(site.q.n_head);
    const std::vector<Site> pieces = sample_blocks(site, kSampleBlocks, kBlock);
    std::vector<std::array<Pattern, kSettings.size()>> patterns(n_head);
    // One Selection for each candidate and piece, from lists of each head.
    std::vector<std::vector<HeadLists>> lists(kSettings.size() * pieces.size(), std::vector<HeadLists>(n_head));
    site.ops.for_each(site.q.n_head, [&](int64_t head, int) {
      Estimate estimate{.head = static_cast<int32_t>(head), .mass = {}, .pooled_keys = {}};
      std::vector<float> probabilities;
      estimate.mass = line_mass(site.ops, probe_of(site), estimate.head, probabilities);
      const auto group = site.q.n_head / static_cast<int64_t>(site.kv.heads.size());
      site.ops.pool_keys(site.kv, static_cast<int32_t>(head / group), kBlock, estimate.pooled_keys);
      for (size_t c = 0; c < kSettings.size(); ++c) {
        const Pattern pattern = fit(pieces, estimate, kSettings[c]);
        patterns[static_cast<size_t>(head)][c] = pattern;
        const Lines lines = choose(estimate, pattern);
        for (size_t i = 0; i < pieces.size(); ++i) {
          lists[c * pieces.size() + i][static_cast<size_t>(head)] = build(pieces[i], estimate, pattern, lines);
        }
      }
    });
    const std::vector<std::vector<double>> errors = measure(pieces, lists);
    const int32_t n = n_keys(site, site.kv.heads.front());
    for (size_t head = 0; head < n_head; ++head) {
      auto& candidates = heads_[static_cast<size_t>(site.layer) * n_head + head];
      for (size_t c = 0; c < kSettings.size(); ++c) {
        candidates[c].error += errors[c][head];
        if (n >= n_tokens_) candidates[c].pattern = patterns[head][c];
      }
    }
    n_tokens_ = std::max(n_tokens_, n);
  }

  std::string result() const override {
    if (n_tokens_ == 0) fail("minference: there is nothing to calibrate on; the model has no full-attention layer");
    nlohmann::ordered_json file = open_calibration("minference", shape_);
    file["n_tokens"] = n_tokens_;
    file["layers"] = nlohmann::ordered_json::array();
    for (size_t i = 0; i < heads_.size(); ++i) {
      if (i % static_cast<size_t>(shape_.n_head) == 0) file["layers"].push_back(nlohmann::ordered_json::array());
      const auto less = [](const Candidate& a, const Candidate& b) { return a.error < b.error; };
      const Candidate& best = *std::min_element(heads_[i].begin(), heads_[i].end(), less);
      file["layers"].back().push_back(
          {kKindNames[static_cast<size_t>(best.pattern.kind)], best.pattern.first, best.pattern.second, best.error});
    }
    return file.dump() + "\n";
  }

 private:
  static constexpr std::array<Pattern, 6> kSettings = {{{Kind::a_shape, 1024, 4096},
                                                        {Kind::vertical_slash, 30, 2048},
                                                        {Kind::vertical_slash, 100, 1800},
                                                        {Kind::vertical_slash, 500, 1500},
                                                        {Kind::vertical_slash, 3000, 200},
                                                        {Kind::block_sparse, 100, 0}}};
  struct Candidate {
    Pattern pattern;  // where no layer was seen, the reference's default
    double error = 0;
  };

  // Slots that the kernel computes for a row, summed over the pieces.
  static int64_t cost(std::span<const Site> pieces, const Estimate& estimate, const Pattern& pattern) {
    int64_t slots = 0;
    const Lines lines = choose(estimate, pattern);
    for (const Site& piece : pieces) {
      const HeadLists lists = build(piece, estimate, pattern, lines);
      slots += static_cast<int64_t>(lists.block_begin.size()) * kBlock + static_cast<int64_t>(lists.column.size());
    }
    return slots;
  }

  // `setting` with its larger size changed, in steps, to where it costs what the first candidate costs.
  static Pattern fit(std::span<const Site> pieces, const Estimate& estimate, const Pattern& setting) {
    const auto n = static_cast<int32_t>(estimate.mass.slash.size());
    const double ratio = std::min(1.0, static_cast<double>(n) / kSearchTokens);
    const Pattern target_pattern = kSettings.front().times(ratio);
    Pattern pattern = setting.times(ratio);
    if (pattern.kind == Kind::a_shape) return pattern;
    const int64_t target = cost(pieces, estimate, target_pattern);
    const int32_t lines_step = std::max(1, static_cast<int32_t>(std::lround(kSizeStep * ratio)));
    const int32_t step = pattern.kind == Kind::block_sparse ? 1 : lines_step;
    int32_t& size = pattern.first > pattern.second ? pattern.first : pattern.second;
    int32_t low = 0, high = ceil_div(n, step);  // in steps; the first that costs the target or more lies in (low, high]
    const auto cost_at = [&](int32_t steps) {
      size = steps * step;
      return cost(pieces, estimate, pattern);
    };
    while (high - low > 1) {
      const int32_t middle = (low + high) / 2;
      (cost_at(middle) >= target ? high : low) = middle;
    }
    const int64_t above = cost_at(high) - target, below = target - cost_at(low);
    size = (low > 0 && below < above ? low : high) * step;
    return pattern;
  }

  // Squared error of the output relative to the dense one. -> [candidate][head]
  static std::vector<std::vector<double>> measure(std::span<const Site> pieces,
                                                  std::span<const std::vector<HeadLists>> lists) {
    const auto n_head = static_cast<size_t>(pieces.front().q.n_head);
    const auto dim = static_cast<size_t>(pieces.front().q.head_dim);
    std::vector<std::vector<double>> errors(kSettings.size(), std::vector<double>(n_head));
    std::vector<double> power(n_head);
    for (size_t i = 0; i < pieces.size(); ++i) {
      const std::vector<float> dense = attend_site(pieces[i], nullptr, nullptr, nullptr);
      for (size_t j = 0; j < dense.size(); ++j) power[j / dim % n_head] += double{dense[j]} * double{dense[j]};
      for (size_t c = 0; c < kSettings.size(); ++c) {
        const Selection selection = join_lists(lists[c * pieces.size() + i], kBlock, kBlock);
        const std::vector<float> sparse = attend_site(pieces[i], &selection, nullptr, nullptr);
        for (size_t j = 0; j < dense.size(); ++j) {
          const double difference = double{sparse[j]} - double{dense[j]};
          errors[c][j / dim % n_head] += difference * difference;
        }
      }
    }
    for (std::vector<double>& of_candidate : errors) {
      for (size_t head = 0; head < n_head; ++head) of_candidate[head] /= std::max(power[head], 1e-30);
    }
    return errors;
  }

  MethodShape shape_;
  std::vector<std::array<Candidate, kSettings.size()>> heads_;  // [n_layer, n_head]
  int32_t n_tokens_ = 0;                                        // of the longest prompt
};

constexpr double kMany = 1e9;
constexpr ParamInfo kParams[] = {
    {"v_size", "key columns of each head; 0: by length", 0, 0, kMany, true},
    {"s_size", "diagonals of each head; 0: by length", 0, 0, kMany, true},
    {"ratio", "factor on all sizes, those of a calibration file too", 1, 0.01, 100, false},
    last_rows_param(),
    {"min_len", "tokens in the cache below which prefill is dense", 4096, 0, kMany, true},
};
constexpr std::string_view kTexts[] = {"calibration"};

Method make(const Params& params, const MethodShape& shape) {
  Method method;
  method.selector = std::make_unique<MInference>(params, shape);
  return method;
}

std::unique_ptr<Calibration> calibrate(const Params&, const MethodShape& shape) {
  return std::make_unique<Search>(shape);
}

}  // namespace

namespace roster {

const MethodInfo& method_minference() {
  static const MethodInfo kInfo = {
      .name = "minference",
      .title = "three sparse patterns for prefill; one per head, placed per prompt",
      .paper = "MInference 1.0, arXiv 2407.02490",
      .parts = "selector",
      .neutral = "minference(s_size=1000000000)",
      .params = kParams,
      .gpu_min_len = 8192,
      .knob = {.param = "ratio", .dense = 4, .sparse = 0.1, .geometric = true},
      .texts = kTexts,
      .make = make,
      .calibrate = calibrate,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
