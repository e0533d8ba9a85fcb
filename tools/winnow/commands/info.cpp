// winnow info: what a model file holds, and whether winnow can run it.
#include <fmt/format.h>

#include <map>
#include <optional>

#include "base/error.h"
#include "command.h"
#include "model/model.h"
#include "options.h"
#include "output.h"
#include "text/chat.h"

namespace winnow::roster {
namespace {

struct Options {
  std::string model;
  bool tensors = false, json = false;
};

struct Count {
  int64_t tensors = 0, values = 0, bytes = 0;
};

std::map<std::string, Count> count_types(const Gguf& file) {
  std::map<std::string, Count> counts;
  for (const Gguf::Tensor& tensor : file.tensors()) {
    Count& count = counts[tensor.type_name];
    int64_t values = 1;
    for (const int64_t n : tensor.shape) values *= n;
    ++count.tensors;
    count.values += values;
    count.bytes += static_cast<int64_t>(tensor.bytes);
  }
  return counts;
}

/// A fact as JSON: numbers and texts as they are, arrays as their length.
Json fact(const Metadata::Value& value) {
  return std::visit(
      [](const auto& held) -> Json {
        using T = std::decay_t<decltype(held)>;
        if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) {
          return held;
        } else {
          return fmt::format("array of {}", held.size());
        }
      },
      value);
}

/// Facts whose key begins with `prefix`, the prefix cut off.
Json facts(const Metadata& metadata, const std::string& prefix) {
  Json found = Json::object();
  for (const auto& [key, value] : metadata.all()) {
    if (key.starts_with(prefix)) found[key.substr(prefix.size())] = fact(value);
  }
  return found;
}

/// Why winnow cannot run the file; nothing where it can.
std::optional<std::string> obstacle(const std::shared_ptr<const Gguf>& file) {
  try {
    load_model(file);
    Tokenizer::load(file->metadata());
  } catch (const Error& error) {
    return error.what();
  }
  return std::nullopt;
}

std::string template_name(const Metadata& metadata) {
  if (!metadata.has("tokenizer.chat_template")) return "none";
  try {
    return ChatTemplate::load(metadata)->name();
  } catch (const Error&) {
    return "unknown to winnow";
  }
}

Json describe(const std::shared_ptr<const Gguf>& file) {
  const Metadata& metadata = file->metadata();
  const std::string architecture = metadata.text_or("general.architecture", "unknown");
  Json types = Json::object();
  Count all;
  for (const auto& [name, count] : count_types(*file)) {
    types[name] = {{"tensors", count.tensors}, {"values", count.values}, {"bytes", count.bytes}};
    all.values += count.values;
    all.tensors += count.tensors;
  }
  Json tokenizer = {{"model", metadata.text_or("tokenizer.ggml.model", "none")},
                    {"pre", metadata.text_or("tokenizer.ggml.pre", "none")}};
  if (metadata.has("tokenizer.ggml.tokens")) tokenizer["n_vocab"] = metadata.texts("tokenizer.ggml.tokens").size();
  const auto why_not = obstacle(file);
  Json info = {{"file", file->path()},
               {"bytes", file->file_bytes()},
               {"architecture", architecture},
               {"name", metadata.text_or("general.name", "")},
               {"n_tensors", all.tensors},
               {"n_parameters", all.values},
               {"n_ctx", metadata.integer_or(architecture + ".context_length", 0)},
               {"shape", facts(metadata, architecture + ".")},
               {"rope_scaling", facts(metadata, architecture + ".rope.scaling.")},
               {"types", types},
               {"tokenizer", tokenizer},
               {"chat_template", template_name(metadata)},
               {"runs", !why_not}};
  if (file->has("rope_freqs.weight")) info["rope_scaling"]["factors"] = "in the file (rope_freqs.weight)";
  if (why_not) info["why_not"] = *why_not;
  return info;
}

std::string plain(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

void print_facts(const char* title, const Json& values) {
  if (values.empty()) return;
  fmt::print("\n{}\n", title);
  for (const auto& [key, value] : values.items()) fmt::print("  {}: {}\n", key, plain(value));
}

void print_info(const Json& info) {
  fmt::print("{}: {}, {} parameters in {} tensors, {}\n", plain(info["file"]), plain(info["architecture"]),
             human_count(info["n_parameters"]), info["n_tensors"].get<int64_t>(), human_bytes(info["bytes"]));
  if (!plain(info["name"]).empty()) fmt::print("name: {}\n", plain(info["name"]));
  fmt::print("context: {} tokens\n", human_count(info["n_ctx"]));
  fmt::print("chat template: {}\n", plain(info["chat_template"]));
  fmt::print("winnow runs it: {}\n", info["runs"].get<bool>() ? "yes" : "no, " + plain(info["why_not"]));
  print_facts("shape", info["shape"]);
  print_facts("RoPE scaling", info["rope_scaling"]);
  print_facts("tokenizer", info["tokenizer"]);
  Table table({"  type", "tensors", "values", "bytes"});
  for (const auto& [name, count] : info["types"].items()) {
    table.add({"  " + name, human_count(count["tensors"]), human_count(count["values"]), human_bytes(count["bytes"])});
  }
  fmt::print("\ntensors\n{}", table.text());
}

void print_tensors(const Gguf& file, bool json) {
  Table table({"tensor", "type", "shape", "bytes"});
  table.align_left();
  for (const Gguf::Tensor& tensor : file.tensors()) {
    std::string shape;
    for (const int64_t n : tensor.shape) shape += fmt::format("{}{}", shape.empty() ? "" : ", ", n);
    if (json) {
      print_json(
          {{"tensor", tensor.name}, {"type", tensor.type_name}, {"shape", tensor.shape}, {"bytes", tensor.bytes}});
    }
    table.add(
        {tensor.name, tensor.type_name, fmt::format("[{}]", shape), human_count(static_cast<int64_t>(tensor.bytes))});
  }
  if (!json) fmt::print("\n{}", table.text());
}

void run(const Options& options) {
  const auto file = Gguf::open(options.model);
  const Json info = describe(file);
  if (options.json) {
    print_json(info);
  } else {
    print_info(info);
  }
  if (options.tensors) print_tensors(*file, options.json);
}

std::function<void()> add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_model_path(app, options->model)->required();
  app.add_flag("--tensors", options->tensors, "list every tensor too");
  add_json(app, options->json);
  return [options] { run(*options); };
}

}  // namespace

const CommandInfo& command_info() {
  static const CommandInfo kInfo = {"info", "what a model file holds",
                                    "winnow info -m qwen.gguf\n"
                                    "winnow info -m qwen.gguf --tensors\n"
                                    "winnow info -m qwen.gguf --json",
                                    add};
  return kInfo;
}

}  // namespace winnow::roster
