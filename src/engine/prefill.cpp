#include "engine/prefill.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "engine/attend_layer.h"
#include "engine/pruned.h"
#include "engine/stopwatch.h"
#include "methods/last_rows.h"
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

}  // namespace

int64_t longest_head(const KvView& kv) {
  int64_t n = 0;
  for (const KvHead& head : kv.heads) n = std::max<int64_t>(n, head.n_slots);
  return n;
}

void Prefill::run(std::span<const Reading> readings, const LogitsSink& sink) {
  int64_t n = 0;
  for (const Reading& reading : readings) n += std::ssize(reading.tokens);
  n_handed_ = 0;
  measured_ = 0;
  double spent = 0;
  {
    const Stopwatch watch(spent);
    const EngineOptions& options = engine_.options_;
    // A pruner looks at the prompt's last row before any row may go on.
    const bool prunes = std::any_of(readings.begin(), readings.end(),
                                    [](const Reading& reading) { return reading.sequence->pruner() != nullptr; });
    const int64_t step = options.schedule == Schedule::chunk_major && !prunes ? options.chunk : n;
    for (int64_t begin = 0; begin < n; begin += step) {
      Pass pass = cut(readings, begin, std::min(begin + step, n));
      run_pass(pass, sink);
    }
    device_.sync();
  }
  for (const Reading& reading : readings) {
    reading.sequence->stats_.prefill_s += spent - measured_;
    reading.sequence->stats_.n_prefill += std::ssize(reading.tokens);
  }
}

// Rows [begin, end) of all readings' tokens, one reading after another.
Prefill::Pass Prefill::cut(std::span<const Reading> readings, int64_t begin, int64_t end) const {
  Pass pass;
  int64_t first = 0;  // row of the reading's first token
  for (const Reading& reading : readings) {
    const int64_t n = std::ssize(reading.tokens);
    const int64_t from = std::max(begin, first) - first, to = std::min(end, first + n) - first;
    first += n;
    if (from >= to) continue;
    const std::span<const int32_t> tokens =
        reading.tokens.subspan(static_cast<size_t>(from), static_cast<size_t>(to - from));
    pass.parts.push_back({.sequence = reading.sequence,
                          .tokens = tokens,
                          .begin = std::ssize(pass.position),
                          .n = to - from,
                          .n_later = n - to,
                          .n_logits = std::clamp<int64_t>(to - (n - reading.n_logits), 0, to - from),
                          .pruner = reading.sequence->pruner()});
    for (int64_t i = 0; i < to - from; ++i) {
      pass.position.push_back(reading.sequence->n_tokens() + static_cast<int32_t>(i));
    }
  }
  return pass;
}

void Prefill::run_pass(Pass& pass, const LogitsSink& sink) {
  const ModelShape& shape = model_.shape();
  const int64_t n = std::ssize(pass.position);
  std::vector<int32_t> tokens;
  for (const Part& part : pass.parts) tokens.insert(tokens.end(), part.tokens.begin(), part.tokens.end());
  pass.x = device_.scratch(n, shape.n_embd);
  model_.embed(device_, tokens, pass.x);
  for (Part& part : pass.parts) {
    if (part.pruner == nullptr) continue;
    const int32_t first = part.pruner->revives() ? 0 : pass.rows_of(part).front();
    part.alive.resize(static_cast<size_t>(pass.rows_of(part).back() + 1 - first));
    std::iota(part.alive.begin(), part.alive.end(), first);
  }
  for (int32_t index = 0; index < shape.n_layer; ++index) {
    layer(index, pass);
    if (!pass.decode) report(static_cast<double>(index + 1) / shape.n_layer, n);
  }
  if (!pass.decode) {
    for (const Part& part : pass.parts) {
      part.sequence->tokens_.insert(part.sequence->tokens_.end(), part.tokens.begin(), part.tokens.end());
    }
  }
  hand_over(pass, sink);
  n_done_ += n;
}

