// winnow methods: every attention method with its paper, parts, parameters and their ranges.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "command.h"
#include "methods/roster.h"
#include "options.h"
#include "output.h"

namespace winnow::roster {
namespace {

struct Options {
  std::string name;
  bool json = false;
};

Json knob_json(const Knob& knob) {
  return knob.param.empty() ? Json() : Json{{"param", knob.param}, {"dense", knob.dense}, {"sparse", knob.sparse}};
}

Json to_json(const MethodInfo& method) {
  Json params = Json::array();
  for (const ParamInfo& param : method.params) {
    params.push_back({{"name", param.name},
                      {"meaning", param.meaning},
                      {"default", param.initial},
                      {"min", param.min},
                      {"max", param.max},
                      {"whole", param.whole}});
  }
  return {{"name", method.name},
          {"title", method.title},
          {"paper", method.paper},
          {"parts", method.parts},
          {"params", params},
          {"gpu_min_len", method.gpu_min_len > 0 ? Json(method.gpu_min_len) : Json()},
          {"knob", knob_json(method.knob)},
          {"texts", std::vector<std::string>(method.texts.begin(), method.texts.end())},
          {"calibrates", method.calibrate != nullptr},
          {"needs_weights", method.needs_weights}};
}

// The layout of a file of trained weights, for a model of plain sizes: its rule is easier seen than told.
void print_weights(const MethodInfo& method) {
  constexpr MethodShape kExample = {
      .n_layer = 28, .n_head = 12, .n_head_kv = 2, .head_dim = 128, .architecture = "qwen2"};
  fmt::print(
      "\nweights: a GGUF file of trained weights; {} none comes with winnow. Its facts name method and model, here\n"
      "one of {} layers, {} heads, {} kv heads of size {}:\n"
      "  general.architecture = \"winnow-weights\", winnow.method = \"{}\", winnow.model.architecture = \"{}\",\n"
      "  winnow.model.n_layer = {}, winnow.model.n_head = {}, winnow.model.n_head_kv = {}, winnow.model.head_dim = {}\n"
      "Its tensors, in f32, f16 or bf16; LAYER counts from 0, and a layer without its tensors is dense:\n",
      method.needs_weights ? "the method does not work without one, and" : "the method works without one, and",
      kExample.n_layer, kExample.n_head, kExample.n_head_kv, kExample.head_dim, method.name, kExample.architecture,
      kExample.n_layer, kExample.n_head, kExample.n_head_kv, kExample.head_dim);
  Table table({"tensor", "shape", "meaning"});
  table.align_left();
  for (const WeightTensor& tensor : method.weights(kExample)) {
    table.add({(tensor.per_layer ? "blk.LAYER." : "") + tensor.name, fmt::format("{}", fmt::join(tensor.shape, " x ")),
               std::string(tensor.meaning)});
  }
  fmt::print("{}", table.text());
}

void print_method(const MethodInfo& method) {
  fmt::print("{}: {}\npaper: {}\nparts: {}\n", method.name, method.title, method.paper, method.parts);
  if (method.params.empty() && method.texts.empty()) {
    fmt::print("It takes no parameters.\n");
    return;
  }
  Table table({"parameter", "default", "range", "meaning"});
  table.align_left();
  for (const ParamInfo& param : method.params) {
    table.add({std::string(param.name), fmt::format("{}", param.initial), fmt::format("{} to {}", param.min, param.max),
               fmt::format("{}{}", param.meaning, param.whole ? " (whole)" : "")});
  }
  for (const std::string_view text : method.texts) {
    table.add(
        {std::string(text), "none", "a file", method.calibrate != nullptr ? "what `winnow calibrate` wrote" : "path"});
  }
  fmt::print("\n{}", table.text());
  if (method.gpu_min_len >= kNeverGains) {
    fmt::print("\nOn a GPU it is worth its time at no length that was measured: min_len=0 switches it on.\n");
  } else if (method.gpu_min_len > 0) {
    fmt::print("\nOn a GPU min_len is {} unless it is given.\n", method.gpu_min_len);
  }
  if (method.weights != nullptr) print_weights(method);
  const Knob& knob = method.knob;
  if (knob.param.empty()) return;
  fmt::print("\n--target-recall and --target-speedup turn {}: {} computes most, {} least.\n", knob.param, knob.dense,
             knob.sparse);
}

void run(const Options& options) {
  if (!options.name.empty()) {
    const MethodInfo& method = find_method(options.name);
    if (options.json) {
      print_json(to_json(method));
    } else {
      print_method(method);
    }
    return;
  }
  Table table({"method", "parts", "paper", "what it does"});
  table.align_left();
  for (const MethodInfo* method : method_roster()) {
    if (options.json) print_json(to_json(*method));
    table.add({std::string(method->name), std::string(method->parts), std::string(method->paper),
               std::string(method->title)});
  }
  if (options.json) return;
  fmt::print("{}\nwinnow methods NAME shows a method's parameters.\n", table.text());
}

std::function<void()> add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("name", options->name, "show one method with its parameters")->type_name("NAME");
  add_json(app, options->json);
  return [options] { run(*options); };
}

}  // namespace

const CommandInfo& command_methods() {
  static const CommandInfo kInfo = {"methods", "every attention method with paper, parts, parameters and ranges",
                                    "winnow methods\n"
                                    "winnow methods flexprefill\n"
                                    "winnow methods --json",
                                    add};
  return kInfo;
}

}  // namespace winnow::roster
