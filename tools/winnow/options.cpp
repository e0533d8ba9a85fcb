#include "options.h"

#include <fmt/format.h>

#include <charconv>
#include <limits>

namespace winnow {
namespace {

constexpr int64_t kMaxTokens = 16 << 20;

template <typename T>
bool parse_number(const std::string& text, T& value) {
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  return code == std::errc() && end == text.data() + text.size();
}

}  // namespace

CLI::Validator whole_between(int64_t low, int64_t high) {
  const auto check = [low, high](std::string& text) -> std::string {
    int64_t value = 0;
    if (parse_number(text, value) && value >= low && value <= high) return {};
    return fmt::format("\"{}\" is not a whole number from {} to {}", text, low, high);
  };
  return {check, "", "whole"};
}

CLI::Validator number_between(double low, double high) {
  const auto check = [low, high](std::string& text) -> std::string {
    double value = 0;
    if (parse_number(text, value) && value >= low && value <= high) return {};
    return fmt::format("\"{}\" is not a number from {} to {}", text, low, high);
  };
  return {check, "", "number"};
}

CLI::Option* add_model_path(CLI::App& app, std::string& path) {
  return app.add_option("-m,--model", path, "the model, a GGUF file")->type_name("FILE");
}

void add_json(CLI::App& app, bool& json) {
  app.add_flag("--json", json, "one JSON object a line instead of text");
}

void add_model_options(CLI::App& app, ModelOptions& options, const std::string& ctx_meaning) {
  add_model_path(app, options.path)->required();
  app.add_option("-c,--ctx", options.n_ctx, ctx_meaning)->check(whole_between(1, kMaxTokens))->type_name("N");
  app.add_option("--kv", options.kv, "how keys and values are stored: f16, bf16, q8_0 or fp8 (default f16)")
      ->check(CLI::IsMember({"f16", "bf16", "q8_0", "fp8"}).description(""))
      ->type_name("TYPE");
  app.add_option("--threads", options.threads, "threads (default: one for each core)")
      ->check(whole_between(1, 4096))
      ->type_name("N");
  app.add_option("--device", options.device,
                 "cpu, cuda: an NVIDIA GPU, or ref: plain loops in double, for checking (default cpu)")
      ->check(CLI::IsMember({"cpu", "cuda", "ref"}).description(""))
      ->type_name("NAME");
  app.add_option("--products", options.products,
                 "what the layers' matrix products are computed in: own, the device's own choice, or fp8, which is "
                 "faster and less exact and which --device cuda has on Hopper (default own)")
      ->check(CLI::IsMember({"own", "fp8"}).description(""))
      ->type_name("TYPE");
  add_json(app, options.json);
}

void add_methods(CLI::App& app, ModelOptions& options, const std::string& meaning) {
  app.add_option("--method", options.methods, meaning + "; `winnow methods` lists them")
      ->allow_extra_args(false)
      ->type_name("\"NAME(KEY=VALUE, ...)\"");
  CLI::Option* recall = app.add_option("--target-recall", options.target.recall,
                                       "set the method's knob so that it keeps this share of dense attention's mass")
                            ->check(number_between(0.01, 1))
                            ->type_name("R");
  app.add_option("--target-speedup", options.target.speedup,
                 "set the method's knob so that prefill takes at most the S-th part of a dense one's time")
      ->check(number_between(1, 1000))
      ->excludes(recall)
      ->type_name("S");
}

void add_generate_options(CLI::App& app, GenerateOptions& options) {
  constexpr double kLarge = 1e6;
  SamplerOptions& sampler = options.sampler;
  app.add_option("-n", options.n_max, fmt::format("longest answer in tokens (default {})", options.n_max))
      ->check(whole_between(1, kMaxTokens))
      ->type_name("N");
  app.add_option("--temp", sampler.temperature, "temperature (default 0: always the likeliest token)")
      ->check(number_between(0, kLarge))
      ->type_name("X");
  app.add_option("--top-k", sampler.top_k, "draw from the K likeliest tokens (default 0: all)")
      ->check(whole_between(0, std::numeric_limits<int32_t>::max()))
      ->type_name("K");
  app.add_option("--top-p", sampler.top_p, "draw from the fewest tokens that hold this share (default 1: all)")
      ->check(number_between(0, 1))
      ->type_name("P");
  app.add_option("--min-p", sampler.min_p, "leave out tokens below this share of the best one's (default 0)")
      ->check(number_between(0, 1))
      ->type_name("P");
  app.add_option("--repeat-penalty", sampler.repeat_penalty, "divides logits of recent tokens (default 1: none)")
      ->check(number_between(std::numeric_limits<float>::min(), kLarge))
      ->type_name("X");
  app.add_option("--seed", sampler.seed, "of the draws (default 0)")
      ->check(whole_between(0, std::numeric_limits<int64_t>::max()))
      ->type_name("N");
  app.add_option("--stop", options.stops, "end the answer before this text; repeatable")
      ->allow_extra_args(false)
      ->type_name("TEXT");
}

void add_prompt_options(CLI::App& app, std::vector<std::string>& files, std::string& prompt) {
  app.add_option("-p,--prompt", prompt, "the question")->type_name("TEXT");
  app.add_option("-f,--file", files, "a text that stands before the question; repeatable; - is standard input")
      ->allow_extra_args(false)
      ->type_name("FILE");
}

void add_trace(CLI::App& app, std::string& folder) {
  app.add_option("--trace", folder, "write the density of every layer and head of the prefill into this folder")
      ->type_name("DIR");
}

std::vector<std::string> split_methods(const std::string& text) {
  std::vector<std::string> parts(1);
  int depth = 0;
  for (const char c : text) {
    if (c == '(') ++depth;
    if (c == ')') --depth;
    if (c == '+' && depth <= 0) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  for (std::string& part : parts) {
    part.erase(0, std::min(part.find_first_not_of(' '), part.size()));
    part.erase(part.find_last_not_of(' ') + 1);
  }
  return parts;
}

}  // namespace winnow
