#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <optional>

#include "engine/pack.h"
#include "engine/prefill.h"
#include "engine/stopwatch.h"

namespace winnow {
namespace {

// Rows of several prompts that are read together. Unpacking a layer's weights costs as much as a few hundred rows of
// its products, so more rows than this gain nothing and only take memory.
constexpr int64_t kPackRows = 4096;

/// Tells the device where a step begins and ends.
class DecodeStep {
 public:
  explicit DecodeStep(Device& device) : device_(device) { device_.begin_step(); }
  ~DecodeStep() { device_.end_step(); }
  DecodeStep(const DecodeStep&) = delete;
  DecodeStep& operator=(const DecodeStep&) = delete;

 private:
  Device& device_;
};

}  // namespace

void Sequence::truncate(int32_t n) {
  WINNOW_ASSERT(n >= 0 && n <= n_tokens());
  if (n == n_tokens()) return;
  tokens_.resize(static_cast<size_t>(n));
  cache_.truncate(n);
  for (HiddenRows& rows : hidden_) rows.truncate(n);
  methods_ = policy_.make();
}

Sequence Sequence::fork() const {
  Sequence copy(cache_.fork(), policy_);
  copy.tokens_ = tokens_;
  copy.hidden_ = hidden_;
  return copy;
}

size_t Sequence::bytes() const {
  size_t total = cache_.bytes();
  for (const HiddenRows& rows : hidden_) total += rows.bytes();
  return total;
}

Pruner* Sequence::pruner() const {
  for (const Method& method : methods_) {
    if (method.pruner != nullptr) return method.pruner.get();
  }
  return nullptr;
}

bool Sequence::compresses() const {
  return std::any_of(methods_.begin(), methods_.end(),
                     [](const Method& method) { return method.compressor != nullptr; });
}

std::vector<float> Sequence::skip_log_lambda(const Site& site, int64_t n_slots, bool prefill) const {
  if (site.window > 0 || n_slots < policy_.skip_break_even()) return {};
  double factor = 0;
  for (const Method& method : methods_) factor = std::max(factor, prefill ? method.skip.prefill : method.skip.decode);
  if (factor <= 0 || factor >= static_cast<double>(n_slots)) return {};
  const auto log_lambda = static_cast<float>(std::log(factor) - std::log(static_cast<double>(n_slots)));
  return std::vector<float>(static_cast<size_t>(site.q.n_head), log_lambda);
}

// Whether the next token may take up older ones, or drop some. Below the break-even nothing was ever dropped.
bool Sequence::decodes_alone() const {
  if (!revives()) return false;
  const bool sleepers = std::any_of(hidden_.begin(), hidden_.end(), [](const auto& rows) { return rows.size() > 0; });
  return sleepers || n_tokens() + 1 >= policy_.prune_break_even();
}

Engine::Engine(std::unique_ptr<Model> model, std::unique_ptr<Device> device, const EngineOptions& options)
    : model_(std::move(model)), device_(std::move(device)), options_(options) {
  const ModelShape& shape = model_->shape();
  if (options_.chunk == 0) options_.chunk = device_->rows_at_once().product;
  const int32_t block = type_info(options_.kv_type).block_values;
  if (shape.head_dim % block != 0) {
    fail("the cache type {} stores {} values a block; this model's heads have {}", type_info(options_.kv_type).name,
         block, shape.head_dim);
  }
  if (options_.chunk < 1)
    fail("chunk is {}; it must be at least 1 row, or 0 for what suits the device", options_.chunk);
  if (options_.n_ctx < 0 || options_.n_ctx > shape.n_ctx) {
    fail("a context of {} tokens is asked for; the model was made for 1 to {}", options_.n_ctx, shape.n_ctx);
  }
}

MethodShape Engine::method_shape() const {
  const ModelShape& shape = model_->shape();
  return {.n_layer = shape.n_layer,
          .n_head = shape.n_head,
          .n_head_kv = shape.n_head_kv,
          .head_dim = shape.head_dim,
          .architecture = shape.architecture,
          .on_gpu = !device_->memory_is_host()};
}

int32_t Engine::n_ctx() const {
  return options_.n_ctx > 0 ? options_.n_ctx : model_->shape().n_ctx;
}

Sequence Engine::start(const Policy& policy) {
  const ModelShape& shape = model_->shape();
  return Sequence(
      KvCache(*device_, {shape.n_layer, shape.n_head_kv, shape.head_dim, options_.kv_type, options_.kv_type}), policy);
}

void Engine::check_room(const Sequence& sequence, size_t n_new) const {
  const size_t n = static_cast<size_t>(sequence.n_tokens()) + n_new;
  if (n > static_cast<size_t>(n_ctx())) {
    fail("the prompt is too long: {} tokens, and the context holds {}", n, n_ctx());
  }
}

void Engine::throw_if_cancelled() {
  if (cancelled_.exchange(false)) throw Cancelled("stopped");
}

// Whatever stops `work` (Ctrl-C, no memory, our own error), the sequences are as before. A cache that only grew is
// truncated, and of layers that were edited it remembers what they held. In prefill that would be the whole prompt,
// since edits come after it: there a fork from before it is kept, and so it is where a pruner revives, which writes
// between older slots.
void Engine::guarded(std::span<Sequence* const> sequences, Step step, const std::function<void()>& work) {
  struct Before {
    size_t n_tokens;
    std::optional<KvCache> cache;
    std::vector<HiddenRows> hidden;
  };
  std::vector<Before> before;
  for (Sequence* sequence : sequences) {
    Before state{sequence->tokens_.size(), std::nullopt, sequence->hidden_};
    if (sequence->revives() || (step == Step::prefill && sequence->compresses())) {
      state.cache = sequence->cache_.fork();
    } else {
      sequence->cache_.remember();
    }
    before.push_back(std::move(state));
  }
  try {
    work();
  } catch (...) {
    device_->sync();  // counts that are still on their way belong to sequences that may go now
    for (size_t i = 0; i < sequences.size(); ++i) {
      Sequence& sequence = *sequences[i];
      sequence.tokens_.resize(before[i].n_tokens);
      if (before[i].cache) {
        sequence.cache_ = std::move(*before[i].cache);
      } else {
        sequence.cache_.take_back(static_cast<int32_t>(before[i].n_tokens));
      }
      sequence.hidden_ = std::move(before[i].hidden);
      sequence.methods_ = sequence.policy_.make();
    }
    throw;
  }
  for (Sequence* sequence : sequences) sequence->cache_.forget();
}

void Engine::prefill(Sequence& sequence, std::span<const int32_t> tokens, int32_t n_logits, const LogitsSink& sink) {
  if (tokens.empty()) fail("the prompt is empty: there is no token to read");
  if (n_logits < 1 || static_cast<size_t>(n_logits) > tokens.size()) {
    fail("logits of {} tokens are asked for; the prompt has {}", n_logits, tokens.size());
  }
  check_room(sequence, tokens.size());
  const Reading reading = {&sequence, tokens, n_logits};
  Sequence* one = &sequence;
  guarded({&one, 1}, Step::prefill, [&] { Prefill(*this, std::ssize(tokens)).run({&reading, 1}, sink); });
}

std::vector<float> Engine::prefill(Sequence& sequence, std::span<const int32_t> tokens) {
  std::vector<float> logits(static_cast<size_t>(model_->shape().n_vocab));
  prefill(sequence, tokens, 1, [&](int64_t, Mat rows) { device_->download(logits.data(), rows); });
  return logits;
}

std::vector<float> Engine::prefill(std::span<Sequence* const> sequences,
                                   std::span<const std::span<const int32_t>> prompts) {
  WINNOW_ASSERT(!sequences.empty() && sequences.size() == prompts.size());
  std::vector<int64_t> lengths;
  for (size_t i = 0; i < prompts.size(); ++i) {
    WINNOW_ASSERT(std::count(sequences.begin(), sequences.end(), sequences[i]) == 1);
    if (prompts[i].empty()) fail("prompt {} of {} is empty: there is no token to read", i + 1, prompts.size());
    check_room(*sequences[i], prompts[i].size());
    lengths.push_back(std::ssize(prompts[i]));
  }
  const int64_t n_vocab = model_->shape().n_vocab;
  std::vector<float> result(sequences.size() * static_cast<size_t>(n_vocab));
  const int64_t capacity = std::max(kPackRows, *std::max_element(lengths.begin(), lengths.end()));
  const std::vector<std::vector<int32_t>> bins = pack_prompts(lengths, capacity);
  guarded(sequences, Step::prefill, [&] {
    Prefill prefill(*this, std::accumulate(lengths.begin(), lengths.end(), int64_t{0}));
    for (const std::vector<int32_t>& bin : bins) {
      std::vector<Reading> readings;
      readings.reserve(bin.size());
      for (const int32_t i : bin) {
        readings.push_back({sequences[static_cast<size_t>(i)], prompts[static_cast<size_t>(i)], 1});
      }
      prefill.run(readings, [&](int64_t first, Mat logits) {
        for (int64_t row = 0; row < logits.rows; ++row) {
          const int64_t prompt = bin[static_cast<size_t>(first + row)];
          device_->download(result.data() + prompt * n_vocab, logits.slice(row, 1));
        }
      });
    }
  });
  return result;
}

void Engine::calibrate(std::span<const int32_t> tokens, Calibration& calibration) {
  Sequence sequence = start({});
  if (tokens.empty()) fail("the calibration text is empty");
  check_room(sequence, tokens.size());
  const Reading reading = {&sequence, tokens, 1};
  Prefill(*this, std::ssize(tokens), &calibration).run({&reading, 1}, [](int64_t, Mat) {});
}

std::vector<float> Engine::decode(Sequence& sequence, int32_t token) {
  Sequence* one = &sequence;
  return decode(std::span<Sequence* const>(&one, 1), std::span<const int32_t>(&token, 1));
}

std::vector<float> Engine::decode(std::span<Sequence* const> sequences, std::span<const int32_t> tokens) {
  WINNOW_ASSERT(!sequences.empty() && sequences.size() == tokens.size());
  for (const Sequence* sequence : sequences) check_room(*sequence, 1);
  const auto begin = std::chrono::steady_clock::now();
  const int64_t n_vocab = model_->shape().n_vocab;
  std::vector<float> result(sequences.size() * static_cast<size_t>(n_vocab));
  // A step that takes older tokens up again has rows of its own in every layer: it goes the way of a prefill, alone.
  std::vector<size_t> together;
  guarded(sequences, Step::decode, [&] {
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (!sequences[i]->decodes_alone()) {
        together.push_back(i);
        continue;
      }
      Prefill(*this, 1).decode(*sequences[i], tokens[i], [&](int64_t, Mat logits) {
        device_->download(result.data() + i * static_cast<size_t>(n_vocab), logits);
      });
    }
    if (!together.empty()) decode_together(sequences, tokens, together, result.data());
  });
  const double spent = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  for (size_t i = 0; i < sequences.size(); ++i) {
    sequences[i]->tokens_.push_back(tokens[i]);
    sequences[i]->stats_.n_decode += 1;
    sequences[i]->stats_.decode_s += spent;
  }
  return result;
}

