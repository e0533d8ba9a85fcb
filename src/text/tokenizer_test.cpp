#include "text/tokenizer.h"

#include <gmock/gmock.h>

#include "base/error.h"
#include "tiny_vocabulary.h"

namespace winnow {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

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

std::vector<std::string> pieces(const Tokenizer& tokenizer, std::string_view text, bool special = false) {
  std::vector<std::string> pieces;
  for (const int32_t id : tokenizer.encode(text, special)) pieces.push_back(tokenizer.decode(id, true));
  return pieces;
}

TEST(Bpe, MergesByRankInsideOfWords) {
  const auto tokenizer = Tokenizer::load(tiny_bpe("gpt-2"));
  EXPECT_THAT(pieces(*tokenizer, "the the"), ElementsAre("the", " the"));
  EXPECT_THAT(pieces(*tokenizer, "and1234"), ElementsAre("and", "123", "4"));
  EXPECT_THAT(pieces(*tokenizer, "   the"), ElementsAre("  ", " the"));
  EXPECT_TRUE(tokenizer->encode("", true).empty());
}

TEST(Bpe, FamiliesCutDigitsAndShortFormsDifferently) {
  EXPECT_THAT(pieces(*Tokenizer::load(tiny_bpe("smollm")), "123"), ElementsAre("1", "2", "3"));
  EXPECT_THAT(pieces(*Tokenizer::load(tiny_bpe("qwen2")), "123"), ElementsAre("1", "2", "3"));
  EXPECT_THAT(pieces(*Tokenizer::load(tiny_bpe("llama-bpe")), "1231234"), ElementsAre("123", "123", "4"));
  // Two spaces before a digit stay together only where digits were set apart first.
  EXPECT_THAT(pieces(*Tokenizer::load(tiny_bpe("smollm")), "  1"), ElementsAre("  ", "1"));
  EXPECT_THAT(pieces(*Tokenizer::load(tiny_bpe("gpt-2")), "  1"), ElementsAre(" ", " ", "1"));
}

TEST(Bpe, WholeWordsBeforeMergesInLlama3Only) {
  EXPECT_THAT(pieces(*Tokenizer::load(tiny_bpe("llama-bpe")), "word"), ElementsAre("word"));
  EXPECT_THAT(pieces(*Tokenizer::load(tiny_bpe("gpt-2")), "word"), ElementsAre("w", "o", "r", "d"));
}

TEST(Bpe, ControlTokensOnlyWhereAskedForUserDefinedAlways) {
  const auto tokenizer = Tokenizer::load(tiny_bpe("qwen2"));
  EXPECT_THAT(pieces(*tokenizer, "a<|end|><mark>", true), ElementsAre("a", "<|end|>", "<mark>"));
  EXPECT_THAT(pieces(*tokenizer, "<|end|><mark>"), ElementsAre("<", "|", "e", "n", "d", "|", ">", "<mark>"));
  const std::vector<int32_t> ids = tokenizer->encode("a<|end|><mark>", true);
  EXPECT_EQ(tokenizer->decode(ids, false), "a<mark>");
  EXPECT_EQ(tokenizer->decode(ids, true), "a<|end|><mark>");
}

TEST(Bpe, MalformedBytesComeBackOneByOne) {
  for (const char* pre : {"gpt-2", "smollm", "qwen2", "llama-bpe"}) {
    const auto tokenizer = Tokenizer::load(tiny_bpe(pre));
    for (int a = 0; a < 256; ++a) {
      const std::string text = std::string("the\xC3") + static_cast<char>(a) + " the\xF0\x9F" + static_cast<char>(a);
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, false), false), text) << pre << " " << a;
    }
    EXPECT_THAT(pieces(*tokenizer, "\xC3\xA9\xC3"), ElementsAre("\xC3\xA9", "\xC3"));
  }
}

TEST(Bpe, BytesWithoutTokens) {
  Metadata facts = tiny_bpe("gpt-2");
  std::vector<std::string> tokens = facts.texts("tokenizer.ggml.tokens");
  tokens[0x02] = "unreachable";
  tokens[0xFF] = "unreachable too";
  facts.set("tokenizer.ggml.tokens", tokens);
  const auto tokenizer = Tokenizer::load(facts);
  // A character goes, as in the reference implementations; a malformed byte leaves a mark.
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("a\x02z", false), false), "az");
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("a\xFFz", false), false), "a\xEF\xBF\xBDz");
}

