// streaming_llm: the first tokens and a window of the last ones.
//
// Paper: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453.
// Idea: models put surplus attention on the first few tokens, whatever these say. A row that sees these sinks and the
// most recent tokens keeps its numbers in order, at a cost that does not grow with the length. As a selector the method
// gives prefill that shape (an "A": sinks and local window); as a compressor it drops all other slots from the cache,
// after the prompt and after every decoded token.
// Deviations:
// - Block cover: the kernel computes blocks of 64 rows and 64 slots. The sinks are exact, the window is covered by the
//   aligned blocks that it touches, so a row sees up to 126 slots more than `window`.
// - A kept key stays at the position it was written at (RoPE is in the cache already). The paper numbers the slots of
//   the shrunken cache anew, which matters only beyond the length that a model was trained for.
// - The selector leaves decode alone; there the compressor is what the paper does. It lets go of 64 slots at a time,
//   because dropping one moves all that follow, where 64 move block by block. Until then decoded rows leave out what is
//   due; only the rows of a later prompt see it, up to 63 slots more than `window`, if prefill=0.
// - Nothing is estimated, so there is no length at which the pattern costs more than dense attention: min_len is 0. On
//   a GPU the making of lists costs more than it saves below 8,192 tokens.
#include "base/error.h"
#include "methods/lists.h"

namespace winnow {
namespace {

constexpr int32_t kBlock = 64;

class Shape final : public Selector {
 public:
  Shape(int32_t n_sink, int32_t window) : n_sink_(n_sink), window_(window) {}

  Selection select(const Site& site) override {
    if (site.q.n_rows <= 1) return {};
    const std::span<const KvHead> kv = site.kv.heads;
    if (std::all_of(kv.begin(), kv.end(), [&](const KvHead& head) { return covers(site, head); })) return {};
    return pattern_lists(site, kBlock, [&](const KvHead& head, HeadLists& lists) { write(site, head, lists); });
  }

 private:
  // The first slot inside the window of `row`.
  int32_t window_begin(const Site& site, const KvHead& kv, int64_t row) const {
    return visible_slots(kv, site.limit[static_cast<size_t>(row)] - window_);
  }

  bool covers(const Site& site, const KvHead& kv) const {
    return window_begin(site, kv, site.q.n_rows - 1) <= visible_slots(kv, n_sink_ - 1);
  }

  void write(const Site& site, const KvHead& kv, HeadLists& lists) const {
    const int32_t n_first = visible_slots(kv, n_sink_ - 1);
    for (int64_t row = 0; row < site.q.n_rows; row += kBlock) {
      const int64_t last = std::min(row + kBlock, site.q.n_rows) - 1;
      push_sinks_and_window(lists, n_first, window_begin(site, kv, row), slot_of_row(site, kv, last) + 1, kBlock);
      lists.end_block();
    }
  }

  int32_t n_sink_, window_;
};

class RollingCache final : public Compressor {
 public:
  RollingCache(int32_t n_sink, int32_t window) : n_sink_(n_sink), window_(window) {}

  KvEdit compress(const Site& site, bool prefill) override {
    KvEdit edit;
    bool any = false;
    for (const KvHead& kv : site.kv.heads) {
      const auto [begin, end] = due(kv);
      const int32_t next = prefill ? end : begin + (end - begin) / kBlock * kBlock;
      KvEdit::Head& head = edit.head.emplace_back();
      if (next == begin) continue;
      any = true;
      head.all = false;
      for (int32_t slot = 0; slot < begin; ++slot) head.keep.push_back(slot);
      for (int32_t slot = next; slot < kv.n_slots; ++slot) head.keep.push_back(slot);
    }
    return any ? edit : KvEdit{};
  }

  Selection select_row(const Site& site) override {
    const auto none = [this](const KvHead& kv) { return due(kv).empty(); };
    if (std::all_of(site.kv.heads.begin(), site.kv.heads.end(), none)) return {};
    return pattern_lists(site, kBlock, [this](const KvHead& kv, HeadLists& lists) {
      const auto [begin, end] = due(kv);
      int32_t slot = 0;
      for (; slot + kBlock <= begin; slot += kBlock) lists.block_begin.push_back(slot);
      for (; slot < begin; ++slot) lists.column.push_back(slot);
      for (slot = end; slot < kv.n_slots; slot += kBlock) lists.block_begin.push_back(slot);
      lists.end_block();
    });
  }

 private:
  // Slots [begin, end) between sinks and window.
  struct Range {
    int32_t begin, end;
    bool empty() const { return begin == end; }
  };
  Range due(const KvHead& kv) const {
    const int32_t n_first = visible_slots(kv, n_sink_ - 1);
    return {n_first, std::max(n_first, kv.n_slots - window_)};
  }

  int32_t n_sink_, window_;
};

constexpr double kMany = 1e9;
constexpr ParamInfo kParams[] = {
    {"sinks", "first tokens that every row sees", 4, 0, kMany, true},
    {"window", "last tokens that a row sees, itself included", 1020, 1, kMany, true},
    {"prefill", "1: prefill computes sinks and window only", 1, 0, 1, true},
    {"cache", "1: the cache keeps sinks and window only", 1, 0, 1, true},
    last_rows_param(),
    {"min_len", "tokens in the cache below which prefill is dense", 0, 0, kMany, true},
};

Method make(const Params& params, const MethodShape&) {
  const int32_t n_sink = params.whole("sinks"), window = params.whole("window");
  if (!params.flag("prefill") && !params.flag("cache")) {
    fail("streaming_llm: prefill=0 and cache=0 leave it nothing to do; set one of them to 1");
  }
  Method method;
  if (params.flag("prefill")) method.selector = std::make_unique<Shape>(n_sink, window);
  if (params.flag("cache")) method.compressor = std::make_unique<RollingCache>(n_sink, window);
  return method;
}

}  // namespace

namespace roster {

const MethodInfo& method_streaming_llm() {
  static const MethodInfo kInfo = {
      .name = "streaming_llm",
      .title = "attention sinks and a sliding window, in prefill and in the cache",
      .paper = "StreamingLLM, arXiv 2309.17453",
      .parts = "selector, compressor",
      .neutral = "streaming_llm(window=1000000000)",
      .params = kParams,
      .gpu_min_len = 8192,
      .knob = {.param = "window", .dense = 32768, .sparse = 128, .geometric = true},
      .texts = {},
      .make = make,
      .calibrate = nullptr,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
