#include "methods/calibration_file.h"

#include <fstream>

#include "base/error.h"

namespace winnow {
namespace {

std::string describe(const MethodShape& shape) {
  return fmt::format("{} layers, {} heads, {} kv heads of size {}", shape.n_layer, shape.n_head, shape.n_head_kv,
                     shape.head_dim);
}

MethodShape shape_of(const nlohmann::json& model) {
  return {.n_layer = model.at("n_layer").get<int32_t>(),
          .n_head = model.at("n_head").get<int32_t>(),
          .n_head_kv = model.at("n_head_kv").get<int32_t>(),
          .head_dim = model.at("head_dim").get<int32_t>()};
}

}  // namespace

nlohmann::ordered_json open_calibration(std::string_view method, const MethodShape& shape) {
  nlohmann::ordered_json file;
  file["method"] = method;
  file["model"] = {{"n_layer", shape.n_layer},
                   {"n_head", shape.n_head},
                   {"n_head_kv", shape.n_head_kv},
                   {"head_dim", shape.head_dim}};
  return file;
}

void read_calibration(const std::string& path, std::string_view method, const MethodShape& shape,
                      const std::function<void(const nlohmann::json&)>& parse) {
  std::ifstream in(path);
  if (!in) fail("{}: calibration file \"{}\" cannot be read", method, path);
  try {
    const nlohmann::json file = nlohmann::json::parse(in);
    const auto owner = file.at("method").get<std::string>();
    if (owner != method) fail("it belongs to {}", owner);
    const std::string made_for = describe(shape_of(file.at("model"))), here = describe(shape);
    if (made_for != here) fail("it was made for a model of {}; this one has {}", made_for, here);
    parse(file);
  } catch (const nlohmann::json::exception& error) {
    fail("{}: calibration file \"{}\" is damaged: {}", method, path, error.what());
  } catch (const Error& error) {
    fail("{}: calibration file \"{}\" does not fit: {}", method, path, error.what());
  }
}

std::vector<nlohmann::json> calibrated_heads(const nlohmann::json& file, const MethodShape& shape, int32_t n_head) {
  std::vector<nlohmann::json> all;
  const nlohmann::json& layers = file.at("layers");
  if (layers.size() != static_cast<size_t>(shape.n_layer)) fail("it has {} layers", layers.size());
  for (const nlohmann::json& heads : layers) {
    if (heads.size() != static_cast<size_t>(n_head)) fail("a layer has {} heads", heads.size());
    all.insert(all.end(), heads.begin(), heads.end());
  }
  return all;
}

}  // namespace winnow
