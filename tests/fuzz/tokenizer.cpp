// Any bytes through both kinds of tokenizer: nothing crashes, ids are in range, and byte-level BPE gives every byte
// back.
#include <cstdlib>

#include "../tiny_vocabulary.h"
#include "text/tokenizer.h"

namespace {

using winnow::Tokenizer;

void check(bool condition) {
  if (!condition) std::abort();
}

void run(const Tokenizer& tokenizer, std::string_view text, bool returns) {
  for (const bool special : {false, true}) {
    const std::vector<int32_t> ids = tokenizer.encode(text, special);
    for (const int32_t id : ids) check(id >= 0 && id < tokenizer.n_vocab());
    const std::string back = tokenizer.decode(ids, true);
    if (returns) check(back == text);
    winnow::Utf8Stream stream;
    std::string shown;
    for (const int32_t id : ids) shown += stream.push(tokenizer.decode(id, true));
    shown += stream.finish();
    check(back.empty() == shown.empty());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto gpt2 = Tokenizer::load(winnow::tiny_bpe("gpt-2"));
  static const auto smollm = Tokenizer::load(winnow::tiny_bpe("smollm"));
  static const auto qwen2 = Tokenizer::load(winnow::tiny_bpe("qwen2"));
  static const auto llama3 = Tokenizer::load(winnow::tiny_bpe("llama-bpe"));
  static const auto sentencepiece = Tokenizer::load(winnow::tiny_sentencepiece());
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const auto* tokenizer : {&gpt2, &smollm, &qwen2, &llama3}) run(**tokenizer, text, true);
  run(*sentencepiece, text, false);
  return 0;
}
