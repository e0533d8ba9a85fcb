#include "model/gguf.h"

#include <gmock/gmock.h>

#include <cstdio>
#include <cstring>
#include <fstream>

#include "base/error.h"
#include "model/gguf_writer.h"
#include "tiny_gguf.h"

namespace winnow {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::shared_ptr<const Gguf> parse(const std::vector<std::byte>& bytes) {
  return Gguf::parse("test.gguf", bytes.data(), bytes.size());
}

/// The message of the Error that `action` throws; fails where it throws none.
template <typename Action>
std::string error_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "no Error was thrown";
  return {};
}

std::vector<std::byte> bytes_of(size_t n) {
  return std::vector<std::byte>(n);
}

TEST(Gguf, MetadataOfAllKinds) {
  GgufWriter writer;
  writer.integer("whole", 4000000000U);
  writer.real("real", 0.5F);
  writer.boolean("yes", true);
  writer.text("text", std::string_view("a\0b", 3));
  writer.texts("texts", {"x", std::string("\0", 1), ""});
  writer.reals("reals", {1.5F, -2});
  writer.integers("integers", {-1, 7});
  const auto file = parse(writer.finish());
  const Metadata& facts = file->metadata();
  EXPECT_EQ(facts.integer("whole"), 4000000000);
  EXPECT_EQ(facts.real("real"), 0.5);
  EXPECT_TRUE(facts.boolean("yes"));
  EXPECT_EQ(facts.text("text"), std::string("a\0b", 3));
  EXPECT_THAT(facts.texts("texts"), ElementsAre("x", std::string("\0", 1), ""));
  EXPECT_THAT(facts.reals("reals"), ElementsAre(1.5, -2));
  EXPECT_THAT(facts.integers("integers"), ElementsAre(-1, 7));
}

TEST(Gguf, TensorsLieWhereTheFileSays) {
  GgufWriter writer;
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  std::vector<std::byte> data(sizeof(float) * values.size());
  std::memcpy(data.data(), values.data(), data.size());
  writer.tensor("first", {3}, 1, bytes_of(6));
  writer.tensor("matrix", {2, 3}, 0, data);
  const std::vector<std::byte> bytes = writer.finish();
  const auto file = parse(bytes);
  ASSERT_EQ(file->tensors().size(), 2);
  EXPECT_THAT(file->tensors()[1].shape, ElementsAre(2, 3));
  EXPECT_EQ(file->tensors()[1].type_name, "f32");
  const Weight weight = file->weight("matrix", 2, 3);
  EXPECT_EQ(weight.type, Type::f32);
  EXPECT_EQ(std::memcmp(weight.data, data.data(), data.size()), 0);
  EXPECT_TRUE(file->has("first"));
  EXPECT_FALSE(file->has("second"));
  EXPECT_THAT(file->vector("first", 3), ElementsAre(0, 0, 0));
}

TEST(Gguf, TensorsMayShareTheirData) {
  GgufWriter writer;
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  std::vector<std::byte> data(sizeof(float) * values.size());
  std::memcpy(data.data(), values.data(), data.size());
  writer.tensor("other", {3}, 1, bytes_of(6));
  writer.tensor("matrix", {2, 3}, 0, data);
  writer.tensor_like("again", {2, 3}, 0, "matrix");
  writer.tensor("last", {3}, 1, bytes_of(6));
  writer.tensor_like("row", {3}, 0, "again");
  const std::vector<std::byte> bytes = writer.finish();
  const auto file = parse(bytes);
  EXPECT_EQ(file->weight("again", 2, 3).data, file->weight("matrix", 2, 3).data);
  EXPECT_THAT(file->vector("row", 3), ElementsAre(1, 2, 3));
  EXPECT_THAT(file->vector("last", 3), ElementsAre(0, 0, 0));
}

TEST(Gguf, VectorsOfHalfPrecision) {
  GgufWriter writer;
  const std::vector<uint16_t> f16 = {f32_to_f16(1.5F), f32_to_f16(-3)}, bf16 = {f32_to_bf16(1.5F), f32_to_bf16(-3)};
  std::vector<std::byte> a(4), b(4);
  std::memcpy(a.data(), f16.data(), 4);
  std::memcpy(b.data(), bf16.data(), 4);
  writer.tensor("f16", {2}, static_cast<int32_t>(Type::f16), a);
  writer.tensor("bf16", {2}, static_cast<int32_t>(Type::bf16), b);
  writer.tensor("q8_0", {32}, static_cast<int32_t>(Type::q8_0), bytes_of(34));
  const std::vector<std::byte> bytes = writer.finish();
  const auto file = parse(bytes);
  EXPECT_THAT(file->vector("f16", 2), ElementsAre(1.5F, -3));
  EXPECT_THAT(file->vector("bf16", 2), ElementsAre(1.5F, -3));
  EXPECT_THAT(error_of([&] { file->vector("q8_0", 32); }), HasSubstr("q8_0 is stored as q8_0"));
}

