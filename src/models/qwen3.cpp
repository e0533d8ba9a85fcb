// Qwen 3 (technical report, arXiv 2505.09388): no biases; instead every head of the queries and keys is normalised
// before it turns. The size of a head is a fact of its own, not n_embd / n_head.
//   x += W_o attend(rope(norm_q(W_q norm(x))), rope(norm_k(W_k norm(x))), W_v norm(x))
//   x += W_down (silu(W_gate norm(x)) * W_up norm(x))
#include "model/layers.h"

namespace winnow {
namespace {

class Qwen3 : public Decoder {
 public:
  Qwen3(std::shared_ptr<const Gguf> gguf, ModelFile& file) : Decoder(std::move(gguf), file) {
    rope_ = load_rope(file, RopePairs::halves);
    for (int32_t layer = 0; layer < shape_.n_layer; ++layer) {
      add_layer(load_attention_with_head_norms(file, layer), load_feed_forward(file, layer));
    }
  }

  void qkv(Device& device, int32_t layer, Mat x, std::span<const int32_t> position, Mat q, Mat k,
           Mat v) const override {
    project(device, attention_part(layer), x, {q, k, v});
    rotate(device, rope_, {q, k, v}, position);
  }

  void mix(Device& device, int32_t layer, Mat x, Mat o) const override {
    device.linear_add(attention_part(layer).output, o, x);
    add_feed_forward(device, feed_forward_part(layer), Gate::silu, x);
  }

 private:
  Rope rope_;
};

}  // namespace

namespace roster {
const ModelInfo& model_qwen3() {
  static const ModelInfo kInfo = {"qwen3", load_decoder<Qwen3>};
  return kInfo;
}
}  // namespace roster

}  // namespace winnow
