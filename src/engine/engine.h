// The engine: sequences of tokens through a model on a device, under a policy.
//
//   Engine engine(load_model(Gguf::open(path)), make_device("cpu", 0), {});
//   Sequence sequence = engine.start(Policy(specs, engine.method_shape()));
//   std::vector<float> logits = engine.prefill(sequence, tokens);      // of the last token
//   logits = engine.decode(sequence, best(logits));
//
// One thread owns an engine. `cancel` (below) may be called from any thread or a signal handler.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/error.h"
#include "cache/kv_cache.h"
#include "engine/hidden_rows.h"
#include "methods/roster.h"
#include "model/model.h"

namespace winnow {

enum class Schedule {
  layer_major,  // for layer: for chunk. The default: a layer's weights are unpacked once, its whole prompt is known
  chunk_major,  // for chunk: for layer. Bounded latency of a step, for serving; with a pruner layer-major all the same
};

struct EngineOptions {
  Type kv_type = Type::f16;
  Schedule schedule = Schedule::layer_major;
  int32_t chunk = 0;        // rows a product works on at once (layer-major), rows a step (chunk-major); 0: the device's
  int32_t n_ctx = 0;        // longest sequence; 0: the model's own limit
  int32_t recall_rows = 0;  // > 0: measure recall on about this many rows of each selected layer
};

/// What one sequence cost so far. Times in seconds of wall clock.
struct RunStats {
  int64_t n_prefill = 0, n_decode = 0;  // tokens
  double prefill_s = 0, decode_s = 0;   // of a batch: the whole batch's time
  double select_s = 0;                  // of prefill_s: selectors, compressors and pruners
  double decode_select_s = 0;           // of decode_s: selectors, with what a device makes them wait for
  double attend_s = 0;                  // of prefill_s: attention kernels
  double measure_s = 0;                 // recall and what on_selection does: part of no other figure
  AttnCounts counts;  // of prefill; with a pruner, permitted is what plain attention over all tokens computes
  AttnCounts decode_counts;
  double recall_sum = 0;  // of sampled (row, head) pairs: share of the true attention mass kept
  int64_t recall_n = 0;
  double estimate_sum = 0;  // of rows that were selected for: share of the mass that the choice took itself to keep
  int64_t estimate_n = 0;   // 0: no selection, or none that told
  double estimated_mass() const { return estimate_n == 0 ? 1.0 : estimate_sum / static_cast<double>(estimate_n); }
  double recall() const { return recall_n == 0 ? 1.0 : recall_sum / static_cast<double>(recall_n); }
  double select_share() const { return prefill_s == 0 ? 0 : select_s / prefill_s; }
  double decode_select_share() const { return decode_s == 0 ? 0 : decode_select_s / decode_s; }
};

/// Tokens with their cache, methods and figures.
class Sequence {
 public:
  std::span<const int32_t> tokens() const { return tokens_; }
  int32_t n_tokens() const { return static_cast<int32_t>(tokens_.size()); }
  const KvCache& cache() const { return cache_; }
  /// The hidden states that `layer` dropped and a later step may take up again.
  const HiddenRows& hidden(int32_t layer) const { return hidden_[static_cast<size_t>(layer)]; }
  /// Of the cache and of hidden states.
  size_t bytes() const;
  const RunStats& stats() const { return stats_; }
  void reset_stats() { stats_ = {}; }
  /// Back to the first n tokens; state of methods starts anew.
  void truncate(int32_t n);
  /// Another sequence that goes on from here: blocks are shared until one of them writes, state of methods and figures
  /// start anew.
  Sequence fork() const;

