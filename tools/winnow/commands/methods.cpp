// winnow methods: every attention method with its paper, parts, parameters and their ranges.
#include <fmt/format.h>

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
          {"knob", knob_json(method.knob)},
          {"texts", std::vector<std::string>(method.texts.begin(), method.texts.end())},
          {"calibrates", method.calibrate != nullptr}};
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
