// What decoders are made of. An architecture (src/models) reads its parts with `load_...` and puts them together in
// `qkv` and `mix`; what all of them do alike (embedding, output) is in Decoder.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attention/device.h"
#include "model/model.h"
#include "model/model_file.h"
#include "model/rope.h"

namespace winnow {

/// y = weight * x / sqrt(mean(x^2) + eps)
struct Norm {
  std::vector<float> weight;  // empty: there is no such norm
  float eps = 0;

  void apply(Device& device, Mat x, Mat y) const { device.rms_norm(x, weight.data(), eps, y); }
  /// Each head by itself, in place; nothing where there is no such norm.
  void apply_heads(Device& device, Mat x) const;
};

struct Attention {
  Norm norm;
  Weight q, k, v, output;
  std::vector<float> q_bias, k_bias, v_bias;  // empty: none
  Norm q_norm, k_norm;                        // per head
};

struct FeedForward {
  Norm norm;
  Weight gate, up, down;
};

Norm load_norm(ModelFile& file, const std::string& tensor, int32_t n);
/// attn_norm, attn_q, attn_k, attn_v, attn_output.
Attention load_attention(ModelFile& file, int32_t layer);
/// The same with the biases of attn_q, attn_k and attn_v.
Attention load_attention_with_biases(ModelFile& file, int32_t layer);
/// The same with attn_q_norm and attn_k_norm.
Attention load_attention_with_head_norms(ModelFile& file, int32_t layer);
/// ffn_norm, ffn_gate, ffn_up, ffn_down.
FeedForward load_feed_forward(ModelFile& file, int32_t layer);

/// Queries, keys and values of the same rows. q [n_rows, n_head * head_dim], k and v [n_rows, n_head_kv * head_dim]
struct Qkv {
  Mat q, k, v;
};

/// Norm, projections, biases, norms of heads: everything before positions. x [n_rows, n_embd]
void project(Device& device, const Attention& attention, Mat x, const Qkv& out);
/// Turns queries and keys by their positions.
void rotate(Device& device, const Rope& rope, const Qkv& rows, std::span<const int32_t> position);
/// x W^T. -> [n_rows, n_out]
Scratch product(Device& device, const Weight& weight, Mat x);
/// down(act(gate(norm(x))) * up(norm(x))). -> [n_rows, n_embd]
Scratch feed_forward(Device& device, const FeedForward& part, Gate gate, Mat x);
/// The same, added to x.
void add_feed_forward(Device& device, const FeedForward& part, Gate gate, Mat x);

/// A stack of layers, each with an attention and a feed-forward part, between an embedding table and an output matrix
/// (which may be the same).
class Decoder : public Model {
 public:
  AttnShape attention(int32_t layer) const override;
  void embed(Device& device, std::span<const int32_t> tokens, Mat x) const override;
  void logits(Device& device, Mat x, Mat logits) const override;
  std::vector<const Weight*> layer_weights(int32_t layer) const override;
  const Weight& output_weight() const override { return output_ ? output_ : embedding_; }

 protected:
  /// Reads what stands outside of layers; keeps `gguf`, in which the weights lie.
  Decoder(std::shared_ptr<const Gguf> gguf, ModelFile& file);

  void add_layer(Attention attention, FeedForward feed_forward);
  const Attention& attention_part(int32_t layer) const { return attention_[static_cast<size_t>(layer)]; }
  const FeedForward& feed_forward_part(int32_t layer) const { return feed_forward_[static_cast<size_t>(layer)]; }

  float embedding_scale_ = 1;
  float final_softcap_ = 0;  // 0: none

 private:
  std::shared_ptr<const Gguf> gguf_;
  Weight embedding_, output_;
  Norm output_norm_;
  std::vector<Attention> attention_;       // [n_layer]
  std::vector<FeedForward> feed_forward_;  // [n_layer]
};

/// ModelInfo::load of an architecture that is a Decoder, made from (gguf, file).
template <typename Architecture>
std::unique_ptr<Model> load_decoder(std::shared_ptr<const Gguf> gguf) {
  ModelFile file(*gguf);
  auto model = std::make_unique<Architecture>(std::move(gguf), file);
  file.refuse_unread_tensors();
  return model;
}

}  // namespace winnow