TEST(Bpe, LongRunsOfOneKind) {
  const auto tokenizer = Tokenizer::load(tiny_bpe("llama-bpe"));
  for (const char* unit : {" ", "\n", "a", "the", "=", " the", "\xFF", "\xC3\xA9", " \n"}) {
    std::string text;
    while (text.size() < 300000) text += unit;
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, true), true), text) << unit;
  }
}

TEST(Bpe, FactsThatDoNotFit) {
  Metadata facts = tiny_bpe("gpt-2");
  facts.set("tokenizer.ggml.merges", std::vector<std::string>{"t h", "q q"});
  EXPECT_THAT(error_of([&] { Tokenizer::load(facts); }), HasSubstr("merge 1 (\"q q\")"));
  facts.set("tokenizer.ggml.merges", std::vector<std::string>{"th"});
  EXPECT_THAT(error_of([&] { Tokenizer::load(facts); }), HasSubstr("merge 0 (\"th\") is not a pair"));
  facts = tiny_bpe("gpt-2");
  facts.set("tokenizer.ggml.token_type", std::vector<int64_t>{1, 1});
  EXPECT_THAT(error_of([&] { Tokenizer::load(facts); }), HasSubstr("2 token types"));
  facts = tiny_bpe("gpt-2");
  facts.set("tokenizer.ggml.eos_token_id", int64_t{100000});
  EXPECT_THAT(error_of([&] { Tokenizer::load(facts); }), HasSubstr("eos_token_id"));
  facts = tiny_bpe("gpt-2");
  facts.set("tokenizer.ggml.token_type", std::vector<int64_t>(facts.texts("tokenizer.ggml.tokens").size(), 9));
  EXPECT_THAT(error_of([&] { Tokenizer::load(facts); }), HasSubstr("type 9"));
}

TEST(SentencePiece, MergesByScore) {
  Metadata facts = tiny_sentencepiece();
  facts.set("tokenizer.ggml.add_space_prefix", false);
  const auto tokenizer = Tokenizer::load(facts);
  EXPECT_THAT(pieces(*tokenizer, "the the"), ElementsAre("t", "he", " the"));
  EXPECT_THAT(pieces(*tokenizer, "abcbcb"), ElementsAre("abc", "bc", "b"));
}

TEST(SentencePiece, SpaceBeforeOnlyWhereAskedFor) {
  Metadata facts = tiny_sentencepiece();
  EXPECT_EQ(Tokenizer::load(facts)->decode(Tokenizer::load(facts)->encode("a<s>b", true), true), " a<s> b");
  facts.set("tokenizer.ggml.add_space_prefix", false);
  EXPECT_EQ(Tokenizer::load(facts)->decode(Tokenizer::load(facts)->encode("a<s>b", true), true), "a<s>b");
}

TEST(SentencePiece, BytesForWhatNoTokenCovers) {
  Metadata facts = tiny_sentencepiece();
  facts.set("tokenizer.ggml.add_space_prefix", false);
  const auto tokenizer = Tokenizer::load(facts);
  EXPECT_THAT(tokenizer->encode("\xC3\xA4", false), ElementsAre(3 + 0xC3, 3 + 0xA4));
  EXPECT_THAT(tokenizer->encode("\xC3\xFF", false), ElementsAre(3 + 0xC3, 3 + 0xFF));
  EXPECT_THAT(pieces(*tokenizer, "\xC3\xA9"), ElementsAre("\xC3\xA9"));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("abc\x80 \xE2\x82 abcab\n\n\n", false), false),
            "abc\x80 \xE2\x82 abcab\n\n\n");
}

