#include "methods/weights_file.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "model/gguf.h"

namespace winnow {
namespace {

constexpr std::string_view kArchitecture = "winnow-weights";

// GGUF does not tell [1, n] from [n].
bool same_shape(std::span<const int64_t> a, std::span<const int64_t> b) {
  while (!a.empty() && a.front() == 1) a = a.subspan(1);
  while (!b.empty() && b.front() == 1) b = b.subspan(1);
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t extent : shape) text += fmt::format("{}{}", text.empty() ? "" : " x ", extent);
  return text;
}

std::string describe(std::string_view architecture, const std::vector<int64_t>& counts) {
  return fmt::format("architecture {} with {} layers, {} heads, {} kv heads of size {}", architecture, counts[0],
                     counts[1], counts[2], counts[3]);
}

}  // namespace

std::string weight_name(std::string_view name, int32_t layer) {
  return layer < 0 ? std::string(name) : fmt::format("blk.{}.{}", layer, name);
}

WeightsFile::WeightsFile(const std::string& path, std::string_view method, const MethodShape& shape,
                         std::span<const WeightTensor> tensors)
    : method_(method), has_(static_cast<size_t>(shape.n_layer)) {
  if (path.empty()) {
    fail(
        "{0} works with weights trained for this model and has none: give them as {0}(weights=PATH), a GGUF file as "
        "`winnow methods {0}` describes it",
        method);
  }
  try {
    file_ = Gguf::open(path);
    check_model(shape);
    check_tensors(tensors);
  } catch (const Error& error) {
    fail("{}: the weights file does not fit: {}", method, error.what());
  }
}

WeightsFile::~WeightsFile() = default;

void WeightsFile::check_model(const MethodShape& shape) const {
  const Metadata& facts = file_->metadata();
  const std::string& path = file_->path();
  if (facts.text_or("general.architecture", "") != kArchitecture) {
    fail("{}: its general.architecture is \"{}\", not \"{}\"", path, facts.text_or("general.architecture", ""),
         kArchitecture);
  }
  try {
    if (facts.text("winnow.method") != method_) fail("it belongs to {}", facts.text("winnow.method"));
    const std::string made_for =
        describe(facts.text("winnow.model.architecture"),
                 {facts.integer("winnow.model.n_layer"), facts.integer("winnow.model.n_head"),
                  facts.integer("winnow.model.n_head_kv"), facts.integer("winnow.model.head_dim")});
    const std::string here =
        describe(shape.architecture, {shape.n_layer, shape.n_head, shape.n_head_kv, shape.head_dim});
    if (made_for != here) fail("it was trained for {}; this model is {}", made_for, here);
  } catch (const Error& error) {
    fail("{}: {}", path, error.what());
  }
}

// Every tensor is a known one, and a layer has all of them or none.
void WeightsFile::check_tensors(std::span<const WeightTensor> tensors) {
  std::map<std::string, const WeightTensor*, std::less<>> known;
  for (const WeightTensor& tensor : tensors) {
    if (!tensor.per_layer) known[tensor.name] = &tensor;
    for (int32_t layer = 0; tensor.per_layer && layer < std::ssize(has_); ++layer) {
      known[weight_name(tensor.name, layer)] = &tensor;
      if (file_->has(weight_name(tensor.name, layer))) has_[static_cast<size_t>(layer)] = true;
    }
  }
  for (const Gguf::Tensor& tensor : file_->tensors()) {
    const auto found = known.find(tensor.name);
    if (found == known.end()) fail("{}: tensor {} is not one of {}'s", file_->path(), tensor.name, method_);
    if (!same_shape(tensor.shape, found->second->shape)) {
      fail("{}: tensor {} is {}; it must be {}", file_->path(), tensor.name, text_of(tensor.shape),
           text_of(found->second->shape));
    }
    const auto type = static_cast<Type>(tensor.type_id);
    if (type != Type::f32 && type != Type::f16 && type != Type::bf16) {
      fail("{}: tensor {} is stored as {}; it must be f32, f16 or bf16", file_->path(), tensor.name, tensor.type_name);
    }
  }
  bool any = false;
  for (const WeightTensor& tensor : tensors) {
    for (int32_t layer = tensor.per_layer ? 0 : -1; layer < (tensor.per_layer ? std::ssize(has_) : 0); ++layer) {
      if (layer >= 0 && !has_[static_cast<size_t>(layer)]) continue;
      any = true;
      const std::string name = weight_name(tensor.name, layer);
      if (!file_->has(name)) fail("{}: tensor {} is missing", file_->path(), name);
    }
  }
  if (!any) fail("{}: it holds no tensors", file_->path());
}

std::vector<float> WeightsFile::values(std::string_view name, int32_t layer) const {
  const std::string full = weight_name(name, layer);
  const std::vector<Gguf::Tensor>& tensors = file_->tensors();
  const auto found =
      std::find_if(tensors.begin(), tensors.end(), [&](const auto& tensor) { return tensor.name == full; });
  WINNOW_ASSERT(found != tensors.end());
  std::vector<float> values = file_->values(*found);
  if (std::any_of(values.begin(), values.end(), [](float x) { return !std::isfinite(x); })) {
    fail("{}: {}: tensor {} holds a value that is not a number", method_, file_->path(), full);
  }
  return values;
}

}  // namespace winnow
