#include "tiny_gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "base/error.h"
#include "model/gguf_writer.h"

namespace winnow {
namespace {

enum TokenKind : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUnused = 5, kByte = 6 };  // GGUF's token types

void put_f16(std::byte* at, float value) {
  const uint16_t bits = f32_to_f16(value);
  std::memcpy(at, &bits, sizeof(bits));
}

/// Scales of one block of random quants, so that its values have mean 0 and standard deviation about `spread`.
void scale_block(Type type, float spread, std::byte* block) {
  switch (type) {
    case Type::q4_0:
      put_f16(block, spread / 4.6F);
      break;  // 4.6: deviation of 16 equal steps
    case Type::q4_1:
      put_f16(block, spread / 4.6F);
      put_f16(block + 2, -7.5F * spread / 4.6F);
      break;
    case Type::q5_0:
      put_f16(block, spread / 9.2F);
      break;
    case Type::q5_1:
      put_f16(block, spread / 9.2F);
      put_f16(block + 2, -15.5F * spread / 9.2F);
      break;
    case Type::q8_0:
      put_f16(block, spread / 74.0F);
      break;
    case Type::q4_K:  // value = d * scale * q - dmin * min; scale and min are 6 random bits, 36 on average
      put_f16(block, spread / (36.0F * 4.6F));
      put_f16(block + 2, 7.5F * spread / (36.0F * 4.6F));
      break;
    case Type::q5_K:
      put_f16(block, spread / (36.0F * 9.2F));
      put_f16(block + 2, 15.5F * spread / (36.0F * 9.2F));
      break;
    case Type::q6_K:
      put_f16(block + 208, spread / (74.0F * 18.5F));
      break;  // eight-bit scales, 64 steps
    default:
      WINNOW_ASSERT(false);
  }
}

class TinyModel {
 public:
  TinyModel(std::string architecture, const TinyOptions& options)
      : architecture_(std::move(architecture)), options_(options), random_(options.seed) {}

  std::vector<std::byte> write() {
    facts();
    rope_facts();
    if (architecture_ == "gemma3") {
      sentencepiece();
    } else {
      byte_bpe();
    }
    tensors();
    return file_.finish();
  }

 private:
  bool gemma() const { return architecture_ == "gemma3"; }
  std::string name(std::string_view key) const { return fmt::format("{}.{}", architecture_, key); }
  void integer(std::string_view key, int32_t value) { file_.integer(name(key), static_cast<uint32_t>(value)); }

  void facts() {
    const TinyOptions& o = options_;
    file_.text("general.architecture", architecture_);
    file_.text("general.name", "tiny " + architecture_);
    integer("block_count", o.n_layer);
    integer("context_length", o.n_ctx);
    integer("embedding_length", o.n_embd);
    integer("feed_forward_length", o.n_ff);
    integer("attention.head_count", o.n_head);
    integer("attention.head_count_kv", o.n_head_kv);
    integer("attention.key_length", o.head_dim);
    integer("attention.value_length", o.head_dim);
    file_.real(name("attention.layer_norm_rms_epsilon"), 1e-6F);
    if (!gemma()) return;
    integer("attention.sliding_window", o.window);
    integer("attention.sliding_window_pattern", o.window_pattern);
    if (o.final_softcap > 0) file_.real(name("final_logit_softcapping"), o.final_softcap);
  }

  void rope_facts() {
    const TinyOptions& o = options_;
    integer("rope.dimension_count", o.head_dim);
    file_.real(name("rope.freq_base"), kRopeBase);
    if (o.rope_scaling == "llama3") {
      vector_of("rope_freqs.weight", llama3_factors());
    } else if (o.rope_scaling != "none") {
      file_.text(name("rope.scaling.type"), o.rope_scaling);
      file_.real(name("rope.scaling.factor"), o.rope_factor);
      if (o.rope_scaling == "yarn") integer("rope.scaling.original_context_length", o.rope_original_context);
    }
  }

  /// Divisors of the frequencies: 1 for short waves, rope_factor for long ones, a ramp between (Llama 3.1's rule with
  /// its low and high factors 1 and 4).
  std::vector<float> llama3_factors() const {
    std::vector<float> factors;
    for (int32_t i = 0; i < options_.head_dim / 2; ++i) {
      const double turns = options_.rope_original_context * std::pow(kRopeBase, -2.0 * i / options_.head_dim) /
                           (2 * M_PI);  // in the original context
      const double share = std::clamp((turns - 1) / (4 - 1), 0.0, 1.0);
      factors.push_back(static_cast<float>(1 / (share + (1 - share) / options_.rope_factor)));
    }
    return factors;
  }

