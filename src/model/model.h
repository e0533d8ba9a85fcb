// The model interface: what the engine asks of an architecture. One file each in src/models; they are made of the
// device's ops and of model/layers.h.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attention/device.h"
#include "model/gguf.h"

namespace winnow {

struct ModelShape {
  std::string architecture;
  std::string name;
  int32_t n_layer = 0, n_embd = 0, n_head = 0, n_head_kv = 0, head_dim = 0, n_ff = 0, n_vocab = 0;
  int32_t n_ctx = 0;  // tokens the model was made for
};

/// How one layer attends.
struct AttnShape {
  float scale = 1;
  float softcap = 0;   // 0: none
  int32_t window = 0;  // 0: full attention
};

class Model {
 public:
  virtual ~Model() = default;
  const ModelShape& shape() const { return shape_; }
  virtual AttnShape attention(int32_t layer) const = 0;
  /// How positions turn its queries and keys; n_rot 0: not at all.
  virtual RopeArgs rope(int32_t layer) const = 0;

  /// x [n_rows, n_embd]
  virtual void embed(Device& device, std::span<const int32_t> tokens, Mat x) const = 0;
  /// Norm, projections and RoPE. q [n_rows, n_head * head_dim], k and v [n_rows, n_head_kv * head_dim]
  virtual void qkv(Device& device, int32_t layer, Mat x, std::span<const int32_t> position, Mat q, Mat k,
                   Mat v) const = 0;
  /// Output projection, residual and feed-forward: x is replaced. o [n_rows, n_head * head_dim]
  virtual void mix(Device& device, int32_t layer, Mat x, Mat o) const = 0;
  /// Final norm and vocabulary. logits [n_rows, n_vocab]
  virtual void logits(Device& device, Mat x, Mat logits) const = 0;

  /// Matrices that one layer multiplies by; and those outside of layers.
  virtual std::vector<const Weight*> layer_weights(int32_t layer) const = 0;
  virtual const Weight& output_weight() const = 0;

 protected:
  ModelShape shape_;
};

struct ModelInfo {
  std::string_view architecture;  // GGUF's general.architecture
  std::unique_ptr<Model> (*load)(std::shared_ptr<const Gguf> file);
};

/// All architectures, one for each file of src/models.
std::span<const ModelInfo* const> model_roster();

/// Throws Error where the architecture is unknown (naming those that are known) or the file lacks something.
std::unique_ptr<Model> load_model(std::shared_ptr<const Gguf> file);

}  // namespace winnow
