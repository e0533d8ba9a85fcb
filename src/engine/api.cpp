// The installed header's Session over the engine.
#include <winnow/winnow.h>

#include "engine/generate.h"
#include "text/chat.h"

namespace winnow {
namespace {

Type kv_type(const std::string& name) {
  if (name == "f16") return Type::f16;
  if (name == "bf16") return Type::bf16;
  if (name == "q8_0") return Type::q8_0;
  if (name == "fp8") return Type::fp8;
  fail("kv is '{}'; it must be f16, bf16, q8_0 or fp8", name);
}

Engine make_engine(const std::shared_ptr<const Gguf>& file, const SessionOptions& options) {
  EngineOptions engine_options;
  engine_options.kv_type = kv_type(options.kv);
  engine_options.n_ctx = options.n_ctx;
  return {load_model(file), make_device(options.device, options.threads, product_type(options.products)),
          engine_options};
}

double rate(int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

}  // namespace

struct Session::State {
  State(std::shared_ptr<const Gguf> model_file, const SessionOptions& options)
      : file(std::move(model_file)),
        tokenizer(Tokenizer::load(file->metadata())),
        engine(make_engine(file, options)),
        sequence(engine.start(Policy(options.methods, engine.method_shape()))) {}

  std::vector<int32_t> tokens_of(const Request& request) const {
    if (request.raw) return prompt_tokens(*tokenizer, request.prompt);
    const auto chat = ChatTemplate::load(file->metadata());
    if (!chat) fail("{}: the model has no chat template; ask with raw = true", file->path());
    std::vector<ChatMessage> messages;
    if (!request.system.empty()) messages.push_back({"system", request.system});
    messages.push_back({"user", request.prompt});
    return prompt_tokens(*tokenizer, chat->render(messages));
  }

  std::shared_ptr<const Gguf> file;
  std::unique_ptr<Tokenizer> tokenizer;
  Engine engine;
  Sequence sequence;
};

Session::Session(const std::string& model_path, const SessionOptions& options)
    : state_(std::make_unique<State>(Gguf::open(model_path), options)) {}

Session::~Session() = default;
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;

Answer Session::generate(const Request& request, const std::function<void(std::string_view)>& on_text) {
  Engine& engine = state_->engine;
  Sequence& sequence = state_->sequence;
  if (request.prompt.empty()) fail("the prompt is empty");
  if (request.n_max < 1) fail("n_max is {}; it must be at least 1 token", request.n_max);
  const std::vector<int32_t> tokens = state_->tokens_of(request);
  if (std::ssize(tokens) > engine.n_ctx()) {
    fail("the prompt has {} tokens and the context holds {}", tokens.size(), engine.n_ctx());
  }
  GenerateOptions options;
  options.sampler.temperature = request.temperature;
  options.sampler.top_k = request.top_k;
  options.sampler.top_p = request.top_p;
  options.sampler.min_p = request.min_p;
  options.sampler.repeat_penalty = request.repeat_penalty;
  options.sampler.seed = request.seed;
  options.n_max = request.n_max;
  options.stops = request.stops;
  const int32_t common = keep_common_prefix(sequence, tokens);
  sequence.reset_stats();
  engine.device().memory().reset_peak();
  const Generated generated =
      winnow::generate(engine, sequence, *state_->tokenizer, std::span(tokens).subspan(static_cast<size_t>(common)),
                       options, {on_text, nullptr});
  const RunStats& stats = sequence.stats();
  Answer answer;
  answer.text = generated.text;
  answer.finish = finish_name(generated.finish);
  answer.n_reused = common;
  answer.n_prompt = stats.n_prefill;
  answer.n_gen = std::ssize(generated.tokens);
  answer.ttft_s = generated.ttft_s;
  answer.prefill_tok_s = rate(stats.n_prefill, stats.prefill_s);
  answer.decode_tok_s = rate(stats.n_decode, stats.decode_s);
  answer.density = stats.counts.density();
  answer.kv_bytes = static_cast<int64_t>(sequence.cache().bytes());
  answer.peak_bytes = engine.device().memory().peak();
  return answer;
}

void Session::cancel() {
  state_->engine.cancel();
}

int Session::n_ctx() const {
  return state_->engine.n_ctx();
}

std::vector<int32_t> Session::tokenize(std::string_view text) const {
  return state_->tokenizer->encode(text, false);
}

}  // namespace winnow