void Prefill::decode(Sequence& sequence, int32_t token, const LogitsSink& sink) {
  const Reading reading = {&sequence, {&token, 1}, 1};
  n_handed_ = 0;
  Pass pass = cut({&reading, 1}, 0, 1);
  pass.decode = true;
  run_pass(pass, sink);
}

void Prefill::layer(int32_t index, Pass& pass) {
  wake(index, pass);
  const Mat x = pass.x;
  std::unique_ptr<Unpacked> unpacked;
  if (x.rows >= kUnpackRows) unpacked = device_.unpack(model_.layer_weights(index));
  Scratch q = device_.activations(x.rows, int64_t{model_.shape().n_head} * model_.shape().head_dim);
  project(index, pass, q);
  if (index + 1 == model_.shape().n_layer) keep_wanted(pass, q);
  for (Part& part : pass.parts) {
    if (part.n > 0) attend_part(index, pass, part, q);
  }
  const int64_t n_rows = std::ssize(pass.position), chunk = engine_.options_.chunk;
  for (int64_t begin = 0; begin < n_rows; begin += chunk) {
    const int64_t n = std::min(chunk, n_rows - begin);
    model_.mix(device_, index, pass.x->slice(begin, n), q->slice(begin, n));
    engine_.throw_if_cancelled();
  }
  // Only now, when a GPU has work: the host frees thousands of blocks here.
  for (Part& part : pass.parts) {
    compress_begun(part);
    apply_edit(index, part);
  }
  put_to_sleep(index, pass);
}

// Of the last layer only the rows matter whose logits are wanted, and those that compressors look at; of the others
// only keys and values, which are in the caches by now. Query blocks keep their borders.
void Prefill::keep_wanted(Pass& pass, Scratch& q) const {
  const bool all = pass.decode || watcher_ != nullptr ||
                   std::ranges::any_of(pass.parts, [](const Part& part) { return part.pruner != nullptr; });
  if (all) return;
  std::vector<int32_t> kept, positions;
  for (Part& part : pass.parts) {
    const int64_t wanted = part.n_later == 0 ? std::max(kTailRows, part.n_logits) : part.n_logits;
    const int64_t dropped = wanted == 0 ? part.n : std::max<int64_t>(part.n - wanted, 0) / kTailRows * kTailRows;
    const auto begin = std::ssize(kept);
    for (int64_t row = part.begin + dropped; row < part.begin + part.n; ++row) {
      kept.push_back(static_cast<int32_t>(row));
      positions.push_back(pass.position[static_cast<size_t>(row)]);
    }
    part.begin = begin;
    part.n -= dropped;
  }
  if (positions.size() == pass.position.size()) return;
  pass.position = std::move(positions);
  if (kept.empty()) return;
  const auto n = std::ssize(kept);
  Scratch q_kept = device_.activations(n, q->cols), x_kept = device_.scratch(n, pass.x->cols);
  device_.gather_rows(q, kept, q_kept);
  device_.gather_rows(pass.x, kept, x_kept);
  q = std::move(q_kept);
  pass.x = std::move(x_kept);
}

void Prefill::project(int32_t index, const Pass& pass, Mat q) {
  const ModelShape& shape = model_.shape();
  const int64_t chunk = std::min<int64_t>(engine_.options_.chunk, q.rows);
  const Scratch k = device_.activations(chunk, int64_t{shape.n_head_kv} * shape.head_dim);
  const Scratch v = device_.activations(chunk, int64_t{shape.n_head_kv} * shape.head_dim);
  const std::span<const int32_t> positions(pass.position);
  for (int64_t begin = 0; begin < q.rows; begin += chunk) {
    const int64_t n = std::min(chunk, q.rows - begin);
    const auto position = positions.subspan(static_cast<size_t>(begin), static_cast<size_t>(n));
    const Mat k_rows = k->slice(0, n), v_rows = v->slice(0, n);
    model_.qkv(device_, index, pass.x->slice(begin, n), position, q.slice(begin, n), k_rows, v_rows);
    store(index, pass, begin, k_rows, v_rows);
    engine_.throw_if_cancelled();
  }
}