 private:
  friend class Engine;
  friend class Prefill;
  Sequence(KvCache cache, Policy policy)
      : cache_(std::move(cache)),
        hidden_(static_cast<size_t>(cache_.shape().n_layer)),
        policy_(std::move(policy)),
        methods_(policy_.make()) {}
  Pruner* pruner() const;
  bool revives() const { return pruner() != nullptr && pruner()->revives(); }
  bool compresses() const;
  /// ln(lambda) per head of skip-softmax at `n_slots` tokens, or empty where no method asks for it, the layer has a
  /// window or the break-even is not reached (lambda = factor / n_slots; a factor of n_slots or more, which would skip
  /// everything, is off: such a short sequence stays dense).
  std::vector<float> skip_log_lambda(const Site& site, int64_t n_slots, bool prefill) const;
  bool decodes_alone() const;
  std::vector<int32_t> tokens_;
  KvCache cache_;
  std::vector<HiddenRows> hidden_;  // [n_layer] states behind each layer; empty unless a pruner revives
  Policy policy_;
  std::vector<Method> methods_;
  RunStats stats_;
};

/// Takes logits in pieces: rows [first_row, first_row + logits.rows) of those that were asked for.
using LogitsSink = std::function<void(int64_t first_row, Mat logits)>;

/// Thrown where `cancel` stopped a prefill or decode. The sequence is back at what it was before the call.
class Cancelled : public Error {
 public:
  using Error::Error;
};

class Engine {
 public:
  Engine(std::unique_ptr<Model> model, std::unique_ptr<Device> device, const EngineOptions& options);

  const Model& model() const { return *model_; }
  Device& device() { return *device_; }
  const EngineOptions& options() const { return options_; }
  MethodShape method_shape() const;
  /// Longest sequence in tokens.
  int32_t n_ctx() const;

  Sequence start(const Policy& policy);

  /// Reads `tokens` after those that the sequence already has. -> logits [n_vocab] of the last one.
  /// Throws Error where there are none or they do not fit the context.
  std::vector<float> prefill(Sequence& sequence, std::span<const int32_t> tokens);
  /// The same, with the logits of the last `n_logits` tokens, handed over in pieces that fit the memory.
  void prefill(Sequence& sequence, std::span<const int32_t> tokens, int32_t n_logits, const LogitsSink& sink);
  /// Reads a prompt into each of several sequences that differ, packed: the products of each layer run over the rows of
  /// all of them, attention over each one's own cache, under its own policy. Equal to reading them one by one up to the
  /// rounding of products over more rows. -> logits [n_sequences, n_vocab] of the last tokens. Whatever stops it, all
  /// sequences are as before.
  std::vector<float> prefill(std::span<Sequence* const> sequences, std::span<const std::span<const int32_t>> prompts);
  /// Adds one token. -> logits [n_vocab]
  std::vector<float> decode(Sequence& sequence, int32_t token);
  /// Adds one token to each of several sequences in one step. -> [n_sequences, n_vocab]
  std::vector<float> decode(std::span<Sequence* const> sequences, std::span<const int32_t> tokens);

  /// Runs dense over `tokens` and shows every layer to `calibration`.
  void calibrate(std::span<const int32_t> tokens, Calibration& calibration);

  /// Called now and then during prefill with the share done, in [0, 1].
  std::function<void(double)> on_progress;
  /// Called in prefill for every layer (in chunk-major prefill for every chunk of it) with what will be computed; an
  /// empty selection is everything. Its time does not count as the run's.
  std::function<void(const Site&, const Selection&)> on_selection;
  /// Stops the running prefill or decode soon; it throws Cancelled.
  void cancel() { cancelled_.store(true); }

 private:
  friend class Prefill;
  void check_room(const Sequence& sequence, size_t n_new) const;
  void throw_if_cancelled();
  enum class Step : uint8_t { prefill, decode };
  void guarded(std::span<Sequence* const> sequences, Step step, const std::function<void()>& work);
  Selection choose_row(Sequence& sequence, const Site& site);
  void decode_together(std::span<Sequence* const> sequences, std::span<const int32_t> tokens,
                       std::span<const size_t> which, float* logits);
  void decode_layer(int32_t layer, Mat x, std::span<Sequence* const> sequences, std::span<const int32_t> position);

  std::unique_ptr<Model> model_;
  std::unique_ptr<Device> device_;
  EngineOptions options_;
  std::atomic<bool> cancelled_{false};
};

}  // namespace winnow