Selection Engine::choose_row(Sequence& sequence, const Site& site) {
  const bool worth = site.window == 0 && longest_head(site.kv) >= sequence.policy_.break_even();
  for (const Method& method : sequence.methods_) {
    if (!worth || method.selector == nullptr || !method.selector->in_decode()) continue;
    const Stopwatch watch(sequence.stats_.decode_select_s);
    Selection selection = method.selector->select(site);
    if (!selection.everything()) return selection;
  }
  for (const Method& method : sequence.methods_) {
    if (method.compressor == nullptr) continue;
    Selection selection = method.compressor->select_row(site);
    if (!selection.everything()) return selection;
  }
  return {};
}

// One row for each of the sequences `which`. logits: [sequences.size(), n_vocab], host memory; theirs are written.
void Engine::decode_together(std::span<Sequence* const> sequences, std::span<const int32_t> tokens,
                             std::span<const size_t> which, float* logits) {
  const ModelShape& shape = model_->shape();
  const auto n = static_cast<int64_t>(which.size());
  std::vector<Sequence*> theirs;
  std::vector<int32_t> new_tokens, position;
  for (const size_t i : which) {
    theirs.push_back(sequences[i]);
    new_tokens.push_back(tokens[i]);
    position.push_back(sequences[i]->n_tokens());
  }
  const DecodeStep step(*device_);
  const Scratch x = device_->scratch(n, shape.n_embd);
  model_->embed(*device_, new_tokens, x);
  for (int32_t layer = 0; layer < shape.n_layer; ++layer) {
    decode_layer(layer, x, theirs, position);
    throw_if_cancelled();
  }
  const Scratch rows = device_->scratch(n, shape.n_vocab);
  model_->logits(*device_, x, rows);
  for (int64_t row = 0; row < n; ++row) {
    const auto i = static_cast<int64_t>(which[static_cast<size_t>(row)]);
    device_->download(logits + i * shape.n_vocab, rows->slice(row, 1));
  }
  device_->sync();
}