TEST(SentencePiece, ControlTextsAreOrdinaryUnlessAskedFor) {
  Metadata facts = tiny_sentencepiece();
  facts.set("tokenizer.ggml.add_space_prefix", false);
  const auto tokenizer = Tokenizer::load(facts);
  // "<s" and ">" stand next to each other: they must not become the control token <s> by merging.
  EXPECT_THAT(pieces(*tokenizer, "<s>"), ElementsAre("<s", ">"));
  EXPECT_THAT(tokenizer->encode("<s><unk>", true), ElementsAre(1, 0));
  EXPECT_THAT(pieces(*tokenizer, "a\n\n\n"), ElementsAre("a", "\n\n", "\n"));
}

TEST(SentencePiece, FactsThatDoNotFit) {
  Metadata facts = tiny_sentencepiece();
  facts.set("tokenizer.ggml.scores", std::vector<double>{1, 2});
  EXPECT_THAT(error_of([&] { Tokenizer::load(facts); }), HasSubstr("2 scores"));
  TinyVocabulary bare;
  bare.add("a");
  Metadata none = bare.facts("llama");
  none.set("tokenizer.ggml.scores", bare.scores);
  EXPECT_THAT(error_of([&] { Tokenizer::load(none); }), HasSubstr("unknown"));
}

TEST(Tokenizer, OnlyKnownKinds) {
  Metadata facts = tiny_bpe("gpt-2");
  facts.set("tokenizer.ggml.model", std::string("wpm"));
  EXPECT_THAT(error_of([&] { Tokenizer::load(facts); }),
              HasSubstr("tokenizer \"wpm\" is not supported; winnow knows gpt2 (pre-tokenizers gpt-2, smollm"));
  EXPECT_THAT(error_of([&] { Tokenizer::load(tiny_bpe("falcon")); }), HasSubstr("pre-tokenizer \"falcon\""));
  EXPECT_THAT(error_of([&] { Tokenizer::load(Metadata()); }), HasSubstr("tokenizer.ggml.model"));
}

TEST(Tokenizer, BosByFileElseByFamily) {
  EXPECT_FALSE(Tokenizer::load(tiny_bpe("gpt-2"))->add_bos());
  EXPECT_TRUE(Tokenizer::load(tiny_bpe("llama-bpe"))->add_bos());
  EXPECT_TRUE(Tokenizer::load(tiny_sentencepiece())->add_bos());
  Metadata facts = tiny_sentencepiece();
  facts.set("tokenizer.ggml.add_bos_token", false);
  EXPECT_FALSE(Tokenizer::load(facts)->add_bos());
  EXPECT_EQ(Tokenizer::load(facts)->bos(), 1);
  facts.set("tokenizer.ggml.add_bos_token", true);
  facts.set("tokenizer.ggml.bos_token_id", int64_t{UINT32_MAX});
  EXPECT_THAT(error_of([&] { Tokenizer::load(facts); }), HasSubstr("BOS"));
}

TEST(Tokenizer, EndsByFileAndByText) {
  TinyVocabulary vocabulary;
  vocabulary.add("<unk>", 2);
  const auto eos = static_cast<int32_t>(vocabulary.add("<stop>", 3));
  const auto turn = static_cast<int32_t>(vocabulary.add("<end_of_turn>", 3));
  const auto plain = static_cast<int32_t>(vocabulary.add("</s>", 1));
  Metadata facts = vocabulary.facts("llama");
  facts.set("tokenizer.ggml.scores", vocabulary.scores);
  facts.set("tokenizer.ggml.add_bos_token", false);
  facts.set("tokenizer.ggml.eos_token_id", int64_t{eos});
  const auto tokenizer = Tokenizer::load(facts);
  EXPECT_TRUE(tokenizer->is_end(eos));
  EXPECT_TRUE(tokenizer->is_end(turn));
  EXPECT_FALSE(tokenizer->is_end(plain));
  EXPECT_FALSE(tokenizer->is_end(-1));
}

TEST(Tokenizer, DecodeRefusesIdsThatDoNotExist) {
  const auto tokenizer = Tokenizer::load(tiny_bpe("gpt-2"));
  EXPECT_THROW(tokenizer->decode(-1, true), Error);
  EXPECT_THROW(tokenizer->decode(tokenizer->n_vocab(), true), Error);
}

}  // namespace
}  // namespace winnow