// Keys and values of the pass's rows [begin, begin + k.rows) into the caches of those they belong to.
void Prefill::store(int32_t index, const Pass& pass, int64_t begin, Mat k, Mat v) {
  const int32_t head_dim = model_.shape().head_dim;
  for (const Part& part : pass.parts) {
    const int64_t from = std::max(begin, part.begin), to = std::min(begin + k.rows, part.begin + part.n);
    if (from >= to) continue;
    part.sequence->cache_.insert(
        index, k.slice(from - begin, to - from).heads(head_dim), v.slice(from - begin, to - from).heads(head_dim),
        std::span(pass.position).subspan(static_cast<size_t>(from), static_cast<size_t>(to - from)));
  }
}

void Prefill::attend_part(int32_t index, const Pass& pass, Part& part, Mat q) {
  const AttnShape attention = model_.attention(index);
  const Mat rows = q.slice(part.begin, part.n);
  Site here = {.layer = index,
               .q = rows.heads(model_.shape().head_dim),
               .kv = part.sequence->cache_.view(index),
               .limit = pass.rows_of(part),
               .scale = attention.scale,
               .softcap = attention.softcap,
               .window = attention.window,
               .rope = model_.rope(index),
               .ops = device_,
               .n_wanted = part.n_logits,
               .n_later = part.n_later};
  if (watcher_ != nullptr && here.window == 0) watcher_->observe(here);
  // Attention's output takes the queries' place, and compressors look at the last queries afterwards.
  const int64_t n_tail = std::min(kTailRows, part.n);
  part.tail = device_.activations(n_tail, rows.cols);
  if (part.n_later == 0) {
    std::vector<int32_t> last(static_cast<size_t>(n_tail));
    std::iota(last.begin(), last.end(), static_cast<int32_t>(part.n - n_tail));
    device_.gather_rows(rows, last, part.tail);
  }
  // What the layer holds of tokens that were dropped below is invisible; selectors know nothing of that.
  const bool asleep = part.pruner != nullptr && part.pruner->revives() &&
                      here.kv.heads.front().n_slots > static_cast<int32_t>(part.alive.size());
  Selection selection;
  if (asleep) {
    selection = select_positions(here.kv.heads.front(), part.alive, here.q.n_rows);
  } else if (!pass.decode) {
    selection = choose(*part.sequence, here);
  }
  attend(*part.sequence, here, selection, pass.decode);
  if (part.pruner != nullptr && !pass.decode) count_pruned(here, part);
  if (part.n_later > 0) return;
  here.q = Mat(part.tail).heads(model_.shape().head_dim);
  here.limit = here.limit.last(static_cast<size_t>(n_tail));
  if (part.pruner != nullptr && index + 1 < model_.shape().n_layer) {
    device_.sync();
    double not_wanted = 0;
    const Stopwatch watch(pass.decode ? not_wanted : part.sequence->stats_.select_s);
    prune(part, here);
  }
  compress(part, here);
}

Selection Prefill::choose(Sequence& sequence, const Site& here) {
  Selection selection;
  const bool worth =
      here.window == 0 && here.q.n_rows >= kSelectRows && longest_head(here.kv) >= sequence.policy_.break_even();
  for (const Method& method : sequence.methods_) {
    if (method.selector == nullptr || !worth) continue;
    device_.sync();  // what a device still works on is not the selector's time
    const Stopwatch watch(sequence.stats_.select_s);
    selection = with_full_rows(method.selector->select(here), here, sequence.policy_.last_rows());
  }
  if (selection.estimated_mass) {
    sequence.stats_.estimate_sum += *selection.estimated_mass * static_cast<double>(here.q.n_rows);
    sequence.stats_.estimate_n += here.q.n_rows;
  }
  show(sequence, here, selection);
  return selection;
}

