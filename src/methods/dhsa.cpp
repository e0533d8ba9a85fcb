// dhsa: keys are cut into chunks, chunks are scored by their mean, and each block of rows gets a budget of tokens.
//
// Paper: Xiong et al., "Long-Context Modeling with Dynamic Hierarchical Sparse Attention for On-Device LLMs",
// arXiv 2510.24606.
// Idea: what a block of rows looks at lies in a few stretches of the text. The mean query of a block is multiplied with
// the mean key of every chunk, times the root of the chunk's length, so that a long chunk is not paid for by its weak
// tokens alone; all tokens of a chunk have its score. The budget goes to the last tokens first, then to the best
// others; the first tokens take the places of the lowest ones that were picked. The prompt's last rows, an instruction
// or a question, stay dense. Deviations:
// - Chunks begin where a trained predictor sees boundaries, as in the authors' first generation, if its weights are
// given
//   (parameter `weights`; methods/boundaries.h). They are found in the first layer that is asked and used in all.
//   Without the file, and where kv heads hold different slots, chunks have equal lengths, as in the second generation,
//   which has no predictor. What was published does not settle the number of the predictor's heads (4 or 8: parameter
//   `heads`); that all its products have biases, and 1e-5 in its norm, are the usual choices. Where no logit is above
//   `boundary` the last rows are the only other chunk.
// - Each head chooses by its own means, as in the second generation; shared=1 averages queries and keys over all heads
//   first, as the first does (where all heads have the same slots).
// - A block of rows that holds any of the last rows is dense as a whole. Rows are counted in what is read at once: with
//   chunk-major prefill each chunk has last rows of its own.
// - Of a chunk that the budget ends in, the first tokens are taken; chunks of equal score go by their order.
// - The rest as published: factors that are common to a block's scores are left out, and decode is dense.
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "methods/boundaries.h"
#include "methods/lists.h"

namespace winnow {
namespace {

constexpr int32_t kBlockK = 64;             // slots of a key block of the lists
constexpr int64_t kBoundariesOfABlock = 8;  // of predicted ones, for each block of rows, at most

struct Settings {
  int32_t budget, block, chunk, sinks, recent, last_rows;
  bool shared;
  double boundary;
  int32_t apart, heads;
};

struct Run {
  int32_t begin, end;
};

// Long runs as blocks, what is left of them as columns.
void push_runs(const std::vector<Run>& runs, HeadLists& lists) {
  for (const Run& run : runs) {
    int32_t at = run.begin;
    for (; at + kBlockK <= run.end; at += kBlockK) lists.block_begin.push_back(at);
    for (; at < run.end; ++at) lists.column.push_back(at);
  }
  lists.end_block();
}

class Dhsa final : public Selector {
 public:
  Dhsa(const Settings& settings, std::shared_ptr<const WeightsFile> file) : s_(settings), file_(std::move(file)) {}

  Selection select(const Site& site) override {
    if (site.q.n_rows <= std::max(1, s_.last_rows)) return {};
    const std::span<const KvHead> kv = site.kv.heads;
    if (std::all_of(kv.begin(), kv.end(),
                    [&](const KvHead& head) { return visible_slots(head, site.limit.back()) <= s_.budget; })) {
      return {};
    }
    const bool alike = std::all_of(kv.begin(), kv.end(), [&](const KvHead& head) {
      return head.idx == nullptr && head.n_slots == kv.front().n_slots;
    });
    const bool predicted = file_ != nullptr && alike;
    if (predicted) predict(site);
    std::vector<Chunks> chunks(kv.size());
    for (size_t head = 0; head < kv.size(); ++head) {
      chunks[head] = predicted ? boundaries_ : equal_chunks(kv[head].n_slots);
    }
    const std::vector<std::vector<float>> keys = pool_keys(site, chunks, predicted);
    if (s_.shared && alike) {
      HeadLists lists;
      fill(site, 0, mean_queries(site), {mean(keys), chunks.front()}, lists);
      return join_lists({&lists, 1}, s_.block, kBlockK);
    }
    std::vector<HeadLists> lists(static_cast<size_t>(site.q.n_head));
    const size_t group = lists.size() / kv.size();
    site.ops.for_each(site.q.n_head, [&](int64_t head, int) {
      std::vector<float> queries;
      site.ops.pool_queries(site.q, static_cast<int32_t>(head), s_.block, queries);
      const auto at = static_cast<size_t>(head);
      fill(site, static_cast<int32_t>(head), queries, {keys[at / group], chunks[at / group]}, lists[at]);
    });
    return join_lists(lists, s_.block, kBlockK);
  }

 private:
  using Chunks = std::vector<int32_t>;  // where each begins, and the end
  struct Pooled {
    const std::vector<float>& keys;  // [n_chunk, head_dim]
    const Chunks& chunks;
  };

