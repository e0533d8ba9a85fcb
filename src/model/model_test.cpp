#include "model/model.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "model/gguf_writer.h"
#include "model/model_file.h"
#include "model/rope.h"
#include "tiny_gguf.h"

namespace winnow {
namespace {

using ::testing::HasSubstr;

/// A model and the bytes it lies in.
struct Loaded {
  std::vector<std::byte> bytes;
  std::unique_ptr<Model> model;
};

Loaded load(std::vector<std::byte> bytes) {
  Loaded loaded{std::move(bytes), nullptr};
  loaded.model = load_model(Gguf::parse("test.gguf", loaded.bytes.data(), loaded.bytes.size()));
  return loaded;
}

std::string error_of(const std::vector<std::byte>& bytes) {
  try {
    load(bytes);
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "no Error was thrown";
  return {};
}

/// `bytes` with the first `from` replaced by `to`, of the same length.
std::vector<std::byte> with(std::vector<std::byte> bytes, std::string_view from, std::string_view to) {
  EXPECT_EQ(from.size(), to.size());
  const auto* text = reinterpret_cast<const std::byte*>(from.data());
  const auto found = std::search(bytes.begin(), bytes.end(), text, text + from.size());
  EXPECT_NE(found, bytes.end()) << from;
  std::memcpy(&*found, to.data(), to.size());
  return bytes;
}

/// `bytes` with the 32-bit value of `key` replaced.
std::vector<std::byte> with_value(std::vector<std::byte> bytes, std::string_view key, uint32_t value) {
  const auto* text = reinterpret_cast<const std::byte*>(key.data());
  const auto found = std::search(bytes.begin(), bytes.end(), text, text + key.size());
  EXPECT_NE(found, bytes.end()) << key;
  std::memcpy(&*found + key.size() + 4, &value, sizeof(value));  // behind the key stands the value's type
  return bytes;
}

class EveryModel : public ::testing::TestWithParam<std::string> {};

TEST_P(EveryModel, LoadsWithTheShapeOfItsFile) {
  const TinyOptions options = {.n_layer = 3, .n_head = 4, .n_head_kv = 2, .head_dim = 64, .n_ctx = 777};
  const Loaded loaded = load(tiny_gguf(GetParam(), options));
  const ModelShape& shape = loaded.model->shape();
  EXPECT_EQ(shape.architecture, GetParam());
  EXPECT_EQ(shape.name, "tiny " + GetParam());
  EXPECT_EQ(shape.n_layer, 3);
  EXPECT_EQ(shape.n_embd, options.n_embd);
  EXPECT_EQ(shape.n_head, 4);
  EXPECT_EQ(shape.n_head_kv, 2);
  EXPECT_EQ(shape.head_dim, 64);
  EXPECT_EQ(shape.n_ff, options.n_ff);
  EXPECT_EQ(shape.n_vocab, options.n_vocab);
  EXPECT_EQ(shape.n_ctx, 777);
  EXPECT_FLOAT_EQ(loaded.model->attention(0).scale, 0.125F);
  EXPECT_EQ(loaded.model->layer_weights(2).size(), 7);
  EXPECT_EQ(loaded.model->output_weight().name, "token_embd.weight");
  EXPECT_EQ(load(tiny_gguf(GetParam(), {.tied = false})).model->output_weight().name, "output.weight");
}

TEST_P(EveryModel, NamesTheTensorThatIsMissing) {
  const std::vector<std::byte> bytes = tiny_gguf(GetParam());
  for (const std::string name : {"token_embd.weight", "output_norm.weight", "blk.1.attn_q.weight",
                                 "blk.0.attn_norm.weight", "blk.1.ffn_down.weight", "blk.1.ffn_norm.weight"}) {
    std::string other = name;
    other.front() = '#';
    EXPECT_EQ(error_of(with(bytes, name, other)), "test.gguf: tensor " + name + " is missing");
  }
}

TEST_P(EveryModel, RefusesTensorsItWouldNotUse) {
  // One layer fewer than the file holds.
  EXPECT_THAT(error_of(with_value(tiny_gguf(GetParam()), GetParam() + ".block_count", 1)),
              HasSubstr("test.gguf: tensor blk.1.attn_norm.weight is not part of a " + GetParam() + " model"));
}

TEST_P(EveryModel, RefusesFactsThatDoNotAgree) {
  const std::vector<std::byte> bytes = tiny_gguf(GetParam());
  const auto error = [&](const std::string& key, uint32_t value) {
    return error_of(with_value(bytes, GetParam() + "." + key, value));
  };
  EXPECT_THAT(error("embedding_length", 64), HasSubstr("token_embd.weight is 320 x 128"));
  EXPECT_THAT(error("feed_forward_length", 32), HasSubstr("tensor blk.0.ffn_gate.weight is 256 x 128"));
  EXPECT_THAT(error("attention.head_count", 0), HasSubstr("attention.head_count is 0; it must be from 1 to"));
  EXPECT_THAT(error("attention.head_count", 8), HasSubstr("tensor blk.0.attn_q.weight is 128 x 128"));
  EXPECT_THAT(error("attention.head_count_kv", 3), HasSubstr("4 query heads cannot share 3 kv heads evenly"));
  EXPECT_THAT(error("attention.value_length", 16), HasSubstr("keys have 32 values and values 16"));
  EXPECT_THAT(error("block_count", 4000000000U), HasSubstr("block_count is 4000000000; it must be from 1 to"));
  EXPECT_THAT(error("rope.dimension_count", 33), HasSubstr("rope.dimension_count is 33; it must be even"));
  EXPECT_THAT(error("rope.freq_base", 0), HasSubstr("RoPE's base is 0; it must be above 1"));
}

TEST_P(EveryModel, RefusesTypesItCannotRead) {
  std::vector<std::byte> bytes = tiny_gguf(GetParam());
  const std::string name = "blk.0.attn_q.weight";
  const auto* text = reinterpret_cast<const std::byte*>(name.data());
  const auto found = std::search(bytes.begin(), bytes.end(), text, text + name.size());
  const int32_t i8 = 24;
  std::memcpy(&*found + name.size() + 4 + 16, &i8, sizeof(i8));  // behind the dimensions
  EXPECT_THAT(error_of(bytes), HasSubstr("tensor blk.0.attn_q.weight is stored as i8, which winnow does not read"));
}

TEST_P(EveryModel, ReadsEveryTypeOfMatrix) {
  for (const Type type : {Type::f16, Type::bf16, Type::q4_0, Type::q4_1, Type::q5_0, Type::q5_1, Type::q8_0, Type::q4_K,
                          Type::q5_K, Type::q6_K}) {
    const Loaded loaded = load(tiny_gguf(GetParam(), {.n_embd = 256, .head_dim = 64, .type = type}));
    for (const Weight* weight : loaded.model->layer_weights(1)) EXPECT_EQ(weight->type, type);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, EveryModel, ::testing::ValuesIn(tiny_architectures()),
                         [](const auto& test) { return test.param; });

TEST(Model, UnknownArchitectureNamesTheKnown) {
  GgufWriter writer;
  writer.text("general.architecture", "mamba");
  EXPECT_EQ(error_of(writer.finish()),
            "test.gguf: the model's architecture is \"mamba\"; winnow runs gemma3, llama, qwen2, qwen3");
  EXPECT_EQ(error_of(GgufWriter().finish()), "test.gguf: the model file lacks \"general.architecture\"");
}

TEST(Model, MixturesAndEncodersAreRefused) {
  GgufWriter experts;
  experts.text("general.architecture", "llama");
  experts.integer("llama.expert_count", 8);
  EXPECT_THAT(error_of(experts.finish()), HasSubstr("mixture of experts"));
  GgufWriter encoder;
  encoder.text("general.architecture", "qwen2");
  encoder.boolean("qwen2.attention.causal", false);
  EXPECT_THAT(error_of(encoder.finish()), HasSubstr("not causal"));
}

TEST(Model, VocabularyAndTableAgree) {
  std::vector<std::byte> bytes = tiny_gguf("llama", {.n_vocab = 320});
  const std::string name = "token_embd.weight";
  const auto* text = reinterpret_cast<const std::byte*>(name.data());
  const auto found = std::search(bytes.begin(), bytes.end(), text, text + name.size());
  const int64_t fewer = 319;
  std::memcpy(&*found + name.size() + 4 + 8, &fewer, sizeof(fewer));  // the second dimension, that of rows
  EXPECT_THAT(error_of(bytes), HasSubstr("the tokenizer has 320 tokens and token_embd.weight 319 rows"));
}

TEST(Gemma3, LocalLayersHaveAWindow) {
  const Loaded loaded = load(tiny_gguf("gemma3", {.n_layer = 6, .window = 33, .window_pattern = 3}));
  for (int32_t layer = 0; layer < 6; ++layer) {
    EXPECT_EQ(loaded.model->attention(layer).window, layer % 3 == 2 ? 0 : 33) << layer;
  }
}

/// The rope of a tiny llama with these options.
Rope rope_of(const TinyOptions& options) {
  const std::vector<std::byte> bytes = tiny_gguf("llama", options);
  const auto gguf = Gguf::parse("test.gguf", bytes.data(), bytes.size());
  ModelFile file(*gguf);
  return load_rope(file, RopePairs::neighbours);
}

TEST(Rope, LinearScalingDividesEveryFrequency) {
  const Rope plain = rope_of({}), scaled = rope_of({.rope_scaling = "linear", .rope_factor = 4});
  ASSERT_EQ(plain.frequency.size(), 16);
  EXPECT_FLOAT_EQ(plain.frequency[0], 1);
  EXPECT_FLOAT_EQ(plain.frequency[8], 0.01F);  // 10000^(-1/2)
  for (size_t i = 0; i < 16; ++i) EXPECT_FLOAT_EQ(scaled.frequency[i], plain.frequency[i] / 4);
}

TEST(Rope, YarnKeepsShortWavesAndStretchesLongOnes) {
  const Rope plain = rope_of({}), scaled = rope_of({.rope_scaling = "yarn", .rope_factor = 4});
  EXPECT_FLOAT_EQ(scaled.frequency.front(), plain.frequency.front());
  EXPECT_FLOAT_EQ(scaled.frequency.back(), plain.frequency.back() / 4);
  for (size_t i = 0; i < 16; ++i) {
    EXPECT_LE(scaled.frequency[i], plain.frequency[i] * 1.0001F);
    EXPECT_GE(scaled.frequency[i], plain.frequency[i] / 4.0001F);
  }
  EXPECT_FLOAT_EQ(scaled.magnitude, 1 + 0.1F * std::log(4.0F));
  EXPECT_FLOAT_EQ(plain.magnitude, 1);
}

TEST(Rope, Llama3DividesByTheTensor) {
  const Rope plain = rope_of({}), scaled = rope_of({.rope_scaling = "llama3", .rope_factor = 8});
  EXPECT_FLOAT_EQ(scaled.frequency.front(), plain.frequency.front());
  EXPECT_FLOAT_EQ(scaled.frequency.back(), plain.frequency.back() / 8);
}

TEST(Rope, UnknownScalingIsRefused) {
  EXPECT_THAT(error_of(tiny_gguf("llama", {.rope_scaling = "longrope"})),
              HasSubstr("llama.rope.scaling.type is \"longrope\"; winnow knows none, linear and yarn"));
}

}  // namespace
}  // namespace winnow
