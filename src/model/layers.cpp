#include "model/layers.h"

#include <array>
#include <cmath>

namespace winnow {

void Norm::apply_heads(Device& device, Mat x) const {
  if (!weight.empty()) device.rms_norm_heads(x.heads(static_cast<int32_t>(weight.size())), weight.data(), eps);
}

Norm load_norm(ModelFile& file, const std::string& tensor, int32_t n) {
  return {file.vector(tensor, n), file.norm_eps()};
}

Attention load_attention(ModelFile& file, int32_t layer) {
  const ModelShape& shape = file.shape();
  const int64_t n_q = int64_t{shape.n_head} * shape.head_dim;
  const int64_t n_kv = int64_t{shape.n_head_kv} * shape.head_dim;
  Attention part;
  part.norm = load_norm(file, layer_tensor(layer, "attn_norm.weight"), shape.n_embd);
  part.q = file.matrix(layer_tensor(layer, "attn_q.weight"), n_q, shape.n_embd);
  part.k = file.matrix(layer_tensor(layer, "attn_k.weight"), n_kv, shape.n_embd);
  part.v = file.matrix(layer_tensor(layer, "attn_v.weight"), n_kv, shape.n_embd);
  part.output = file.matrix(layer_tensor(layer, "attn_output.weight"), shape.n_embd, n_q);
  return part;
}

Attention load_attention_with_biases(ModelFile& file, int32_t layer) {
  Attention part = load_attention(file, layer);
  part.q_bias = file.vector(layer_tensor(layer, "attn_q.bias"), part.q.n_out);
  part.k_bias = file.vector(layer_tensor(layer, "attn_k.bias"), part.k.n_out);
  part.v_bias = file.vector(layer_tensor(layer, "attn_v.bias"), part.v.n_out);
  return part;
}

Attention load_attention_with_head_norms(ModelFile& file, int32_t layer) {
  Attention part = load_attention(file, layer);
  part.q_norm = load_norm(file, layer_tensor(layer, "attn_q_norm.weight"), file.shape().head_dim);
  part.k_norm = load_norm(file, layer_tensor(layer, "attn_k_norm.weight"), file.shape().head_dim);
  return part;
}

FeedForward load_feed_forward(ModelFile& file, int32_t layer) {
  const ModelShape& shape = file.shape();
  FeedForward part;
  part.norm = load_norm(file, layer_tensor(layer, "ffn_norm.weight"), shape.n_embd);
  part.gate = file.matrix(layer_tensor(layer, "ffn_gate.weight"), shape.n_ff, shape.n_embd);
  part.up = file.matrix(layer_tensor(layer, "ffn_up.weight"), shape.n_ff, shape.n_embd);
  part.down = file.matrix(layer_tensor(layer, "ffn_down.weight"), shape.n_embd, shape.n_ff);
  return part;
}

void project(Device& device, const Attention& attention, Mat x, const Qkv& out) {
  const Scratch h = device.activations(x.rows, x.cols);
  attention.norm.apply(device, x, h);
  const std::array<const Weight*, 3> weights = {&attention.q, &attention.k, &attention.v};
  const auto bias = [](const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); };
  const std::array<const float*, 3> biases = {bias(attention.q_bias), bias(attention.k_bias), bias(attention.v_bias)};
  device.linear_many(weights, h, std::array<Mat, 3>{out.q, out.k, out.v}, biases);
  attention.q_norm.apply_heads(device, out.q);
  attention.k_norm.apply_heads(device, out.k);
}

void rotate(Device& device, const Rope& rope, const Qkv& rows, std::span<const int32_t> position) {
  device.rope_both(rows.q.heads(rope.head_dim), rows.k.heads(rope.head_dim), rope.args(), position);
}

Scratch product(Device& device, const Weight& weight, Mat x) {
  Scratch y = device.activations(x.rows, weight.n_out);
  device.linear(weight, x, y);
  return y;
}

Scratch feed_forward(Device& device, const FeedForward& part, Gate gate, Mat x) {
  Scratch h = device.activations(x.rows, x.cols);
  part.norm.apply(device, x, h);
  device.feed_forward({&part.gate, &part.up, &part.down, gate}, h, h);
  return h;
}

void add_feed_forward(Device& device, const FeedForward& part, Gate gate, Mat x) {
  const Scratch h = device.activations(x.rows, x.cols);
  part.norm.apply(device, x, h);
  device.feed_forward_add({&part.gate, &part.up, &part.down, gate}, h, x);
}

Decoder::Decoder(std::shared_ptr<const Gguf> gguf, ModelFile& file) : gguf_(std::move(gguf)) {
  shape_ = file.shape();
  embedding_ = file.matrix("token_embd.weight", shape_.n_vocab, shape_.n_embd);
  if (file.has("output.weight")) output_ = file.matrix("output.weight", shape_.n_vocab, shape_.n_embd);
  output_norm_ = load_norm(file, "output_norm.weight", shape_.n_embd);
}

void Decoder::add_layer(Attention attention, FeedForward feed_forward) {
  attention_.push_back(std::move(attention));
  feed_forward_.push_back(std::move(feed_forward));
}

AttnShape Decoder::attention(int32_t /*layer*/) const {
  return {.scale = 1 / std::sqrt(static_cast<float>(shape_.head_dim))};
}

void Decoder::embed(Device& device, std::span<const int32_t> tokens, Mat x) const {
  device.embed(embedding_, tokens, embedding_scale_, x);
}

void Decoder::logits(Device& device, Mat x, Mat logits) const {
  const Scratch h = device.activations(x.rows, x.cols);
  output_norm_.apply(device, x, h);
  device.linear(output_weight(), h, logits);
  if (final_softcap_ > 0) device.scale_softcap(logits, final_softcap_);
}

std::vector<const Weight*> Decoder::layer_weights(int32_t layer) const {
  const Attention& attention = attention_part(layer);
  const FeedForward& part = feed_forward_part(layer);
  return {&attention.q, &attention.k, &attention.v, &attention.output, &part.gate, &part.up, &part.down};
}

}  // namespace winnow
