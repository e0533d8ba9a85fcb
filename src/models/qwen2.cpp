// Qwen 1.5 to 2.5 (Qwen2 technical report, arXiv 2407.10671): Llama's layers with biases on queries, keys and values,
// and RoPE over the halves of a head.
//   x += W_o attend(rope(W_q norm(x) + b_q), rope(W_k norm(x) + b_k), W_v norm(x) + b_v)
//   x += W_down (silu(W_gate norm(x)) * W_up norm(x))
#include "model/layers.h"

namespace winnow {
namespace {

class Qwen2 : public Decoder {
 public:
  Qwen2(std::shared_ptr<const Gguf> gguf, ModelFile& file) : Decoder(std::move(gguf), file) {
    rope_ = load_rope(file, RopePairs::halves);
    for (int32_t layer = 0; layer < shape_.n_layer; ++layer) {
      add_layer(load_attention_with_biases(file, layer), load_feed_forward(file, layer));
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
const ModelInfo& model_qwen2() {
  static const ModelInfo kInfo = {"qwen2", load_decoder<Qwen2>};
  return kInfo;
}
}  // namespace roster

}  // namespace winnow
