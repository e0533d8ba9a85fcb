// A GGUF file, memory-mapped: its facts and its tensors, nothing read before it is asked for.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "attention/device.h"
#include "base/metadata.h"

namespace winnow {

class Gguf {
 public:
  /// Maps the file. Throws Error, naming the file, where it cannot be read, is not GGUF, is cut short, or holds a
  /// tensor that lies outside of it.
  static std::shared_ptr<const Gguf> open(const std::string& path);
  /// The same over bytes in memory, which must outlive the result (fuzzing, tests). `name` stands in messages.
  static std::shared_ptr<const Gguf> parse(const std::string& name, const std::byte* data, size_t size);
  virtual ~Gguf() = default;

  struct Tensor {
    std::string name;
    int32_t type_id = 0;         // GGUF's id; winnow may not know it (Type)
    std::string type_name;       // as ggml calls it
    std::vector<int64_t> shape;  // slowest first: [n_out, n_in] for a matrix
    const std::byte* data = nullptr;
    size_t bytes = 0;
  };

  const Metadata& metadata() const { return metadata_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const std::string& path() const { return path_; }
  size_t file_bytes() const { return file_bytes_; }

  bool has(std::string_view tensor) const { return find(tensor) != nullptr; }
  /// A matrix [n_out, n_in] of a type that winnow knows. Throws Error that names the tensor where it is missing, of
  /// another shape, or of an unknown type.
  Weight weight(const std::string& tensor, int64_t n_out, int64_t n_in) const;
  /// A vector as float32. Throws as `weight`.
  std::vector<float> vector(const std::string& tensor, int64_t n) const;
  /// All values of a tensor as float32, row after row. Throws Error where it is not stored in f32, f16 or bf16.
  std::vector<float> values(const Tensor& tensor) const;

 protected:
  const Tensor* find(std::string_view tensor) const;
  std::string path_;
  size_t file_bytes_ = 0;
  Metadata metadata_;
  std::vector<Tensor> tensors_;
};

}  // namespace winnow
