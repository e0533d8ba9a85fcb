#include "text/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <new>

#include "base/error.h"

namespace winnow {
namespace {

// Unicode's White_Space, as members of a class. PCRE2's own \s holds U+180E as well, which the models' regular
// expressions do not.
const std::string kSpace = R"(\t-\r\x20\x85\xA0\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

/// GPT-2's words: a short form of a verb, letters, digits or other signs with one space before, spaces. The spaces
/// before a word leave it one, except (`lone`) before what never takes one.
std::string gpt2_pattern(const std::string& digits, const std::string& lone) {
  return R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|)" + digits + "| ?[^" + kSpace + R"(\p{L}\p{N}]+|[)" + kSpace + "]+(?![^" +
         kSpace + lone + "])|[" + kSpace + "]+";
}

/// The later form: short forms in any case, one sign of any kind before letters, line ends apart, at most
/// `digits` digits together.
std::string llama3_pattern(const std::string& digits) {
  return R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)" + digits + "| ?[^" + kSpace +
         R"(\p{L}\p{N}]+[\r\n]*|[)" + kSpace + R"(]*[\r\n]+|[)" + kSpace + "]+(?![^" + kSpace + "])|[" + kSpace + "]+";
}

struct Family {
  std::string_view name;
  std::string pattern;
  bool llama3 = false;
};

const std::array<Family, 7>& families() {
  static const std::array<Family, 7> all = {{
      {"gpt-2", gpt2_pattern(R"( ?\p{N}+)", "")},
      // Digits are set apart before GPT-2's expression is applied, so the spaces before one stay together.
      {"smollm", gpt2_pattern(R"(\p{N})", R"(\p{N})")},
      {"qwen2", llama3_pattern(R"(\p{N})")},
      {"deepseek-r1-qwen", llama3_pattern(R"(\p{N})")},
      {"llama-bpe", llama3_pattern(R"(\p{N}{1,3})"), true},
      {"llama3", llama3_pattern(R"(\p{N}{1,3})"), true},
      {"llama-v3", llama3_pattern(R"(\p{N}{1,3})"), true},
  }};
  return all;
}

const Family& find_family(std::string_view name) {
  for (const Family& family : families()) {
    if (family.name == name) return family;
  }
  fail("pre-tokenizer \"{}\" is not supported; winnow knows {}", name, PreTokenizer::known());
}

}  // namespace

void PreTokenizer::Free::operator()(pcre2_real_code_8* code) const {
  pcre2_code_free(code);
}

std::string PreTokenizer::known() {
  std::string names;
  for (const Family& family : families()) names += fmt::format("{}{}", names.empty() ? "" : ", ", family.name);
  return names;
}

PreTokenizer::PreTokenizer(std::string_view name) {
  const Family& family = find_family(name);
  int error = 0;
  size_t at = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(family.pattern.data()), family.pattern.size(),
                            PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &at, nullptr));
  WINNOW_ASSERT(code_ != nullptr);
  // Where the machine forbids code made at run time this does nothing, and pcre2_match interprets: slower, same words.
  pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
  whole_words_ = family.llama3;
  add_bos_ = family.llama3;
}

std::vector<size_t> PreTokenizer::ends(std::string_view text) const {
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create_from_pattern(code_.get(), nullptr), &pcre2_match_data_free);
  const std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> context(
      pcre2_match_context_create(nullptr), &pcre2_match_context_free);
  WINNOW_ASSERT(data != nullptr && context != nullptr);
  pcre2_set_match_limit(context.get(), UINT32_MAX);  // long runs of one kind need many steps, but linearly many
  std::vector<size_t> ends;
  ends.reserve(text.size() / 4 + 1);
  for (size_t at = 0; at < text.size();) {
    const int found = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                                  PCRE2_NO_UTF_CHECK, data.get(), context.get());
    if (found == PCRE2_ERROR_NOMEMORY) throw std::bad_alloc();
    WINNOW_ASSERT(found > 0);  // every character is part of some word
    const size_t end = pcre2_get_ovector_pointer(data.get())[1];
    ends.push_back(end);
    at = end;
  }
  return ends;
}

}  // namespace winnow