  void byte_bpe() {
    std::vector<std::string> tokens = byte_letters();
    std::vector<int32_t> kinds(tokens.size(), kNormal);
    for (const char* special : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) {
      tokens.emplace_back(special);
      kinds.push_back(kControl);
    }
    std::vector<std::string> merges;
    for (int pair = 0; pair < 26 * 26 && tokens.size() < vocabulary(); ++pair) {
      const std::string a(1, static_cast<char>('a' + pair % 26)), b(1, static_cast<char>('a' + pair / 26));
      merges.push_back(fmt::format("{} {}", a, b));
      tokens.push_back(a + b);
      kinds.push_back(kNormal);
    }
    fill_up(tokens, kinds);
    file_.text("tokenizer.ggml.model", "gpt2");
    file_.text("tokenizer.ggml.pre", architecture_ == "llama" ? "llama-bpe" : "qwen2");
    file_.texts("tokenizer.ggml.tokens", tokens);
    file_.integers("tokenizer.ggml.token_type", kinds);
    file_.texts("tokenizer.ggml.merges", merges);
    file_.integer("tokenizer.ggml.bos_token_id", 256);
    file_.integer("tokenizer.ggml.eos_token_id", 258);
    file_.boolean("tokenizer.ggml.add_bos_token", false);
    file_.text("tokenizer.chat_template",
               "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
               "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
               "{% endif %}");
  }

  void sentencepiece() {
    std::vector<std::string> tokens = {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"};
    std::vector<int32_t> kinds = {kControl, kControl, kControl, kUnknown, kControl, kControl};
    for (int byte = 0; byte < 256; ++byte) {
      tokens.push_back(fmt::format("<0x{:02X}>", byte));
      kinds.push_back(kByte);
    }
    tokens.emplace_back("\u2581");  // SentencePiece's space
    for (char letter = 'a'; letter <= 'z'; ++letter) tokens.emplace_back(1, letter);
    for (int pair = 0; pair < 26 && tokens.size() < vocabulary(); ++pair) {
      tokens.push_back(std::string("\u2581") + static_cast<char>('a' + pair));
    }
    kinds.resize(tokens.size(), kNormal);
    fill_up(tokens, kinds);
    std::vector<float> scores;
    for (size_t i = 0; i < tokens.size(); ++i) scores.push_back(-static_cast<float>(i));
    file_.text("tokenizer.ggml.model", "llama");
    file_.text("tokenizer.ggml.pre", "default");
    file_.texts("tokenizer.ggml.tokens", tokens);
    file_.reals("tokenizer.ggml.scores", scores);
    file_.integers("tokenizer.ggml.token_type", kinds);
    file_.integer("tokenizer.ggml.bos_token_id", 2);
    file_.integer("tokenizer.ggml.eos_token_id", 1);
    file_.integer("tokenizer.ggml.unknown_token_id", 3);
    file_.boolean("tokenizer.ggml.add_bos_token", true);
    file_.boolean("tokenizer.ggml.add_space_prefix", false);
    file_.text("tokenizer.chat_template",
               "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\\n' + "
               "message['content'] + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}"
               "{{ '<start_of_turn>model\\n' }}{% endif %}");
  }

  /// The 256 letters that stand for bytes in GPT-2's vocabularies: printable bytes are themselves, the others follow
  /// from U+0100 on.
  static std::vector<std::string> byte_letters() {
    std::vector<std::string> letters;
    uint32_t next = 0x100;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
      const uint32_t code = printable ? byte : next++;
      std::string letter;
      if (code < 0x80) {
        letter += static_cast<char>(code);
      } else {
        letter += static_cast<char>(0xc0 | (code >> 6));
        letter += static_cast<char>(0x80 | (code & 0x3f));
      }
      letters.push_back(letter);
    }
    return letters;
  }

  size_t vocabulary() const { return static_cast<size_t>(options_.n_vocab); }

  void fill_up(std::vector<std::string>& tokens, std::vector<int32_t>& kinds) const {
    WINNOW_ASSERT(tokens.size() <= vocabulary());
    while (tokens.size() < vocabulary()) {
      tokens.push_back(fmt::format("[unused {}]", tokens.size()));
      kinds.push_back(kUnused);
    }
  }

