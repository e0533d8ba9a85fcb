// Prefill: new rows of one or several sequences through all layers, layer-major or chunk-major. The rows of several
// sequences stand one after another (engine/pack.h); products run over all of them, the rest is done part by part.
#pragma once

#include <optional>

#include "engine/engine.h"

namespace winnow {

/// What one sequence reads.
struct Reading {
  Sequence* sequence = nullptr;
  std::span<const int32_t> tokens;
  int32_t n_logits = 1;  // of its last tokens
};

class Prefill {
 public:
  /// `n_total`: tokens of all runs together, for the report of progress. `watcher` may be null; otherwise it is shown
  /// every layer that attends in full.
  Prefill(Engine& engine, int64_t n_total, Calibration* watcher = nullptr)
      : engine_(engine), device_(*engine.device_), model_(*engine.model_), watcher_(watcher), n_total_(n_total) {}

  /// Leaves every sequence longer by its tokens; hands the logits of the last `n_logits` of each to `sink`, in the
  /// order of `readings`, whose sequences differ.
  void run(std::span<const Reading> readings, const LogitsSink& sink);
  /// One decoded token of a sequence whose pruner revives: older tokens may be taken up again beside it. Its logits go
  /// to `sink`; the caller adds the token to the sequence.
  void decode(Sequence& sequence, int32_t token, const LogitsSink& sink);

 private:
  struct Part {  // one sequence's rows of a pass
    Sequence* sequence = nullptr;
    std::span<const int32_t> tokens;
    int64_t begin = 0, n = 0;  // rows of the pass
    int64_t n_later = 0;       // tokens of the sequence's reading that later passes hold
    int64_t n_logits = 0;      // of the last of these rows
    Pruner* pruner = nullptr;
    // Ascending positions of the tokens that the next layer attends to, where a pruner decides it: the part's rows and,
    // where it revives, older tokens.
    std::vector<int32_t> alive{};
    KvEdit edit{};  // of the layer's cache, not yet applied
    // A compressor that is asked when the device has been given the rest of the layer; null: none is left.
    Compressor* begun = nullptr;
    Scratch tail{};              // the last queries, which it looks at
    std::optional<Site> site{};  // of which it is asked
  };
  struct Pass {  // the rows that go through all layers together
    std::vector<Part> parts;
    std::vector<int32_t> position;  // [n]
    Scratch x;                      // [n, n_embd]
    bool decode = false;
    std::span<const int32_t> rows_of(const Part& part) const {
      return std::span(position).subspan(static_cast<size_t>(part.begin), static_cast<size_t>(part.n));
    }
  };

  Pass cut(std::span<const Reading> readings, int64_t begin, int64_t end) const;
  void run_pass(Pass& pass, const LogitsSink& sink);
  void layer(int32_t index, Pass& pass);
  void wake(int32_t index, Pass& pass);
  void put_to_sleep(int32_t index, Pass& pass);
  void count_pruned(const Site& site, const Part& part);
  void prune(Part& part, const Site& site);
  void project(int32_t index, const Pass& pass, Mat q);
  void store(int32_t index, const Pass& pass, int64_t begin, Mat k, Mat v);
  void keep_wanted(Pass& pass, Scratch& q) const;
  void attend_part(int32_t index, const Pass& pass, Part& part, Mat q);
  Selection choose(Sequence& sequence, const Site& site);
  void show(Sequence& sequence, const Site& site, const Selection& selection);
  void attend(Sequence& sequence, const Site& site, const Selection& selection, bool decode);
  void compress(Part& part, Site& site);
  void compress_begun(Part& part);
  static void apply_edit(int32_t index, Part& part);
  void hand_over(const Pass& pass, const LogitsSink& sink);
  void report(double share_of_pass, int64_t n_rows);

  Engine& engine_;
  Device& device_;
  const Model& model_;
  Calibration* watcher_;
  int64_t n_total_, n_done_ = 0;  // tokens of all runs; of finished passes
  int64_t n_handed_ = 0;          // logits of this run so far
  double measured_ = 0;           // seconds of this run that went into measurements, which are no part of it
};

/// Tokens of the longest kv head.
int64_t longest_head(const KvView& kv);

}  // namespace winnow
