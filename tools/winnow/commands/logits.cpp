// winnow logits: the raw scores of every token of one window, for whoever wants to compare engines.
#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "command.h"
#include "files.h"
#include "loaded.h"
#include "output.h"
#include "target.h"

namespace winnow::roster {
namespace {

static_assert(std::endian::native == std::endian::little, "the .npy header below says little-endian");

struct Options {
  ModelOptions model;
  std::string file, out;
};

/// The head of a NumPy file of float32 [rows, cols]: its length is a multiple of 64 bytes.
std::string npy_header(int64_t rows, int64_t cols) {
  std::string dict = fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", rows, cols);
  constexpr size_t kPreamble = 10;  // magic, version, length of the rest
  dict.resize((kPreamble + dict.size() + 1 + 63) / 64 * 64 - kPreamble - 1, ' ');
  dict += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(dict.size() & 0xff);
  header += static_cast<char>(dict.size() >> 8);
  return header + dict;
}

void run(const Options& options) {
  const Loaded loaded = load(options.model);
  Engine& engine = *loaded.engine;
  std::vector<int32_t> tokens = read_prompt(loaded, {{options.file}, "", "", true});
  tokens.resize(std::min(tokens.size(), static_cast<size_t>(options.model.n_ctx)));
  const int64_t n_tokens = std::ssize(tokens);
  require_room(loaded, n_tokens - 1, 1);
  const Tuned tuned = Tuner(loaded, options.model).tune(options.model.methods, n_tokens);
  const Policy policy(tuned.specs, engine.method_shape());

  PendingFile out(options.out);
  const int64_t n_vocab = engine.model().shape().n_vocab;
  const std::string header = npy_header(n_tokens, n_vocab);
  out.write(header.data(), header.size());
  Sequence sequence = engine.start(policy);
  std::vector<float> host;
  {
    const Watch watch(engine, "reading", n_tokens);
    engine.prefill(sequence, tokens, static_cast<int32_t>(n_tokens), [&](int64_t, Mat logits) {
      host.resize(static_cast<size_t>(logits.rows * logits.cols));
      engine.device().download(host.data(), logits);
      out.write(host.data(), host.size() * sizeof(float));
    });
  }
  out.commit();
  if (options.model.json) {
    print_json({{"file", options.out}, {"n_tokens", n_tokens}, {"n_vocab", n_vocab}, {"method", policy.name()}});
  } else {
    fmt::print("{}: float32 [{}, {}]\n", options.out, n_tokens, n_vocab);
  }
}

std::function<void()> add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->model.n_ctx = 512;
  add_model_options(app, options->model, "tokens of the window: the text's first N, or all it has (default 512)");
  add_methods(app, options->model, "attention method; several work together");
  app.add_option("-f,--file", options->file, "the text, taken as it is; - is standard input")
      ->type_name("FILE")
      ->required();
  app.add_option("-o,--out", options->out, "the NumPy file to write")->type_name("OUT.npy")->required();
  return [options] { run(*options); };
}

}  // namespace

const CommandInfo& command_logits() {
  static const CommandInfo kInfo = {"logits", "float32 [n_tokens, n_vocab] of one window, as a NumPy file",
                                    "winnow logits -m qwen.gguf -f text.txt --ctx 256 -o logits.npy\n"
                                    "winnow logits -m qwen.gguf -f text.txt --ctx 256 --device ref -o reference.npy",
                                    add};
  return kInfo;
}

}  // namespace winnow::roster