// Measurements are not part of the run: their time is taken off again.
void Prefill::show(Sequence& sequence, const Site& here, const Selection& selection) {
  const bool recall_wanted = engine_.options_.recall_rows > 0 && !selection.everything();
  if (!recall_wanted && !engine_.on_selection) return;
  device_.sync();  // what a device still works on is the run's
  double spent = 0;
  {
    const Stopwatch watch(spent);
    if (recall_wanted) {
      const Recall recall = sample_recall(here, selection, engine_.options_.recall_rows);
      sequence.stats_.recall_sum += recall.sum;
      sequence.stats_.recall_n += recall.n;
    }
    if (engine_.on_selection) engine_.on_selection(here, selection);
  }
  measured_ += spent;
  sequence.stats_.measure_s += spent;
}

void Prefill::attend(Sequence& sequence, const Site& here, const Selection& selection, bool decode) {
  double not_wanted = 0;
  const Stopwatch watch(decode ? not_wanted : sequence.stats_.attend_s);
  const std::vector<float> skip = sequence.skip_log_lambda(here, longest_head(here.kv), !decode);
  attend_layer(device_, here, selection,
               {.o = here.q,
                .skip = skip.empty() ? nullptr : skip.data(),
                .counts = decode ? &sequence.stats_.decode_counts : &sequence.stats_.counts,
                .after_piece = [this] { engine_.throw_if_cancelled(); }});
}

void Prefill::compress(Part& part, Site& here) {
  Sequence& sequence = *part.sequence;
  for (const Method& method : sequence.methods_) {
    if (method.compressor == nullptr) continue;
    compress_begun(part);
    apply_edit(here.layer, part);  // that of the compressor before this one
    device_.sync();
    const Stopwatch watch(sequence.stats_.select_s);
    here.kv = sequence.cache_.view(here.layer);
    if (method.compressor->begin(here)) {
      part.begun = method.compressor.get();
      part.site.emplace(here);
    } else {
      part.edit = method.compressor->compress(here, true);
    }
  }
}

void Prefill::compress_begun(Part& part) {
  if (part.begun == nullptr) return;
  const Stopwatch watch(part.sequence->stats_.select_s);
  part.edit = std::exchange(part.begun, nullptr)->compress(*part.site, true);
}

void Prefill::apply_edit(int32_t index, Part& part) {
  part.sequence->cache_.apply(index, part.edit);
  part.edit = {};
}

void Prefill::hand_over(const Pass& pass, const LogitsSink& sink) {
  std::vector<int32_t> wanted;
  for (const Part& part : pass.parts) {
    for (int64_t i = part.n - part.n_logits; i < part.n; ++i) wanted.push_back(static_cast<int32_t>(part.begin + i));
  }
  if (wanted.empty()) return;
  const int64_t n_wanted = std::ssize(wanted), n_vocab = model_.shape().n_vocab;
  const int64_t piece = std::clamp<int64_t>(kLogitsPiece / n_vocab, 1, n_wanted);
  std::unique_ptr<Unpacked> unpacked;
  if (n_wanted >= kUnpackRows) {
    const Weight* output = &model_.output_weight();
    unpacked = device_.unpack({&output, 1});
  }
  const Scratch x = device_.scratch(piece, pass.x->cols), logits = device_.scratch(piece, n_vocab);
  for (int64_t begin = 0; begin < n_wanted; begin += piece) {
    const int64_t n = std::min(piece, n_wanted - begin);
    device_.gather_rows(pass.x, std::span(wanted).subspan(static_cast<size_t>(begin), static_cast<size_t>(n)),
                        x->slice(0, n));
    model_.logits(device_, x->slice(0, n), logits->slice(0, n));
    device_.sync();
    sink(n_handed_, logits->slice(0, n));
    n_handed_ += n;
    engine_.throw_if_cancelled();
  }
}

void Prefill::report(double share_of_pass, int64_t n_rows) {
  if (!engine_.on_progress) return;
  const double done = static_cast<double>(n_done_) + share_of_pass * static_cast<double>(n_rows);
  engine_.on_progress(done / static_cast<double>(n_total_));
}

}  // namespace winnow
