// Small vocabularies of both kinds, as the facts of a model file would give them.
#pragma once

#include <fmt/format.h>

#include <string>
#include <vector>

#include "base/metadata.h"

namespace winnow {

/// A vocabulary under construction.
struct TinyVocabulary {
  std::vector<std::string> tokens;
  std::vector<int64_t> kinds;  // 1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte
  std::vector<double> scores;

  int64_t add(std::string token, int64_t kind = 1, double score = 0) {
    tokens.push_back(std::move(token));
    kinds.push_back(kind);
    scores.push_back(score);
    return static_cast<int64_t>(tokens.size()) - 1;
  }

  Metadata facts(const std::string& model) const {
    Metadata facts;
    facts.set("tokenizer.ggml.model", model);
    facts.set("tokenizer.ggml.tokens", tokens);
    facts.set("tokenizer.ggml.token_type", kinds);
    return facts;
  }
};

/// Byte-level BPE: ids 0 to 255 are the bytes, then what these merges make (letters, a space before letters, digits,
/// two halves of "é"), a control token <|end|> and a user-defined <mark>.
inline Metadata tiny_bpe(const std::string& pre) {
  TinyVocabulary vocabulary;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    const int character = printable ? byte : next++;
    std::string spelled;
    if (character >= 0x80) spelled += static_cast<char>(0xC0 | character >> 6);
    spelled += static_cast<char>(character >= 0x80 ? 0x80 | (character & 0x3F) : character);
    vocabulary.add(spelled);
  }
  const std::vector<std::string> merges = {"t h",  "th e",          "\u0120 the",    "a n", "an d", "1 2",
                                           "12 3", "\u00C3 \u00A9", "\u0120 \u0120", "l l", "' ll"};
  for (const std::string& merge : merges) {
    const size_t space = merge.find(' ');
    vocabulary.add(merge.substr(0, space) + merge.substr(space + 1));
  }
  const int64_t whole = vocabulary.add("word");  // reached by no merge
  const int64_t end = vocabulary.add("<|end|>", 3);
  vocabulary.add("<mark>", 4);
  Metadata facts = vocabulary.facts("gpt2");
  facts.set("tokenizer.ggml.pre", pre);
  facts.set("tokenizer.ggml.merges", merges);
  facts.set("tokenizer.ggml.bos_token_id", whole);
  facts.set("tokenizer.ggml.eos_token_id", end);
  return facts;
}

/// SentencePiece: <unk>, <s>, </s>, the bytes (ids 3 to 258), then scored tokens and a user-defined pair of line ends.
inline Metadata tiny_sentencepiece() {
  TinyVocabulary vocabulary;
  vocabulary.add("<unk>", 2);
  vocabulary.add("<s>", 3);
  vocabulary.add("</s>", 3);
  for (int byte = 0; byte < 256; ++byte) vocabulary.add(fmt::format("<0x{:02X}>", byte), 6);
  double score = 0;
  for (const char* token :
       {"\u2581the", "\u2581t", "he", "ab", "bc", "abc", "\u2581", "t", "h", "e", "a", "b", "c", "\u00E9"}) {
    vocabulary.add(token, 1, --score);
  }
  vocabulary.add("\n\n", 4);
  vocabulary.add("<", 1, --score);
  vocabulary.add("s", 1, --score);
  vocabulary.add(">", 1, --score);
  vocabulary.add("<s", 1, --score);
  Metadata facts = vocabulary.facts("llama");
  facts.set("tokenizer.ggml.scores", vocabulary.scores);
  facts.set("tokenizer.ggml.bos_token_id", int64_t{1});
  facts.set("tokenizer.ggml.eos_token_id", int64_t{2});
  facts.set("tokenizer.ggml.unknown_token_id", int64_t{0});
  return facts;
}

}  // namespace winnow
