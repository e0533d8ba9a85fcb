// A model file as an architecture reads it: facts under its prefix, tensors by layer, the shape that all of them share.
#pragma once

#include <fmt/format.h>

#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "model/gguf.h"
#include "model/model.h"

namespace winnow {

class ModelFile {
 public:
  /// Reads the shape. Throws Error where a fact is missing, out of range or at odds with another.
  explicit ModelFile(const Gguf& gguf);

  const ModelShape& shape() const { return shape_; }
  float norm_eps() const { return norm_eps_; }
  const std::string& path() const { return gguf_.path(); }

  // Facts under the architecture's prefix: "rope.freq_base" is "llama.rope.freq_base".
  bool has_fact(std::string_view key) const { return facts().has(full_key(key)); }
  int64_t integer(std::string_view key) const { return facts().integer(full_key(key)); }
  int64_t integer_or(std::string_view key, int64_t otherwise) const {
    return facts().integer_or(full_key(key), otherwise);
  }
  double real_or(std::string_view key, double otherwise) const { return facts().real_or(full_key(key), otherwise); }
  std::string text_or(std::string_view key, std::string_view otherwise) const {
    return facts().text_or(full_key(key), otherwise);
  }
  const Metadata& facts() const { return gguf_.metadata(); }
  std::string full_key(std::string_view key) const { return fmt::format("{}.{}", shape_.architecture, key); }
  /// A number of at least 0, 0 where the file says nothing; Error otherwise.
  float softcap(std::string_view key) const;
  /// A whole number from `min` to `max`; Error otherwise.
  int32_t checked(std::string_view key, int64_t value, int64_t min, int64_t max) const;

  // Tensors. All throw Error as Gguf::weight does; the optional ones come back empty where the file has none.
  bool has(const std::string& tensor) const { return gguf_.has(tensor); }
  Weight matrix(const std::string& tensor, int64_t n_out, int64_t n_in);
  std::vector<float> vector(const std::string& tensor, int64_t n);
  std::vector<float> optional_vector(const std::string& tensor, int64_t n);

  /// Throws Error where the file holds a tensor that was not asked for: a model that leaves out a part of itself
  /// would run and answer wrongly.
  void refuse_unread_tensors() const;

 private:
  void read_shape();
  void read_vocabulary();

  const Gguf& gguf_;
  ModelShape shape_;
  float norm_eps_ = 0;
  std::set<std::string, std::less<>> read_;
};

/// "blk.3.attn_q.weight"
std::string layer_tensor(int32_t layer, std::string_view name);

}  // namespace winnow
