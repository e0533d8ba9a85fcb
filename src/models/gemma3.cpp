// Gemma 3 (technical report, arXiv 2503.19786): most layers see only a sliding window, every sixth sees everything;
// norms stand before and after each part, and on every head of queries and keys.
//   x += norm(W_o attend(rope(norm_q(W_q norm(x))), rope(norm_k(W_k norm(x))), W_v norm(x)))
//   x += norm(W_down (gelu(W_gate norm(x)) * W_up norm(x)))
// The converter has already added the 1 that Gemma's norms have on top of their weights.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/layers.h"

namespace winnow {
namespace {

constexpr int64_t kLayersPerGlobal = 6;   // five local layers, then one that sees everything
constexpr double kLocalRopeBase = 10000;  // local layers keep the base that Gemma 2 had
constexpr int32_t kLayersOf27B = 62;

/// Whether each layer sees only a window. The file may say it for each layer, or after how many layers one sees
/// everything (0: none does).
std::vector<bool> local_layers(const ModelFile& file) {
  const int32_t n_layer = file.shape().n_layer;
  const std::string key = file.full_key("attention.sliding_window_pattern");
  const auto& all = file.facts().all();
  const auto found = all.find(key);
  if (found != all.end() && std::holds_alternative<std::vector<int64_t>>(found->second)) {
    const std::vector<int64_t> flags = file.facts().integers(key);
    if (flags.size() != static_cast<size_t>(n_layer)) {
      fail("{}: {} speaks of {} layers; the model has {}", file.path(), key, flags.size(), n_layer);
    }
    return {flags.begin(), flags.end()};
  }
  const int64_t every = file.integer_or("attention.sliding_window_pattern", kLayersPerGlobal);
  file.checked("attention.sliding_window_pattern", every, 0, 1 << 20);
  std::vector<bool> local(static_cast<size_t>(n_layer));
  for (int32_t layer = 0; layer < n_layer; ++layer) {
    local[static_cast<size_t>(layer)] = every == 0 || layer % every != every - 1;
  }
  return local;
}

class Gemma3 : public Decoder {
 public:
  Gemma3(std::shared_ptr<const Gguf> gguf, ModelFile& file) : Decoder(std::move(gguf), file) {
    embedding_scale_ = std::sqrt(static_cast<float>(shape_.n_embd));
    // The 27B model scales by the share of the width that a head has, all others by the head's size.
    const int32_t scaled_by = shape_.n_layer == kLayersOf27B ? shape_.n_embd / shape_.n_head : shape_.head_dim;
    full_.scale = 1 / std::sqrt(static_cast<float>(scaled_by));
    full_.softcap = file.softcap("attn_logit_softcapping");
    final_softcap_ = file.softcap("final_logit_softcapping");
    window_ = file.checked("attention.sliding_window", file.integer_or("attention.sliding_window", 0), 0, 1 << 30);
    local_ = window_ == 0 ? std::vector<bool>(static_cast<size_t>(shape_.n_layer)) : local_layers(file);
    rope_ = load_rope(file, RopePairs::halves);
    local_rope_ = unscaled_rope(file, RopePairs::halves, file.real_or("rope.freq_base_swa", kLocalRopeBase));
    for (int32_t layer = 0; layer < shape_.n_layer; ++layer) {
      add_layer(load_attention_with_head_norms(file, layer), load_feed_forward(file, layer));
      attention_norm_.push_back(load_norm(file, layer_tensor(layer, "post_attention_norm.weight"), shape_.n_embd));
      feed_forward_norm_.push_back(load_norm(file, layer_tensor(layer, "post_ffw_norm.weight"), shape_.n_embd));
    }
  }

  AttnShape attention(int32_t layer) const override {
    AttnShape shape = full_;
    if (is_local(layer)) shape.window = window_;
    return shape;
  }

  RopeArgs rope(int32_t layer) const override { return (is_local(layer) ? local_rope_ : rope_).args(); }

  void qkv(Device& device, int32_t layer, Mat x, std::span<const int32_t> position, Mat q, Mat k,
           Mat v) const override {
    project(device, attention_part(layer), x, {q, k, v});
    rotate(device, is_local(layer) ? local_rope_ : rope_, {q, k, v}, position);
  }

  void mix(Device& device, int32_t layer, Mat x, Mat o) const override {
    const auto at = static_cast<size_t>(layer);
    const Scratch attended = product(device, attention_part(layer).output, o);
    attention_norm_[at].apply(device, attended, attended);
    device.add(x, attended);
    const Scratch fed = feed_forward(device, feed_forward_part(layer), Gate::gelu_tanh, x);
    feed_forward_norm_[at].apply(device, fed, fed);
    device.add(x, fed);
  }

 private:
  bool is_local(int32_t layer) const { return local_[static_cast<size_t>(layer)]; }

  AttnShape full_;
  int32_t window_ = 0;
  std::vector<bool> local_;  // [n_layer]
  Rope rope_, local_rope_;
  std::vector<Norm> attention_norm_, feed_forward_norm_;  // [n_layer] after each part
};

}  // namespace

namespace roster {
const ModelInfo& model_gemma3() {
  static const ModelInfo kInfo = {"gemma3", load_decoder<Gemma3>};
  return kInfo;
}
}  // namespace roster

}  // namespace winnow
