// winnow chat: a conversation in a terminal. The cache is kept from turn to turn: only what is new is read.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "base/error.h"
#include "command.h"
#include "figures.h"
#include "files.h"
#include "line_reader.h"
#include "loaded.h"
#include "signals.h"
#include "target.h"

namespace winnow::roster {
namespace {

constexpr int32_t kRecallRows = 16;  // rows of each layer whose true attention mass is computed for `recall`

struct Options {
  ModelOptions model;
  std::vector<std::string> files;
  std::string system;
  GenerateOptions generate;
  bool stats = false;
};

class Chat {
 public:
  explicit Chat(const Options& options)
      : options_(options),
        loaded_(load(options.model, {.recall_rows = kRecallRows})),
        template_(chat_template(loaded_)),
        tuner_(loaded_, options.model),
        policy_(options.model.methods, loaded_.engine->method_shape()),
        sequence_(loaded_.engine->start(policy_)),
        terminal_(isatty(STDIN_FILENO) != 0 && isatty(STDERR_FILENO) != 0) {
    for (const std::string& path : options.files) document_ += read_text(path) + "\n\n";
    require_utf8(options.system, "the text after --system");
    reset();
  }

  /// Turns until the input ends or /exit.
  void run() {
    if (terminal_) {
      fmt::print(stderr, "{} ({}). /reset starts anew, /exit or Ctrl-D leaves, Ctrl-C stops an answer.\n",
                 model_name(loaded_), policy_.name());
    }
    std::string line;
    while (true) {
      if (terminal_) fmt::print(stderr, "\n> ");
      const LineReader::Result result = input_.next(line);
      if (result == LineReader::Result::end) break;
      if (result == LineReader::Result::interrupted) {
        if (!terminal_ || pending_signal() != SIGINT) check_signal();
        forget_signal();
        continue;
      }
      if (!take(line)) break;
    }
    if (terminal_) fmt::print(stderr, "\n");
  }

 private:
  void reset() {
    messages_.clear();
    if (!options_.system.empty()) messages_.push_back({"system", options_.system});
  }

  /// One line of input. -> false: leave.
  bool take(const std::string& line) {
    if (line == "/exit") return false;
    if (line == "/reset") {
      reset();
      return true;
    }
    if (line.find_first_not_of(" \t\r") == std::string::npos) return true;
    require_utf8(line, "the line");
    const bool first = messages_.empty() || messages_.back().role == "system";
    messages_.push_back({"user", (first ? document_ : std::string()) + line});
    try {
      answer();
    } catch (const Cancelled&) {
      throw;
    } catch (const Error& error) {  // a question that does not fit is no reason to lose the conversation
      if (!terminal_) throw;
      fmt::print(stderr, "winnow: {}\n", error.what());
      messages_.pop_back();
    }
    return true;
  }

  void answer() {
    Engine& engine = *loaded_.engine;
    const std::vector<int32_t> tokens = prompt_tokens(*loaded_.tokenizer, template_->render(messages_));
    require_room(loaded_, static_cast<int64_t>(tokens.size()), options_.generate.n_max);
    tune(std::ssize(tokens));
    const int32_t common = keep_common_prefix(sequence_, tokens);
    sequence_.reset_stats();
    engine.device().memory().reset_peak();
    std::string text;
    try {
      Watch watch(engine, "reading", static_cast<int64_t>(tokens.size()) - common);
      const GenerateHooks hooks{[&](std::string_view piece) {
                                  watch.clear();
                                  text += piece;
                                  if (options_.model.json) return;
                                  fmt::print("{}", piece);
                                  std::fflush(stdout);
                                },
                                {}};
      const Generated answer =
          generate(engine, sequence_, *loaded_.tokenizer, std::span(tokens).subspan(static_cast<size_t>(common)),
                   options_.generate, hooks);
      watch.clear();
      report(answer, common);
    } catch (const Cancelled&) {
      if (!terminal_ || pending_signal() != SIGINT) throw;
      forget_signal();
      fmt::print(stderr, "\n[stopped]\n");
    }
    messages_.push_back({"assistant", text});
  }

  /// A target's knob is set by the first question's length, and again where a conversation has begun anew.
  void tune(int64_t n_tokens) {
    const bool first = std::none_of(messages_.begin(), messages_.end(),
                                    [](const ChatMessage& message) { return message.role == "assistant"; });
    if (!tuner_.wanted() || !first) return;
    const Tuned tuned = tuner_.tune(options_.model.methods, n_tokens);
    policy_ = Policy(tuned.specs, loaded_.engine->method_shape());
    sequence_ = loaded_.engine->start(policy_);
    if (options_.stats || terminal_) fmt::print(stderr, "[{}]\n", tuner_.sentence(tuned));
  }

  void report(const Generated& answer, int32_t common) {
    const Figures figures = measure(*loaded_.engine, sequence_, answer);
    if (options_.model.json) {
      Json line = {{"answer", answer.text}, {"finish", finish_name(answer.finish)}, {"n_reused", common}};
      add_figures(line, figures);
      print_json(line);
      return;
    }
    fmt::print("\n");
    std::fflush(stdout);
    if (options_.stats) fmt::print(stderr, "[{} reused; {}]\n", human_count(common), sentence(figures));
  }

  const Options& options_;
  Loaded loaded_;
  std::unique_ptr<ChatTemplate> template_;
  Tuner tuner_;
  Policy policy_;
  Sequence sequence_;
  bool terminal_;
  LineReader input_;
  std::string document_;
  std::vector<ChatMessage> messages_;
};

std::function<void()> add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->generate.n_max = 1024;
  add_model_options(app, options->model, "longest conversation in tokens (default: the model's own limit)");
  add_methods(app, options->model, "attention method; several work together");
  app.add_option("-f,--file", options->files, "a text that stands before the first question; repeatable")
      ->allow_extra_args(false)
      ->type_name("FILE");
  app.add_option("--system", options->system, "system message")->type_name("TEXT");
  add_generate_options(app, options->generate);
  app.add_flag("--stats", options->stats, "tell each answer's figures on standard error");
  return [options] { Chat(*options).run(); };
}

}  // namespace

const CommandInfo& command_chat() {
  static const CommandInfo kInfo = {"chat", "conversation in a terminal, reusing the cache from turn to turn",
                                    "winnow chat -m qwen.gguf\n"
                                    "winnow chat -m qwen.gguf -f report.txt --method flexprefill --kv q8_0\n"
                                    "printf 'Name a river.\\nAnd a lake.\\n' | winnow chat -m qwen.gguf --stats",
                                    add};
  return kInfo;
}

}  // namespace winnow::roster
