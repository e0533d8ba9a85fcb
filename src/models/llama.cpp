// Llama 1 to 3 and the many models of the same shape (Mistral, SmolLM2, ...).
//   x += W_o attend(rope(W_q norm(x)), rope(W_k norm(x)), W_v norm(x))
//   x += W_down (silu(W_gate norm(x)) * W_up norm(x))
#include "model/layers.h"

namespace winnow {
namespace {

class Llama : public Decoder {
 public:
  Llama(std::shared_ptr<const Gguf> gguf, ModelFile& file) : Decoder(std::move(gguf), file) {
    rope_ = load_rope(file, RopePairs::neighbours);
    for (int32_t layer = 0; layer < shape_.n_layer; ++layer) {
      // Some of the shape (InternLM) were trained with biases; all three, or none.
      const bool biased = file.has(layer_tensor(layer, "attn_q.bias"));
      add_layer(biased ? load_attention_with_biases(file, layer) : load_attention(file, layer),
                load_feed_forward(file, layer));
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
const ModelInfo& model_llama() {
  static const ModelInfo kInfo = {"llama", load_decoder<Llama>};
  return kInfo;
}
}  // namespace roster

}  // namespace winnow
