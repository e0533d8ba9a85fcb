// Tiny random models of every architecture, written as GGUF bytes, tokenizer included.
//
//   const std::vector<std::byte> bytes = tiny_gguf("qwen2", {.n_layer = 3, .type = Type::q8_0});
//   auto model = load_model(Gguf::parse("tiny", bytes.data(), bytes.size()));
#pragma once

#include <string>
#include <vector>

#include "base/types.h"

namespace winnow {

struct TinyOptions {
  int32_t n_layer = 2, n_embd = 128, n_head = 4, n_head_kv = 2, head_dim = 32, n_ff = 256;
  int32_t n_vocab = 320;  // at least 300
  int32_t n_ctx = 4096;
  Type type = Type::f32;              // of the matrices; their rows must be multiples of its block
  uint64_t seed = 1;                  // of the weights
  std::string rope_scaling = "none";  // "linear", "llama3" or "yarn", by rope_factor
  float rope_factor = 4;
  int32_t rope_original_context = 256;  // of llama3 and yarn
  int32_t window = 64;                  // gemma3: of its sliding layers
  int32_t window_pattern = 2;           // gemma3: every so many layers one attends to everything
  bool tied = true;                     // the output matrix is the embedding table
  float final_softcap = 0;              // gemma3
};

/// All architectures that tiny_gguf knows: llama, qwen2, qwen3, gemma3.
const std::vector<std::string>& tiny_architectures();

/// A model file whose activations stay near unit size. Equal options give equal bytes. llama, qwen2 and qwen3 get a
/// byte-level BPE tokenizer (pre-tokenizers llama-bpe and qwen2) with ChatML's special tokens; gemma3 one of
/// SentencePiece's type with byte fallback.
std::vector<std::byte> tiny_gguf(const std::string& architecture, const TinyOptions& options = {});

}  // namespace winnow