void Engine::decode_layer(int32_t layer, Mat x, std::span<Sequence* const> sequences,
                          std::span<const int32_t> position) {
  const ModelShape& shape = model_->shape();
  const AttnShape attention = model_->attention(layer);
  const Scratch q = device_->activations(x.rows, int64_t{shape.n_head} * shape.head_dim);
  const Scratch o = device_->activations(x.rows, int64_t{shape.n_head} * shape.head_dim);
  const Scratch k = device_->activations(x.rows, int64_t{shape.n_head_kv} * shape.head_dim);
  const Scratch v = device_->activations(x.rows, int64_t{shape.n_head_kv} * shape.head_dim);
  model_->qkv(*device_, layer, x, position, q, k, v);
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence& sequence = *sequences[i];
    const auto row = static_cast<int64_t>(i);
    const auto heads = [&](const Scratch& mat) { return mat->slice(row, 1).heads(shape.head_dim); };
    sequence.cache_.append(layer, heads(k), heads(v), position[i]);
    Site site{layer,
              heads(q),
              sequence.cache_.view(layer),
              position.subspan(i, 1),
              attention.scale,
              attention.softcap,
              attention.window,
              model_->rope(layer),
              *device_};
    const std::vector<float> skip = sequence.skip_log_lambda(site, position[i] + 1, false);
    const Selection selection = choose_row(sequence, site);
    device_->attend({.q = site.q,
                     .kv = site.kv,
                     .limit = &position[i],
                     .selection = selection.everything() ? nullptr : &selection,
                     .scale = attention.scale,
                     .softcap = attention.softcap,
                     .window = attention.window,
                     .skip = skip.empty() ? nullptr : skip.data(),
                     .o = heads(o),
                     .lse = nullptr,
                     .counts = &sequence.stats_.decode_counts});
    for (const Method& method : sequence.methods_) {
      if (method.compressor == nullptr) continue;
      site.kv = sequence.cache_.view(layer);
      sequence.cache_.apply(layer, method.compressor->compress(site, false));
    }
  }
  model_->mix(*device_, layer, x, o);
}

}  // namespace winnow
