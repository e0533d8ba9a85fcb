#include "loaded.h"

#include <filesystem>

#include "base/error.h"
#include "files.h"
#include "memory_room.h"
#include "output.h"
#include "signals.h"

namespace winnow {
namespace {

Type kv_type(const std::string& name) {
  if (name == "bf16") return Type::bf16;
  if (name == "fp8") return Type::fp8;
  return name == "q8_0" ? Type::q8_0 : Type::f16;
}

void start_engine(Loaded& loaded, std::unique_ptr<Model> model, const ModelOptions& options,
                  EngineOptions engine_options) {
  if (options.n_ctx > model->shape().n_ctx) {
    fail("-c {}: this model was made for at most {} tokens", options.n_ctx, model->shape().n_ctx);
  }
  engine_options.kv_type = kv_type(options.kv);
  engine_options.n_ctx = options.n_ctx;
  auto device = make_device(options.device, options.threads, product_type(options.products));
  loaded.engine = std::make_unique<Engine>(std::move(model), std::move(device), engine_options);
  check_signal();
}

}  // namespace

Loaded load(const ModelOptions& options, EngineOptions engine_options) {
  Loaded loaded;
  loaded.file = Gguf::open(options.path);
  loaded.tokenizer = Tokenizer::load(loaded.file->metadata());
  auto model = load_model(loaded.file);
  if (loaded.tokenizer->n_vocab() > model->shape().n_vocab) {
    fail("{}: the tokenizer has {} tokens and the model only {}", options.path, loaded.tokenizer->n_vocab(),
         model->shape().n_vocab);
  }
  start_engine(loaded, std::move(model), options, engine_options);
  return loaded;
}

Loaded load(std::vector<std::byte> gguf, const ModelOptions& options, EngineOptions engine_options) {
  Loaded loaded;
  loaded.bytes = std::move(gguf);
  loaded.file = Gguf::parse(options.path, loaded.bytes.data(), loaded.bytes.size());
  start_engine(loaded, load_model(loaded.file), options, engine_options);
  return loaded;
}

std::unique_ptr<ChatTemplate> chat_template(const Loaded& loaded) {
  auto chat = ChatTemplate::load(loaded.file->metadata());
  if (!chat) fail("{}: the model has no chat template; add --raw to continue the text as it is", loaded.file->path());
  return chat;
}

std::string model_name(const Loaded& loaded) {
  const std::string& name = loaded.engine->model().shape().name;
  return name.empty() ? std::filesystem::path(loaded.file->path()).stem().string() : name;
}

void require_room(const Loaded& loaded, int64_t n_prompt, int64_t n_more, int64_t other_bytes) {
  Engine& engine = *loaded.engine;
  if (n_prompt >= engine.n_ctx()) {
    fail("the prompt has {} tokens and the context holds {}, the answer included", human_count(n_prompt),
         human_count(engine.n_ctx()));
  }
  const int64_t n_tokens = std::min<int64_t>(n_prompt + n_more, engine.n_ctx());
  const int64_t need = needed_bytes(engine, n_tokens) + other_bytes;
  const int64_t room = available_bytes(engine);
  if (need > room) {
    const Type kv = engine.options().kv_type;
    const bool is_byte_wide = kv == Type::q8_0 || kv == Type::fp8;
    fail(
        "{} tokens need about {} of memory beside the model's weights and only {} are free; a shorter prompt{} needs "
        "less",
        human_count(n_tokens), human_bytes(static_cast<double>(need)), human_bytes(static_cast<double>(room)),
        is_byte_wide ? "" : " or --kv q8_0");
  }
}

std::vector<int32_t> read_prompt(const Loaded& loaded, const PromptInput& input) {
  std::string text;
  for (const std::string& path : input.files) {
    text += read_text(path);
    if (!input.raw) text += "\n\n";
  }
  require_utf8(input.prompt, "the text after -p");
  require_utf8(input.system, "the text after --system");
  text += input.prompt;
  if (text.find_first_not_of(" \t\r\n") == std::string::npos) {
    fail("the prompt is empty: give a question with -p, a file with -f, or both");
  }
  if (input.raw) return prompt_tokens(*loaded.tokenizer, text);
  std::vector<ChatMessage> messages;
  if (!input.system.empty()) messages.push_back({"system", input.system});
  messages.push_back({"user", text});
  return prompt_tokens(*loaded.tokenizer, chat_template(loaded)->render(messages));
}

Watch::Watch(Engine& engine, const std::string& what, int64_t n_tokens)
    : engine_(engine), progress_(what, static_cast<double>(n_tokens), "tok"), total_(static_cast<double>(n_tokens)) {
  watch_engine(&engine);
  begin(0, n_tokens);
}

void Watch::begin(int64_t done, int64_t n) {
  engine_.on_progress = [this, done, n](double share) {
    const double now = static_cast<double>(done) + share * static_cast<double>(n);
    if (now >= total_) {
      progress_.clear();
    } else {
      progress_.update(now);
    }
  };
}

Watch::~Watch() {
  engine_.on_progress = nullptr;
  watch_engine(nullptr);
}

}  // namespace winnow
