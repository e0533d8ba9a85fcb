// Prefill: new rows of one sequence through all layers, layer-major or chunk-major.
#pragma once

#include "engine/engine.h"

namespace winnow {

class Prefill {
 public:
  /// `watcher` may be null; otherwise it is shown every layer that attends in full.
  Prefill(Engine& engine, Sequence& sequence, Calibration* watcher)
      : engine_(engine), device_(*engine.device_), model_(*engine.model_), sequence_(sequence), watcher_(watcher) {}

  /// Leaves the sequence longer by `tokens`; hands the logits of the last `n_logits` of them to `sink`.
  void run(std::span<const int32_t> tokens, int32_t n_logits, const LogitsSink& sink);

 private:
  struct Rows {  // what one pass works on
    std::span<const int32_t> position;
    Mat x;  // [n, n_embd]
    Mat q;  // [n, n_head * head_dim]; attention's output takes its place
    bool last = true;
  };

  void pass(std::span<const int32_t> tokens, bool last, int64_t wanted, const LogitsSink& sink);
  void layer(int32_t index, const Rows& rows);
  void project(int32_t index, const Rows& rows);
  Site site(int32_t index, const Rows& rows);
  Selection choose(const Site& site);
  void attend(const Site& site, const Selection& selection);
  void copy_tail(Mat q, Mat tail);
  void compress(Site& site);
  void hand_over(Mat x, const LogitsSink& sink);
  void report(double share_of_pass, int64_t n_rows);

  Engine& engine_;
  Device& device_;
  const Model& model_;
  Sequence& sequence_;
  Calibration* watcher_;
  int64_t n_total_ = 0, n_done_ = 0, n_handed_ = 0;  // rows of this call; of finished passes; logits so far
};

/// ln(lambda) per head of skip-softmax at `n_slots` tokens, or empty where no method asks for it (lambda = factor /
/// n_slots; a factor of n_slots or more, which would skip everything, is off: such a short sequence stays dense).
std::vector<float> skip_log_lambda(std::span<const Method> methods, bool prefill, int64_t n_slots, int32_t n_head);

/// Tokens of the longest kv head.
int64_t longest_head(const KvView& kv);

}  // namespace winnow
