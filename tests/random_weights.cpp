#include "random_weights.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <random>
#include <set>

#include "base/error.h"
#include "methods/roster.h"
#include "methods/weights_file.h"
#include "model/gguf_writer.h"

namespace winnow {
namespace {

std::vector<std::byte> values(const WeightTensor& tensor, std::mt19937& random) {
  size_t n = 1;
  for (const int64_t extent : tensor.shape) n *= static_cast<size_t>(extent);
  std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(tensor.shape.back())));
  std::vector<float> all(n);
  for (float& value : all) value = normal(random);
  std::vector<std::byte> bytes(n * sizeof(float));
  std::memcpy(bytes.data(), all.data(), bytes.size());
  return bytes;
}

// Written once each, gone with the program.
class TestFiles {
 public:
  TestFiles() = default;
  TestFiles(const TestFiles&) = delete;
  TestFiles& operator=(const TestFiles&) = delete;
  ~TestFiles() {
    for (const std::string& path : paths_) ::unlink(path.c_str());
  }
  void write(const std::string& path, const MethodInfo& info, const MethodShape& shape) {
    if (paths_.insert(path).second) write_weights(path, info, shape);
  }

 private:
  std::set<std::string> paths_;
};

}  // namespace

std::vector<std::byte> random_weights(const MethodInfo& info, const MethodShape& shape, const GivenWeights& given) {
  GgufWriter writer;
  writer.text("general.architecture", "winnow-weights");
  writer.text("winnow.method", info.name);
  writer.text("winnow.model.architecture", shape.architecture);
  writer.integer("winnow.model.n_layer", static_cast<uint32_t>(shape.n_layer));
  writer.integer("winnow.model.n_head", static_cast<uint32_t>(shape.n_head));
  writer.integer("winnow.model.n_head_kv", static_cast<uint32_t>(shape.n_head_kv));
  writer.integer("winnow.model.head_dim", static_cast<uint32_t>(shape.head_dim));
  std::mt19937 random(7);
  for (const WeightTensor& tensor : info.weights(shape)) {
    for (int32_t layer = tensor.per_layer ? 0 : -1; layer < (tensor.per_layer ? shape.n_layer : 0); ++layer) {
      const std::string name = weight_name(tensor.name, layer);
      std::vector<std::byte> bytes = values(tensor, random);
      if (const auto found = given.find(name); found != given.end()) {
        WINNOW_ASSERT(found->second.size() * sizeof(float) == bytes.size());
        std::memcpy(bytes.data(), found->second.data(), bytes.size());
      }
      writer.tensor(name, tensor.shape, static_cast<int32_t>(Type::f32), std::move(bytes));
    }
  }
  return writer.finish();
}

void write_weights(const std::string& path, const MethodInfo& info, const MethodShape& shape,
                   const GivenWeights& given) {
  const std::vector<std::byte> bytes = random_weights(info, shape, given);
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) fail("{}: cannot be written", path);
}

std::string temporary_path(std::string_view name) {
  return fmt::format("{}winnow_{}_{}", testing::TempDir(), ::getpid(), name);
}

std::string with_weights(const std::string& spec, const MethodShape& shape) {
  const Spec parsed = parse_spec(spec);
  const MethodInfo& info = find_method(parsed.name);
  bool wanted = info.needs_weights;
  std::string arguments;
  for (const auto& [key, value] : parsed.arguments) {
    if (key == "weights") {
      wanted = value == "random";
    } else {
      arguments += fmt::format("{}={}, ", key, value);
    }
  }
  if (!wanted) return spec;
  const std::string path =
      fmt::format("{}winnow-{}-{}-{}-{}-{}-{}-{}.gguf", testing::TempDir(), ::getpid(), info.name, shape.architecture,
                  shape.n_layer, shape.n_head, shape.n_head_kv, shape.head_dim);
  static TestFiles files;
  files.write(path, info, shape);
  return fmt::format("{}({}weights={})", info.name, arguments, path);
}

}  // namespace winnow
