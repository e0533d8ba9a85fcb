#include "methods/weights_file.h"

#include <gmock/gmock.h>

#include <cstring>
#include <fstream>

#include "base/error.h"
#include "model/gguf_writer.h"
#include "random_weights.h"

namespace winnow {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr MethodShape kShape = {.n_layer = 2, .n_head = 4, .n_head_kv = 2, .head_dim = 16, .architecture = "qwen2"};
const std::vector<WeightTensor> kTensors = {{"gate.weight", {2, 3}, ""}, {"gate.bias", {2}, ""}};
const std::vector<WeightTensor> kShared = {{"all.weight", {1, 2}, "", false}};

std::vector<std::byte> bytes_of(const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// A file whose facts may differ from the right ones.
struct File {
  std::string kind = "winnow-weights", method = "mine", architecture = "qwen2";
  uint32_t n_layer = 2, head_dim = 16;
  GgufWriter writer;

  void add(const std::string& name, const std::vector<int64_t>& shape, const std::vector<float>& values) {
    writer.tensor(name, shape, static_cast<int32_t>(Type::f32), bytes_of(values));
  }
  std::string write() {
    writer.text("general.architecture", kind);
    writer.text("winnow.method", method);
    writer.text("winnow.model.architecture", architecture);
    writer.integer("winnow.model.n_layer", n_layer);
    writer.integer("winnow.model.n_head", 4);
    writer.integer("winnow.model.n_head_kv", 2);
    writer.integer("winnow.model.head_dim", head_dim);
    std::string path = temporary_path("weights-file.gguf");
    const std::vector<std::byte> bytes = writer.finish();
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return path;
  }
};

File with_gate(int32_t layer) {
  File file;
  file.add(weight_name("gate.weight", layer), {2, 3}, {1, 2, 3, 4, 5, 6});
  file.add(weight_name("gate.bias", layer), {2}, {7, 8});
  return file;
}

std::string refused(const std::string& path, const std::vector<WeightTensor>& tensors = kTensors) {
  try {
    const WeightsFile file(path, "mine", kShape, tensors);
    for (int32_t layer = 0; layer < 2; ++layer) {
      if (file.has(layer)) file.values("gate.weight", layer);
    }
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(WeightsFile, GivesALayersTensorsAndKnowsWhoHasNone) {
  File file = with_gate(1);
  const WeightsFile read(file.write(), "mine", kShape, kTensors);
  EXPECT_FALSE(read.has(0));
  ASSERT_TRUE(read.has(1));
  EXPECT_THAT(read.values("gate.weight", 1), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(read.values("gate.bias", 1), ElementsAre(7, 8));
}

TEST(WeightsFile, ReadsHalfPrecisionAndTensorsOfAllLayers) {
  for (const bool bf16 : {false, true}) {
    File file;
    const uint16_t one = bf16 ? 0x3f80 : 0x3c00, minus_two = 0xc000;
    const uint16_t values[] = {one, minus_two};
    std::vector<std::byte> bytes(sizeof(values));
    std::memcpy(bytes.data(), values, sizeof(values));
    file.writer.tensor("all.weight", {1, 2}, static_cast<int32_t>(bf16 ? Type::bf16 : Type::f16), bytes);
    const WeightsFile read(file.write(), "mine", kShape, kShared);
    EXPECT_THAT(read.values("all.weight"), ElementsAre(1, -2));
  }
}

TEST(WeightsFile, SaysHowToGetOneWhereThereIsNone) {
  EXPECT_THAT(refused(""),
              HasSubstr("give them as mine(weights=PATH), a GGUF file as `winnow methods mine` describes"));
  EXPECT_THAT(refused("nowhere.gguf"), HasSubstr("nowhere.gguf: cannot be opened"));
}

TEST(WeightsFile, RefusesAnothersFile) {
  File file = with_gate(0);
  file.method = "yours";
  EXPECT_THAT(refused(file.write()), HasSubstr("it belongs to yours"));
  file = with_gate(0);
  file.kind = "llama";
  EXPECT_THAT(refused(file.write()), HasSubstr("its general.architecture is \"llama\", not \"winnow-weights\""));
  file = with_gate(0);
  file.n_layer = 3;
  EXPECT_THAT(refused(file.write()),
              HasSubstr("it was trained for architecture qwen2 with 3 layers, 4 heads, 2 kv heads "
                        "of size 16; this model is architecture qwen2 with 2 layers"));
  file = with_gate(0);
  file.head_dim = 8;
  EXPECT_THAT(refused(file.write()), HasSubstr("kv heads of size 8; this model"));
  file = with_gate(0);
  file.architecture = "llama";
  EXPECT_THAT(refused(file.write()), HasSubstr("it was trained for architecture llama"));
}

TEST(WeightsFile, RefusesOtherTensors) {
  File file = with_gate(0);
  file.add("blk.1.gate.weight", {2, 3}, {1, 2, 3, 4, 5, 6});
  EXPECT_THAT(refused(file.write()), HasSubstr("tensor blk.1.gate.bias is missing"));
  file = with_gate(0);
  file.add("blk.2.gate.bias", {2}, {1, 2});
  EXPECT_THAT(refused(file.write()), HasSubstr("tensor blk.2.gate.bias is not one of mine's"));
  file = with_gate(0);
  file.add("blk.1.gate.weight", {3, 2}, {1, 2, 3, 4, 5, 6});
  EXPECT_THAT(refused(file.write()), HasSubstr("tensor blk.1.gate.weight is 3 x 2; it must be 2 x 3"));
  file = File();
  EXPECT_THAT(refused(file.write()), HasSubstr("it holds no tensors"));
  file = File();
  EXPECT_THAT(refused(file.write(), kShared), HasSubstr("tensor all.weight is missing"));
  file = File();
  file.add("blk.0.gate.weight", {2, 3}, {1, 2, 3, 4, std::nanf(""), 6});
  file.add("blk.0.gate.bias", {2}, {1, 2});
  EXPECT_THAT(refused(file.write()), HasSubstr("tensor blk.0.gate.weight holds a value that is not a number"));
}

}  // namespace
}  // namespace winnow
