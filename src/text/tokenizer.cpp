#include "text/tokenizer.h"

#include <algorithm>

#include "base/error.h"
#include "text/bpe.h"
#include "text/sentencepiece.h"
#include "text/vocabulary.h"

namespace winnow {
namespace {

/// Texts of tokens that end an answer or a file, whatever the model: files often name only one of theirs.
constexpr std::string_view kEndTexts[] = {"<|endoftext|>", "<|end_of_text|>", "<|im_end|>",    "<|eot_id|>",
                                          "<|eom_id|>",    "<end_of_turn>",   "<eos>",         "</s>",
                                          "<|end|>",       "<|fim_pad|>",     "<|repo_name|>", "<|file_sep|>"};

class FileTokenizer : public Tokenizer {
 public:
  FileTokenizer(const Metadata& metadata, Vocabulary::Spelling spelling)
      : vocabulary_(metadata, spelling), control_(vocabulary_, {TokenKind::kControl, TokenKind::kUnknown}) {
    const bool byte_level = spelling == Vocabulary::Spelling::kByteAlphabet;
    bool add_bos = !byte_level;
    if (byte_level) {
      PreTokenizer words(metadata.text("tokenizer.ggml.pre"));
      add_bos = words.add_bos();
      encoder_ = std::make_unique<BpeEncoder>(metadata, vocabulary_, std::move(words));
    } else {
      encoder_ = std::make_unique<SentencePieceEncoder>(metadata, vocabulary_);
    }
    bos_ = special_id(metadata, "tokenizer.ggml.bos_token_id");
    add_bos_ = metadata.boolean_or("tokenizer.ggml.add_bos_token", add_bos);
    if (add_bos_ && bos_ < 0) fail("the model file wants prompts to start with BOS, but names no BOS token");
    find_ends(metadata);
  }

  std::vector<int32_t> encode(std::string_view text, bool special) const override {
    std::vector<int32_t> ids;
    ids.reserve(text.size() / 3 + 1);
    if (!special) {
      if (!text.empty()) encoder_->encode(text, ids);
      return ids;
    }
    for (const SpecialTexts::Fragment& fragment : control_.split(text)) {
      if (fragment.token >= 0) {
        ids.push_back(fragment.token);
      } else {
        encoder_->encode(fragment.text, ids);
      }
    }
    return ids;
  }

  std::string decode(int32_t token, bool special) const override {
    if (token < 0 || token >= vocabulary_.size()) {
      fail("there is no token {}; the vocabulary has {}", token, vocabulary_.size());
    }
    const TokenKind kind = vocabulary_.kind(token);
    const bool shown = kind == TokenKind::kNormal || kind == TokenKind::kUserDefined || kind == TokenKind::kByte;
    return shown || special ? vocabulary_.bytes(token) : std::string();
  }

  int32_t n_vocab() const override { return vocabulary_.size(); }

 private:
  int32_t special_id(const Metadata& metadata, std::string_view key) const {
    const int64_t id = metadata.integer_or(key, -1);
    // -1 may come as an unsigned 32-bit number: files say "none" so.
    if (id == -1 || id == UINT32_MAX) return -1;
    if (id < 0 || id >= vocabulary_.size()) {
      fail("the model file's \"{}\" is {}; its vocabulary has {} tokens", key, id, vocabulary_.size());
    }
    return static_cast<int32_t>(id);
  }

  void find_ends(const Metadata& metadata) {
    for (const std::string_view name : {"eos", "eot", "eom"}) {
      const int32_t id = special_id(metadata, fmt::format("tokenizer.ggml.{}_token_id", name));
      if (id >= 0) ends_.push_back(id);
    }
    for (int32_t id = 0; id < vocabulary_.size(); ++id) {
      if (vocabulary_.kind(id) != TokenKind::kControl) continue;
      const std::string& text = vocabulary_.bytes(id);
      if (std::find(std::begin(kEndTexts), std::end(kEndTexts), text) != std::end(kEndTexts)) ends_.push_back(id);
    }
  }

  Vocabulary vocabulary_;
  SpecialTexts control_;
  std::unique_ptr<TextEncoder> encoder_;
};

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::load(const Metadata& metadata) {
  const std::string& model = metadata.text("tokenizer.ggml.model");
  if (model == "gpt2") return std::make_unique<FileTokenizer>(metadata, Vocabulary::Spelling::kByteAlphabet);
  if (model == "llama") return std::make_unique<FileTokenizer>(metadata, Vocabulary::Spelling::kSpaceAsLowBar);
  fail("tokenizer \"{}\" is not supported; winnow knows gpt2 (pre-tokenizers {}) and llama", model,
       PreTokenizer::known());
}

bool Tokenizer::is_end(int32_t token) const {
  return std::find(ends_.begin(), ends_.end(), token) != ends_.end();
}

std::string Tokenizer::decode(std::span<const int32_t> tokens, bool special) const {
  std::string bytes;
  for (const int32_t token : tokens) bytes += decode(token, special);
  return bytes;
}

}  // namespace winnow
