// Cuts text into the words that byte-level BPE never merges across, by the regular expression of a model family.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

struct pcre2_real_code_8;

namespace winnow {

class PreTokenizer {
 public:
  /// By the name in tokenizer.ggml.pre. Throws Error where winnow does not know it, naming those it does.
  explicit PreTokenizer(std::string_view name);
  /// The names that winnow knows, for messages.
  static std::string known();

  /// Where each word of `text`, which must be well-formed UTF-8, ends; together they are the whole text.
  std::vector<size_t> ends(std::string_view text) const;

  /// A word that is a token as a whole stays one, whatever the merges say.
  bool whole_words() const { return whole_words_; }
  /// Prompts of this family start with BOS where the file does not say.
  bool add_bos() const { return add_bos_; }

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  std::unique_ptr<pcre2_real_code_8, Free> code_;
  bool whole_words_ = false;
  bool add_bos_ = false;
};

}  // namespace winnow
