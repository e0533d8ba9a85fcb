#include "engine/prefill.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "methods/recall.h"

namespace winnow {
namespace {

// A product of fewer rows reads the quantised weights as they are: unpacking costs as much as a few dozen rows of it.
constexpr int64_t kUnpackRows = 32;
// A probe of the last 64 rows costs what attention costs for these rows: with fewer rows a selector cannot win.
constexpr int64_t kSelectRows = 64;
// Queries that compressors get to see: the longest observation window that a method may ask for.
constexpr int64_t kTailRows = 128;
// Logits are handed over in pieces of about this many floats (64 MB).
constexpr int64_t kLogitsPiece = int64_t{1} << 24;

class Stopwatch {
 public:
  explicit Stopwatch(double& total) : total_(total) {}
  ~Stopwatch() { total_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& total_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace

int64_t longest_head(const KvView& kv) {
  int64_t n = 0;
  for (const KvHead& head : kv.heads) n = std::max<int64_t>(n, head.n_slots);
  return n;
}

std::vector<float> skip_log_lambda(std::span<const Method> methods, bool prefill, int64_t n_slots, int32_t n_head) {
  double factor = 0;
  for (const Method& method : methods) factor = std::max(factor, prefill ? method.skip.prefill : method.skip.decode);
  if (factor <= 0 || factor >= static_cast<double>(n_slots)) return {};
  const auto log_lambda = static_cast<float>(std::log(factor) - std::log(static_cast<double>(n_slots)));
  return std::vector<float>(static_cast<size_t>(n_head), log_lambda);
}

void Prefill::run(std::span<const int32_t> tokens, int32_t n_logits, const LogitsSink& sink) {
  const auto n = static_cast<int64_t>(tokens.size());
  n_total_ = n;
  double spent = 0;
  {
    const Stopwatch watch(spent);
    const EngineOptions& options = engine_.options_;
    const int64_t step = options.schedule == Schedule::chunk_major ? options.chunk : n;
    for (int64_t begin = 0; begin < n; begin += step) {
      const int64_t end = std::min(begin + step, n);
      const int64_t wanted = std::clamp<int64_t>(end - (n - n_logits), 0, end - begin);
      pass(tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)), end == n, wanted, sink);
      n_done_ = end;
    }
    device_.sync();
  }
  sequence_.stats_.prefill_s += spent;
  sequence_.stats_.n_prefill += n;
}

void Prefill::pass(std::span<const int32_t> tokens, bool last, int64_t wanted, const LogitsSink& sink) {
  const ModelShape& shape = model_.shape();
  const auto n = static_cast<int64_t>(tokens.size());
  std::vector<int32_t> position(tokens.size());
  std::iota(position.begin(), position.end(), sequence_.n_tokens());
  const Scratch x = device_.scratch(n, shape.n_embd);
  {
    const Scratch q = device_.activations(n, int64_t{shape.n_head} * shape.head_dim);
    model_.embed(device_, tokens, x);
    for (int32_t index = 0; index < shape.n_layer; ++index) {
      layer(index, {position, x, q, last});
      report(static_cast<double>(index + 1) / shape.n_layer, n);
    }
  }
  sequence_.tokens_.insert(sequence_.tokens_.end(), tokens.begin(), tokens.end());
  if (wanted > 0) hand_over(x->slice(n - wanted, wanted), sink);
}

void Prefill::layer(int32_t index, const Rows& rows) {
  std::unique_ptr<Unpacked> unpacked;
  if (rows.x.rows >= kUnpackRows) unpacked = device_.unpack(model_.layer_weights(index));
  project(index, rows);

  Site here = site(index, rows);
  if (watcher_ != nullptr && here.window == 0) watcher_->observe(here);
  // Attention's output takes the queries' place, and compressors look at the last queries afterwards.
  const int64_t n_tail = std::min(kTailRows, rows.q.rows);
  const Scratch tail = device_.activations(n_tail, rows.q.cols);
  if (rows.last) copy_tail(rows.q, tail);
  attend(here, choose(here));
  here.q = Mat(tail).heads(model_.shape().head_dim);
  here.limit = here.limit.last(static_cast<size_t>(n_tail));
  if (rows.last) compress(here);

  const int64_t chunk = engine_.options_.chunk;
  for (int64_t begin = 0; begin < rows.x.rows; begin += chunk) {
    const int64_t n = std::min(chunk, rows.x.rows - begin);
    model_.mix(device_, index, rows.x.slice(begin, n), rows.q.slice(begin, n));
    engine_.throw_if_cancelled();
  }
}

void Prefill::project(int32_t index, const Rows& rows) {
  const ModelShape& shape = model_.shape();
  const int64_t chunk = std::min<int64_t>(engine_.options_.chunk, rows.x.rows);
  const Scratch k = device_.activations(chunk, int64_t{shape.n_head_kv} * shape.head_dim);
  const Scratch v = device_.activations(chunk, int64_t{shape.n_head_kv} * shape.head_dim);
  for (int64_t begin = 0; begin < rows.x.rows; begin += chunk) {
    const int64_t n = std::min(chunk, rows.x.rows - begin);
    const auto position = rows.position.subspan(static_cast<size_t>(begin), static_cast<size_t>(n));
    const Mat k_rows = k->slice(0, n), v_rows = v->slice(0, n);
    model_.qkv(device_, index, rows.x.slice(begin, n), position, rows.q.slice(begin, n), k_rows, v_rows);
    sequence_.cache_.append(index, k_rows.heads(shape.head_dim), v_rows.heads(shape.head_dim), position.front());
    engine_.throw_if_cancelled();
  }
}

void Prefill::copy_tail(Mat q, Mat tail) {
  std::vector<int32_t> rows(static_cast<size_t>(tail.rows));
  std::iota(rows.begin(), rows.end(), static_cast<int32_t>(q.rows - tail.rows));
  device_.gather_rows(q, rows, tail);
}

Site Prefill::site(int32_t index, const Rows& rows) {
  const AttnShape attention = model_.attention(index);
  return {.layer = index,
          .q = rows.q.heads(model_.shape().head_dim),
          .kv = sequence_.cache_.view(index),
          .limit = rows.position,
          .scale = attention.scale,
          .softcap = attention.softcap,
          .window = attention.window,
          .ops = device_};
}

Selection Prefill::choose(const Site& here) {
  Selection selection;
  const bool worth =
      here.window == 0 && here.q.n_rows >= kSelectRows && longest_head(here.kv) >= sequence_.policy_.break_even();
  for (const Method& method : sequence_.methods_) {
    if (method.selector == nullptr || !worth) continue;
    device_.sync();  // what a device still works on is not the selector's time
    const Stopwatch watch(sequence_.stats_.select_s);
    selection = method.selector->select(here);
  }
  if (engine_.options_.recall_rows > 0 && !selection.everything()) {
    double spent = 0;
    {
      const Stopwatch watch(spent);
      const Recall recall = sample_recall(here, selection, engine_.options_.recall_rows);
      sequence_.stats_.recall_sum += recall.sum;
      sequence_.stats_.recall_n += recall.n;
    }
    sequence_.stats_.prefill_s -= spent;  // a measurement is not part of the run
  }
  return selection;
}

void Prefill::attend(const Site& here, const Selection& selection) {
  const Stopwatch watch(sequence_.stats_.attend_s);
  std::vector<float> skip;
  if (here.window == 0) skip = skip_log_lambda(sequence_.methods_, true, longest_head(here.kv), here.q.n_head);
  // In pieces, so that Ctrl-C and the progress bar need not wait for a layer.
  const int64_t piece = device_.rows_at_once().attend;
  for (int64_t begin = 0; begin < here.q.n_rows; begin += piece) {
    const HeadsView q = here.q.rows(begin, std::min(piece, here.q.n_rows - begin));
    device_.attend({.q = q,
                    .kv = here.kv,
                    .limit = here.limit.data() + begin,
                    .selection = selection.everything() ? nullptr : &selection,
                    .first_row = begin,
                    .scale = here.scale,
                    .softcap = here.softcap,
                    .window = here.window,
                    .skip = skip.empty() ? nullptr : skip.data(),
                    .o = q,
                    .lse = nullptr,
                    .counts = &sequence_.stats_.counts});
    engine_.throw_if_cancelled();
  }
}

void Prefill::compress(Site& here) {
  for (const Method& method : sequence_.methods_) {
    if (method.compressor == nullptr) continue;
    device_.sync();
    const Stopwatch watch(sequence_.stats_.select_s);
    here.kv = sequence_.cache_.view(here.layer);
    sequence_.cache_.apply(here.layer, method.compressor->compress(here, true));
  }
}

void Prefill::hand_over(Mat x, const LogitsSink& sink) {
  const int64_t n_vocab = model_.shape().n_vocab;
  const int64_t piece = std::clamp<int64_t>(kLogitsPiece / n_vocab, 1, x.rows);
  std::unique_ptr<Unpacked> unpacked;
  if (x.rows >= kUnpackRows) {
    const Weight* output = &model_.output_weight();
    unpacked = device_.unpack({&output, 1});
  }
  const Scratch logits = device_.scratch(piece, n_vocab);
  for (int64_t begin = 0; begin < x.rows; begin += piece) {
    const Mat rows = logits->slice(0, std::min(piece, x.rows - begin));
    model_.logits(device_, x.slice(begin, rows.rows), rows);
    device_.sync();
    sink(n_handed_, rows);
    n_handed_ += rows.rows;
    engine_.throw_if_cancelled();
  }
}

void Prefill::report(double share_of_pass, int64_t n_rows) {
  if (!engine_.on_progress) return;
  const double done = static_cast<double>(n_done_) + share_of_pass * static_cast<double>(n_rows);
  engine_.on_progress(done / static_cast<double>(n_total_));
}

}  // namespace winnow
