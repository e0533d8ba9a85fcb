#include "model/model_file.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace winnow {
namespace {

// Far above any model; two of them multiplied fit an int64_t.
constexpr int64_t kMaxSize = 1 << 24;
constexpr int64_t kMaxHeadDim = 1 << 16;

}  // namespace

std::string layer_tensor(int32_t layer, std::string_view name) {
  return fmt::format("blk.{}.{}", layer, name);
}

ModelFile::ModelFile(const Gguf& gguf) : gguf_(gguf) {
  shape_.architecture = facts().text("general.architecture");
  shape_.name = facts().text_or("general.name", "");
  if (integer_or("expert_count", 0) > 0) {
    fail("{}: the model is a mixture of experts, which winnow does not run", path());
  }
  if (!facts().boolean_or(full_key("attention.causal"), true)) {
    fail("{}: the model's attention is not causal: it does not generate text", path());
  }
  read_shape();
  read_vocabulary();
}

int32_t ModelFile::checked(std::string_view key, int64_t value, int64_t min, int64_t max) const {
  if (value < min || value > max) {
    fail("{}: {} is {}; it must be from {} to {}", path(), full_key(key), value, min, max);
  }
  return static_cast<int32_t>(value);
}

float ModelFile::softcap(std::string_view key) const {
  const double value = real_or(key, 0);
  if (!(value >= 0) || !std::isfinite(value)) {
    fail("{}: {} is {}; it must be 0 (none) or a number above", path(), full_key(key), value);
  }
  return static_cast<float>(value);
}

void ModelFile::read_shape() {
  const auto required = [this](std::string_view key) { return checked(key, integer(key), 1, kMaxSize); };
  shape_.n_layer = required("block_count");
  shape_.n_ctx = required("context_length");
  shape_.n_embd = required("embedding_length");
  shape_.n_ff = required("feed_forward_length");
  shape_.n_head = required("attention.head_count");
  shape_.n_head_kv =
      checked("attention.head_count_kv", integer_or("attention.head_count_kv", shape_.n_head), 1, shape_.n_head);
  if (shape_.n_head % shape_.n_head_kv != 0) {
    fail("{}: {} query heads cannot share {} kv heads evenly", path(), shape_.n_head, shape_.n_head_kv);
  }
  shape_.head_dim = checked("attention.key_length", integer_or("attention.key_length", shape_.n_embd / shape_.n_head),
                            1, kMaxHeadDim);
  const int64_t value_dim = integer_or("attention.value_length", shape_.head_dim);
  if (value_dim != shape_.head_dim) {
    fail("{}: keys have {} values and values {}; winnow runs models where they are equal", path(), shape_.head_dim,
         value_dim);
  }
  const double eps = facts().real(full_key("attention.layer_norm_rms_epsilon"));
  if (!(eps >= 0 && eps < 1)) {
    fail("{}: {} is {}; it must be from 0 to 1", path(), full_key("attention.layer_norm_rms_epsilon"), eps);
  }
  norm_eps_ = static_cast<float>(eps);
}

void ModelFile::read_vocabulary() {
  const auto& tensors = gguf_.tensors();
  const auto table = std::find_if(tensors.begin(), tensors.end(),
                                  [](const Gguf::Tensor& tensor) { return tensor.name == "token_embd.weight"; });
  if (table == tensors.end()) fail("{}: tensor token_embd.weight is missing", path());
  const int64_t n_rows = table->shape.size() == 2 ? table->shape[0] : 0;
  if (n_rows < 1 || n_rows > kMaxSize) {
    fail("{}: tensor token_embd.weight is no table of 1 to {} tokens", path(), kMaxSize);
  }
  shape_.n_vocab = static_cast<int32_t>(n_rows);
  if (!facts().has("tokenizer.ggml.tokens")) return;
  const size_t n_tokens = facts().texts("tokenizer.ggml.tokens").size();
  if (n_tokens != static_cast<size_t>(n_rows)) {
    fail("{}: the tokenizer has {} tokens and token_embd.weight {} rows", path(), n_tokens, n_rows);
  }
}

Weight ModelFile::matrix(const std::string& tensor, int64_t n_out, int64_t n_in) {
  read_.insert(tensor);
  return gguf_.weight(tensor, n_out, n_in);
}

std::vector<float> ModelFile::vector(const std::string& tensor, int64_t n) {
  read_.insert(tensor);
  return gguf_.vector(tensor, n);
}

std::vector<float> ModelFile::optional_vector(const std::string& tensor, int64_t n) {
  return has(tensor) ? vector(tensor, n) : std::vector<float>();
}

void ModelFile::refuse_unread_tensors() const {
  for (const Gguf::Tensor& tensor : gguf_.tensors()) {
    if (read_.find(tensor.name) != read_.end()) continue;
    fail("{}: tensor {} is not part of a {} model as winnow knows it, and leaving it out would change the answers",
         path(), tensor.name, shape_.architecture);
  }
}

}  // namespace winnow
