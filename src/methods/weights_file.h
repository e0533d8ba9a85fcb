// Files of trained weights: gates, routers, predictors that belong to one method and one model. GGUF, whose facts are
//
//   general.architecture       "winnow-weights"
//   winnow.method              the method's name
//   winnow.model.architecture  the model's general.architecture
//   winnow.model.n_layer, winnow.model.n_head, winnow.model.n_head_kv, winnow.model.head_dim
//
// and whose tensors are those of MethodInfo::weights, in f32, f16 or bf16: of a layer as blk.LAYER.NAME, of all layers
// as NAME. A layer may lack its tensors, all of them together: there the method answers dense. The values of a head lie
// in the order in which the model's file has them (converters of Llama files draw the two values of a pair together).
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "methods/method.h"

namespace winnow {

class Gguf;

class WeightsFile {
 public:
  /// Maps the file. Throws Error, naming it, where it cannot be read, belongs to another method or model, or holds
  /// other tensors than `tensors` asks for. An empty path is told as a parameter that is wanted.
  WeightsFile(const std::string& path, std::string_view method, const MethodShape& shape,
              std::span<const WeightTensor> tensors);
  ~WeightsFile();
  WeightsFile(const WeightsFile&) = delete;
  WeightsFile& operator=(const WeightsFile&) = delete;

  /// Whether this layer has its tensors.
  bool has(int32_t layer) const { return has_[static_cast<size_t>(layer)]; }
  /// One of the tensors as float32; a layer's, or with layer -1 that of all layers. Throws Error where a value is not
  /// finite.
  std::vector<float> values(std::string_view name, int32_t layer = -1) const;

 private:
  void check_model(const MethodShape& shape) const;
  void check_tensors(std::span<const WeightTensor> tensors);

  std::string method_;
  std::shared_ptr<const Gguf> file_;
  std::vector<bool> has_;  // [n_layer]
};

/// "blk.3.gate_k.weight", or the plain name for layer -1.
std::string weight_name(std::string_view name, int32_t layer);

}  // namespace winnow