  Chunks equal_chunks(int32_t n_slots) const {
    Chunks chunks;
    for (int32_t begin = 0; begin < n_slots; begin += s_.chunk) chunks.push_back(begin);
    chunks.push_back(n_slots);
    return chunks;
  }

  // Anew in the first layer of every prompt or chunk.
  void predict(const Site& site) {
    if (predicted_at_ >= 0 && site.layer > predicted_at_) return;
    predicted_at_ = site.layer;
    const std::vector<float> logits = boundary_logits(site, *file_, s_.heads);
    boundaries_ = pick_boundaries(logits, {.least = s_.boundary,
                                           .apart = s_.apart,
                                           .last_rows = s_.last_rows,
                                           .most = std::ssize(logits) / s_.block * kBoundariesOfABlock});
  }

  // Mean keys of the chunks times the root of their lengths. -> [n_kv_head][n_chunk, head_dim]
  std::vector<std::vector<float>> pool_keys(const Site& site, const std::vector<Chunks>& chunks, bool predicted) const {
    std::vector<std::vector<float>> keys(chunks.size());
    site.ops.for_each(std::ssize(keys), [&](int64_t item, int) {
      const auto head = static_cast<int32_t>(item);
      std::vector<float>& pooled = keys[static_cast<size_t>(item)];
      const Chunks& own = chunks[static_cast<size_t>(item)];
      if (predicted) {
        mean_keys(site, head, own, pooled);
      } else {
        site.ops.pool_keys(site.kv, head, s_.chunk, pooled);
      }
      const auto dim = static_cast<size_t>(site.q.head_dim);
      for (size_t i = 0; i < pooled.size(); ++i) {
        pooled[i] *= std::sqrt(static_cast<float>(own[i / dim + 1] - own[i / dim]));
      }
    });
    return keys;
  }

  // Means over chunks of any length, of which the keys of some are held at once.
  static void mean_keys(const Site& site, int32_t kv_head, const Chunks& chunks, std::vector<float>& means) {
    constexpr int32_t kPiece = 4096;
    const auto dim = static_cast<size_t>(site.q.head_dim);
    means.assign((chunks.size() - 1) * dim, 0);
    std::vector<int32_t> slots;
    std::vector<float> keys;
    size_t chunk = 0;
    for (int32_t begin = 0; begin < chunks.back(); begin += kPiece) {
      slots.resize(static_cast<size_t>(std::min(kPiece, chunks.back() - begin)));
      std::iota(slots.begin(), slots.end(), begin);
      site.ops.gather_keys(site.kv, kv_head, slots, keys);
      for (size_t i = 0; i < slots.size(); ++i) {
        while (slots[i] >= chunks[chunk + 1]) ++chunk;
        const auto share = 1 / static_cast<float>(chunks[chunk + 1] - chunks[chunk]);
        for (size_t d = 0; d < dim; ++d) means[chunk * dim + d] += share * keys[i * dim + d];
      }
    }
  }

  static std::vector<float> mean(const std::vector<std::vector<float>>& of_heads) {
    std::vector<float> sum(of_heads.front().size());
    for (const std::vector<float>& values : of_heads) {
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += values[i];
    }
    for (float& x : sum) x /= static_cast<float>(of_heads.size());
    return sum;
  }

  std::vector<float> mean_queries(const Site& site) const {
    std::vector<std::vector<float>> queries(static_cast<size_t>(site.q.n_head));
    site.ops.for_each(site.q.n_head, [&](int64_t head, int) {
      site.ops.pool_queries(site.q, static_cast<int32_t>(head), s_.block, queries[static_cast<size_t>(head)]);
    });
    return mean(queries);
  }

  void fill(const Site& site, int32_t head, const std::vector<float>& queries, const Pooled& pooled,
            HeadLists& lists) const {
    const KvHead& kv = kv_head_of(site, head);
    std::vector<float> scores;
    site.ops.score_blocks(queries, pooled.keys, site.q.head_dim, 1, scores);
    const size_t n_chunk = pooled.chunks.size() - 1;
    for (int64_t row = 0; row < site.q.n_rows; row += s_.block) {
      const int64_t end = std::min<int64_t>(row + s_.block, site.q.n_rows);
      const int32_t n_allowed = slot_of_row(site, kv, end - 1) + 1;
      if (end > site.q.n_rows - s_.last_rows || n_allowed <= s_.budget) {
        push_runs({{0, n_allowed}}, lists);
      } else {
        const auto block = static_cast<size_t>(row / s_.block);
        push_runs(choose(std::span(scores).subspan(block * n_chunk, n_chunk), pooled.chunks, n_allowed), lists);
      }
    }
  }

