// Options that several commands share, spelled and checked once.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "engine/generate.h"
#include "engine/knob_curve.h"

namespace winnow {

struct ModelOptions {
  std::string path;
  std::vector<std::string> methods;
  KnobAim target;  // that the methods' knobs are set for; see target.h
  std::string kv = "f16";
  std::string device = "cpu";
  std::string products = "own";
  int threads = 0;
  int n_ctx = 0;
  bool json = false;
};

/// -m alone, for commands that only look into the file.
CLI::Option* add_model_path(CLI::App& app, std::string& path);
/// -m, --kv, --threads, --device, --products, -c and --json. `ctx_meaning` explains -c.
void add_model_options(CLI::App& app, ModelOptions& options, const std::string& ctx_meaning);
inline constexpr const char* kCtxLimit = "longest prompt with answer, in tokens (default: the model's own limit)";
void add_json(CLI::App& app, bool& json);
/// --method, repeatable, with --target-recall and --target-speedup. `meaning` tells whether methods work together or
/// one after another.
void add_methods(CLI::App& app, ModelOptions& options, const std::string& meaning);
/// -n, --temp, --top-k, --top-p, --min-p, --repeat-penalty, --seed, --stop.
void add_generate_options(CLI::App& app, GenerateOptions& options);
/// -f, repeatable, and -p.
void add_prompt_options(CLI::App& app, std::vector<std::string>& files, std::string& prompt);

/// --trace, for commands that run methods (see density_trace.h).
void add_trace(CLI::App& app, std::string& folder);

/// For app.add_option(...)->check(...): whole numbers, and numbers, between two limits.
CLI::Validator whole_between(int64_t low, int64_t high);
CLI::Validator number_between(double low, double high);

/// "a + b" taken apart: several methods that work together, where a command's --method stands for one contestant.
std::vector<std::string> split_methods(const std::string& text);

}  // namespace winnow