  void tensors() {
    const TinyOptions& o = options_;
    const int32_t n_q = o.n_head * o.head_dim, n_kv = o.n_head_kv * o.head_dim;
    matrix("token_embd.weight", o.n_vocab, o.n_embd);
    norm("output_norm.weight", o.n_embd);
    if (!o.tied) matrix("output.weight", o.n_vocab, o.n_embd);
    for (int32_t layer = 0; layer < o.n_layer; ++layer) {
      const std::string at = fmt::format("blk.{}.", layer);
      norm(at + "attn_norm.weight", o.n_embd);
      matrix(at + "attn_q.weight", n_q, o.n_embd);
      matrix(at + "attn_k.weight", n_kv, o.n_embd);
      matrix(at + "attn_v.weight", n_kv, o.n_embd);
      matrix(at + "attn_output.weight", o.n_embd, n_q);
      if (architecture_ == "qwen2") {
        bias(at + "attn_q.bias", n_q);
        bias(at + "attn_k.bias", n_kv);
        bias(at + "attn_v.bias", n_kv);
      }
      if (architecture_ == "qwen3" || gemma()) {
        norm(at + "attn_q_norm.weight", o.head_dim);
        norm(at + "attn_k_norm.weight", o.head_dim);
      }
      if (gemma()) norm(at + "post_attention_norm.weight", o.n_embd);
      norm(at + "ffn_norm.weight", o.n_embd);
      matrix(at + "ffn_gate.weight", o.n_ff, o.n_embd);
      matrix(at + "ffn_up.weight", o.n_ff, o.n_embd);
      matrix(at + "ffn_down.weight", o.n_embd, o.n_ff);
      if (gemma()) norm(at + "post_ffw_norm.weight", o.n_embd);
    }
  }

  void norm(const std::string& tensor, int32_t n) { vector_of(tensor, random_values(n, 1, 0.2F)); }
  void bias(const std::string& tensor, int32_t n) { vector_of(tensor, random_values(n, 0, 0.5F)); }

  std::vector<float> random_values(int64_t n, float mean, float spread) {
    std::vector<float> values(static_cast<size_t>(n));
    // uniform_real_distribution may differ between standard libraries; the generator's bits may not
    for (float& value : values) {
      const double unit = static_cast<double>(random_() >> 11) * 0x1p-53;
      value = mean + spread * static_cast<float>(std::sqrt(12.0) * (unit - 0.5));
    }
    return values;
  }

  void vector_of(const std::string& tensor, const std::vector<float>& values) {
    std::vector<std::byte> data(values.size() * sizeof(float));
    std::memcpy(data.data(), values.data(), data.size());
    file_.tensor(tensor, {static_cast<int64_t>(values.size())}, static_cast<int32_t>(Type::f32), std::move(data));
  }

  /// Values of deviation 1 / sqrt(n_in): products keep the size of their inputs. The embedding table has it too, so
  /// that what the layers add outweighs the token itself and logits stay near unit size.
  void matrix(const std::string& tensor, int64_t n_out, int64_t n_in) {
    const float spread = 1 / std::sqrt(static_cast<float>(n_in));
    const TypeInfo& info = type_info(options_.type);
    WINNOW_ASSERT(n_in % info.block_values == 0);
    std::vector<std::byte> data(type_bytes(options_.type, n_out * n_in));
    if (info.block_values == 1) {
      const std::vector<float> values = random_values(n_out * n_in, 0, spread);
      for (size_t i = 0; i < values.size(); ++i) put_number(values[i], data.data() + i * info.block_bytes);
    } else {
      for (std::byte& byte : data) byte = static_cast<std::byte>(random_() >> 56);
      for (size_t at = 0; at < data.size(); at += info.block_bytes) {
        scale_block(options_.type, spread, data.data() + at);
      }
    }
    file_.tensor(tensor, {n_out, n_in}, static_cast<int32_t>(options_.type), std::move(data));
  }

  void put_number(float value, std::byte* at) const {
    const uint16_t bits = f32_to_bf16(value);
    switch (options_.type) {
      case Type::f32:
        std::memcpy(at, &value, sizeof(value));
        break;
      case Type::f16:
        put_f16(at, value);
        break;
      case Type::bf16:
        std::memcpy(at, &bits, sizeof(bits));
        break;
      default:
        WINNOW_ASSERT(false);
    }
  }

  static constexpr float kRopeBase = 10000;
  std::string architecture_;
  TinyOptions options_;
  std::mt19937_64 random_;
  GgufWriter file_;
};

}  // namespace

const std::vector<std::string>& tiny_architectures() {
  static const std::vector<std::string> kAll = {"llama", "qwen2", "qwen3", "gemma3"};
  return kAll;
}

std::vector<std::byte> tiny_gguf(const std::string& architecture, const TinyOptions& options) {
  return TinyModel(architecture, options).write();
}

}  // namespace winnow