  // Which of the first n_allowed slots, more than the budget, one block of rows gets.
  std::vector<Run> choose(std::span<const float> scores, const Chunks& chunks, int32_t n_allowed) const {
    const int32_t recent = n_allowed - s_.recent;
    // Those that begin before the recent ones, the best on top.
    std::vector<int32_t> heap(
        static_cast<size_t>(std::lower_bound(chunks.begin(), chunks.end() - 1, recent) - chunks.begin()));
    std::iota(heap.begin(), heap.end(), 0);
    const auto worse = [scores](int32_t a, int32_t b) {
      const float x = scores[static_cast<size_t>(a)], y = scores[static_cast<size_t>(b)];
      return x != y ? x < y : a > b;
    };
    std::make_heap(heap.begin(), heap.end(), worse);
    std::vector<Run> runs;
    for (int32_t left = s_.budget - s_.recent; left > 0 && !heap.empty();) {
      const auto chunk = static_cast<size_t>(heap.front());
      std::pop_heap(heap.begin(), heap.end(), worse);
      heap.pop_back();
      const int32_t begin = chunks[chunk], end = std::min({chunks[chunk + 1], recent, begin + left});
      runs.push_back({begin, end});
      left -= end - begin;
    }
    runs.push_back({recent, n_allowed});
    std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.begin < b.begin; });
    return with_sinks(runs);
  }

  // The lowest slots give way to the first ones of all. Neighbouring runs become one.
  std::vector<Run> with_sinks(const std::vector<Run>& runs) const {
    std::vector<Run> result = {{0, s_.sinks}};
    int32_t to_drop = s_.sinks;
    for (Run run : runs) {
      const int32_t dropped = std::min(to_drop, run.end - run.begin);
      to_drop -= dropped;
      run.begin += dropped;
      if (run.begin == run.end) continue;
      if (run.begin == result.back().end) {
        result.back().end = run.end;
      } else {
        result.push_back(run);
      }
    }
    return result;
  }

  Settings s_;
  std::shared_ptr<const WeightsFile> file_;  // the predictor's; null: none
  Chunks boundaries_;                        // predicted
  int32_t predicted_at_ = -1;                // the layer where they were
};

constexpr double kMany = 1e9;
constexpr ParamInfo kParams[] = {
    {"budget", "tokens that a block of rows sees, sinks and recent ones among them", 2048, 256, kMany, true},
    {"block", "rows of a block: 64 or 128", 128, 64, 128, true},
    {"chunk", "tokens of a chunk", 64, 8, 1024, true},
    {"sinks", "first tokens that every block sees", 128, 0, kMany, true},
    {"recent", "last tokens that a block sees, its own rows among them", 128, 128, kMany, true},
    {"last_rows", "last rows of the prompt that see everything", 64, 0, kMany, true},
    {"shared", "1: all heads choose together; 0: each by itself", 0, 0, 1, true},
    {"boundary", "with weights: logit above which a chunk may begin behind a token", 1.1, -100, 100, false},
    {"apart", "with weights: beginnings of chunks are more than so many tokens from each other", 8, 0, 1024, true},
    {"heads", "with weights: heads of the predictor's attention", 8, 1, 1024, true},
    {"min_len", "tokens in the cache below which prefill is dense", 4096, 0, kMany, true},
};

constexpr std::string_view kTexts[] = {"weights"};

Method make(const Params& params, const MethodShape& shape) {
  const Settings settings = {.budget = params.whole("budget"),
                             .block = block_size(params, "dhsa"),
                             .chunk = params.whole("chunk"),
                             .sinks = params.whole("sinks"),
                             .recent = params.whole("recent"),
                             .last_rows = params.whole("last_rows"),
                             .shared = params.flag("shared"),
                             .boundary = params.number("boundary"),
                             .apart = params.whole("apart"),
                             .heads = params.whole("heads")};
  if (settings.budget < int64_t{settings.sinks} + settings.recent) {
    fail("dhsa: budget={} must have room for sinks={} and recent={}, which are always seen", settings.budget,
         settings.sinks, settings.recent);
  }
  std::shared_ptr<const WeightsFile> file;
  if (!params.text("weights").empty()) {
    const int32_t n = shape.n_head_kv * shape.head_dim;
    if (n % settings.heads != 0) fail("dhsa: heads={} must divide {}, the values of a token's keys", settings.heads, n);
    file = std::make_shared<const WeightsFile>(params.text("weights"), "dhsa", shape, boundary_weights(shape));
  }
  Method method;
  method.selector = std::make_unique<Dhsa>(settings, std::move(file));
  return method;
}

}  // namespace

namespace roster {

const MethodInfo& method_dhsa() {
  static const MethodInfo kInfo = {
      .name = "dhsa",
      .title = "a budget of tokens for each block of rows, given to the chunks whose mean keys score best",
      .paper = "DHSA, arXiv 2510.24606",
      .parts = "selector",
      .neutral = "dhsa(budget=1000000000)",
      .params = kParams,
      .texts = kTexts,
      .make = make,
      .calibrate = nullptr,
      .weights = boundary_weights,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