TEST(Gguf, RefusesTensorsThatDoNotFit) {
  GgufWriter writer;
  writer.tensor("w", {4, 32}, 0, bytes_of(4 * 32 * 4));
  writer.tensor("iq", {1, 256}, 16, bytes_of(66));     // iq2_xxs
  writer.tensor("new", {1, 256}, 12345, bytes_of(8));  // a type of the future
  const std::vector<std::byte> bytes = writer.finish();
  const auto file = parse(bytes);
  EXPECT_EQ(error_of([&] { file->weight("nothing", 1, 1); }), "test.gguf: tensor nothing is missing");
  EXPECT_THAT(error_of([&] { file->weight("w", 4, 64); }), HasSubstr("tensor w is 4 x 32"));
  EXPECT_THAT(error_of([&] { file->weight("iq", 1, 256); }),
              HasSubstr("tensor iq is stored as iq2_xxs, which winnow does not read; it reads f32, f16, q4_0"));
  EXPECT_THAT(error_of([&] { file->weight("new", 1, 256); }), HasSubstr("tensor new is stored as type 12345"));
}

TEST(Gguf, RefusesDamagedHeaders) {
  EXPECT_THAT(error_of([] { parse({}); }), HasSubstr("test.gguf: this is not a GGUF file"));
  std::vector<std::byte> bytes = GgufWriter().finish();
  bytes[4] = std::byte{9};
  EXPECT_THAT(error_of([&] { parse(bytes); }), HasSubstr("GGUF version 9; winnow reads versions 2 to 3"));
  bytes[4] = std::byte{0}, bytes[7] = std::byte{3};
  EXPECT_THAT(error_of([&] { parse(bytes); }), HasSubstr("big-endian"));

  GgufWriter twice;
  twice.integer("key", 1);
  twice.integer("key", 2);
  EXPECT_THAT(error_of([&] { parse(twice.finish()); }), HasSubstr("\"key\" stands there twice"));

  GgufWriter twins;
  twins.tensor("t", {1}, 0, bytes_of(4));
  twins.tensor("t", {1}, 0, bytes_of(4));
  EXPECT_THAT(error_of([&] { parse(twins.finish()); }), HasSubstr("tensor t stands there twice"));

  GgufWriter huge;
  huge.tensor("t", {int64_t{1} << 40, int64_t{1} << 40}, 0, {});
  EXPECT_THAT(error_of([&] { parse(huge.finish()); }), HasSubstr("tensor t has a dimension of"));

  GgufWriter rows;
  rows.tensor("t", {2, 33}, static_cast<int32_t>(Type::q8_0), bytes_of(100));
  EXPECT_THAT(error_of([&] { parse(rows.finish()); }),
              HasSubstr("rows of 33 values; q8_0 stores them in blocks of 32"));

  GgufWriter alignment;
  alignment.integer("general.alignment", 3);
  alignment.tensor("t", {1}, 0, bytes_of(4));
  EXPECT_THAT(error_of([&] { parse(alignment.finish()); }), HasSubstr("general.alignment is 3"));
}

TEST(Gguf, LengthsBeyondTheFileAreNotBelieved) {
  GgufWriter writer;
  writer.texts("texts", {"a", "b"});
  std::vector<std::byte> bytes = writer.finish();
  const size_t count = 24 + 8 + 5 + 4 + 4;  // header, key with its length, type, element type
  for (const uint64_t n : {uint64_t{30}, uint64_t{1} << 40, ~uint64_t{0}}) {
    std::memcpy(bytes.data() + count, &n, sizeof(n));
    EXPECT_THAT(error_of([&] { parse(bytes); }), HasSubstr("cut short"));
  }
}

TEST(Gguf, EveryPrefixOfAFileIsRefused) {
  const std::vector<std::byte> bytes =
      tiny_gguf("qwen2", {.n_layer = 1, .n_embd = 32, .n_head = 1, .n_head_kv = 1, .n_ff = 32, .n_vocab = 300});
  ASSERT_NO_THROW(parse(bytes));
  for (size_t n = 0; n < bytes.size(); ++n) {
    // A copy of its own size, so that the address sanitizer sees a read beyond its end. The header is taken byte by
    // byte, the data behind it in steps.
    if (n > 24000 && n % 97 != 0) continue;
    const std::vector<std::byte> prefix(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n));
    EXPECT_THROW(parse(prefix), Error) << "at " << n << " of " << bytes.size() << " bytes";
  }
}

TEST(Gguf, OpensFiles) {
  EXPECT_THAT(error_of([] { Gguf::open("/nowhere/model.gguf"); }),
              HasSubstr("/nowhere/model.gguf: cannot be opened: No such file or directory"));
  EXPECT_THAT(error_of([] { Gguf::open("/"); }), HasSubstr("/: this is not a file"));
  const std::string path = ::testing::TempDir() + "winnow_gguf_test.gguf";
  const std::vector<std::byte> bytes = tiny_gguf("llama");
  const auto write = [&](size_t n) {
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(n));
  };
  write(0);
  EXPECT_THAT(error_of([&] { Gguf::open(path); }), HasSubstr("not a GGUF file: it is empty"));
  write(bytes.size() - 40);
  EXPECT_THAT(error_of([&] { Gguf::open(path); }), HasSubstr(path + ": the file is cut short: tensor "));
  write(bytes.size());
  EXPECT_EQ(Gguf::open(path)->metadata().text("general.architecture"), "llama");
  std::remove(path.c_str());
}

}  // namespace
}  // namespace winnow
