// Tokenizers against ids that independent implementations gave (scripts/golden-tokens), over more than ten thousand
// strings. A vocabulary comes from a model file or from ggml's source, where this machine has fetched them.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "model/gguf.h"
#include "text/tokenizer.h"

namespace winnow {
namespace {

std::filesystem::path cache() {
  if (const char* folder = std::getenv("XDG_CACHE_HOME")) return std::filesystem::path(folder) / "winnow";
  const char* home = std::getenv("HOME");
  return std::filesystem::path(home != nullptr ? home : ".") / ".cache/winnow";
}

/// The vocabularies that ggml's source carries; empty where it was not fetched.
std::filesystem::path vocabularies() {
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(cache() / "sources", none)) {
    std::filesystem::path models = entry.path() / "vendor/llama.cpp/models";
    if (std::filesystem::exists(models)) return models;
  }
  return {};
}

std::vector<std::string> lines_of(const std::string& name) {
  std::ifstream file(std::string(WINNOW_TEST_DATA) + "/tokens/" + name + ".txt");
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

std::string unescaped(const std::string& line) {
  std::string text;
  for (size_t i = 0; i < line.size(); ++i) {
    if (line[i] != '\\') {
      text += line[i];
      continue;
    }
    switch (line.at(++i)) {
      case 'n':
        text += '\n';
        break;
      case 'r':
        text += '\r';
        break;
      case 't':
        text += '\t';
        break;
      case 'x':
        text += static_cast<char>(std::stoi(line.substr(i + 1, 2), nullptr, 16));
        i += 2;
        break;
      default:
        text += line[i];
    }
  }
  return text;
}

void digest(uint64_t& value, const std::vector<int32_t>& ids) {
  const auto add = [&value](uint32_t word) {
    for (int shift = 0; shift < 32; shift += 8) value = (value ^ (word >> shift & 0xFF)) * 0x100000001B3;
  };
  add(static_cast<uint32_t>(ids.size()));
  for (const int32_t id : ids) add(static_cast<uint32_t>(id));
}

std::string listed(const std::vector<int32_t>& ids) {
  std::string text;
  for (const int32_t id : ids) text += std::to_string(id) + " ";
  return text;
}

struct Golden {
  const char* name;
  const char* file;  // in the cache's models, or among ggml's vocabularies
  bool model;
  bool all_bytes;  // every byte has a token, so decoding returns what was encoded
};

std::string name_of(const ::testing::TestParamInfo<Golden>& info) {
  std::string name = info.param.name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

class TokenizerGolden : public ::testing::TestWithParam<Golden> {};

TEST_P(TokenizerGolden, EqualsIndependentImplementation) {
  const Golden& golden = GetParam();
  const std::filesystem::path path = (golden.model ? cache() / "models" : vocabularies()) / golden.file;
  if (!std::filesystem::exists(path)) GTEST_SKIP() << golden.file << " is not on this machine";
  const auto tokenizer = Tokenizer::load(Gguf::open(path)->metadata());
  const std::vector<std::string> strings = lines_of("strings");
  const std::vector<std::string> expected = lines_of(golden.name);
  ASSERT_GT(strings.size(), 10000U);
  ASSERT_EQ(strings.size(), expected.size());
  int wrong = 0;
  for (size_t i = 0; i < strings.size() && wrong < 10; ++i) {
    const std::string text = unescaped(strings[i]);
    const std::vector<int32_t> plain = tokenizer->encode(text, false);
    const std::vector<int32_t> special = tokenizer->encode(text, true);
    uint64_t value = 0xCBF29CE484222325;
    digest(value, plain);
    digest(value, special);
    if (value != std::stoull(expected[i], nullptr, 16)) {
      ++wrong;
      ADD_FAILURE() << "string " << i + 1 << ": " << strings[i] << "\n  without special tokens: " << listed(plain)
                    << "\n  with: " << listed(special) << "\n  scripts/golden-tokens --show " << golden.name << " "
                    << i + 1 << " prints what is expected";
    }
    if (golden.all_bytes) {
      ASSERT_EQ(tokenizer->decode(plain, false), text) << strings[i];
      ASSERT_EQ(tokenizer->decode(special, true), text) << strings[i];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, TokenizerGolden,
                         ::testing::Values(Golden{"smollm2", "smollm2-135m-instruct-q4_1.gguf", true, false},
                                           Golden{"qwen2", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", true, true},
                                           Golden{"gemma3", "gemma3-270m-q4_k_m.gguf", true, false},
                                           Golden{"gpt-2", "ggml-vocab-gpt-2.gguf", false, true},
                                           Golden{"llama-bpe", "ggml-vocab-llama-bpe.gguf", false, true},
                                           Golden{"llama-spm", "ggml-vocab-llama-spm.gguf", false, false}),
                         name_of);

}  // namespace
}  // namespace winnow
