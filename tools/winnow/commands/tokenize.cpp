// winnow tokenize: a text's ids. Takes any bytes; adds no BOS.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/error.h"
#include "command.h"
#include "files.h"
#include "json_string.h"
#include "model/gguf.h"
#include "options.h"
#include "signals.h"

namespace winnow::roster {
namespace {

struct Options {
  std::string model, file = "-";
  bool special = false, json_lines = false, json = false;
};

void tokenize_lines(const Tokenizer& tokenizer, const Options& options, std::string_view text) {
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    check_signal();
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    std::string value;
    try {
      value = parse_json_string(line);
    } catch (const Error& error) {
      fail("{}: line {}, {}", options.file == "-" ? "standard input" : options.file, number, error.what());
    }
    fmt::print("[{}]\n", fmt::join(tokenizer.encode(value, options.special), ","));
  }
}

void run(const Options& options) {
  const auto file = Gguf::open(options.model);
  const auto tokenizer = Tokenizer::load(file->metadata());
  const std::string text = read_file(options.file);
  if (options.json_lines) {
    tokenize_lines(*tokenizer, options, text);
    return;
  }
  const std::vector<int32_t> ids = tokenizer->encode(text, options.special);
  if (options.json) {
    fmt::print("{{\"ids\":[{}],\"n_tokens\":{}}}\n", fmt::join(ids, ","), ids.size());
  } else {
    fmt::print("{}\n", fmt::join(ids, " "));
  }
}

std::function<void()> add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_model_path(app, options->model)->required();
  app.add_option("-f,--file", options->file, "the text, any bytes (default: standard input)")->type_name("FILE");
  app.add_flag("--special", options->special, "texts of special tokens, such as <|im_end|>, become those tokens");
  CLI::Option* lines =
      app.add_flag("--jsonl", options->json_lines, "a JSON string a line in, an array of ids a line out");
  app.add_flag("--json", options->json, "the ids as one JSON object")->excludes(lines);
  return [options] { run(*options); };
}

}  // namespace

const CommandInfo& command_tokenize() {
  static const CommandInfo kInfo = {"tokenize", "a text's token ids",
                                    "winnow tokenize -m qwen.gguf -f text.txt\n"
                                    "printf 'Hello, world' | winnow tokenize -m qwen.gguf\n"
                                    "printf '\"Hello\"\\n\"a\\\\tb\"\\n' | winnow tokenize -m qwen.gguf --jsonl",
                                    add};
  return kInfo;
}

}  // namespace winnow::roster
