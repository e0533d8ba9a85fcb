#include "memory_room.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#include "kernels/cuda/gpu.h"

namespace winnow {
namespace {

constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();

/// The number after `key` in a file of "key value" lines, or the file's first number where `key` is empty.
int64_t number_in(const char* path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  while (file >> word) {
    if (!key.empty() && word != key) continue;
    int64_t value = kUnknown;
    if (key.empty()) {
      if (word.find_first_not_of("0123456789") != std::string::npos || word.size() > 18) return kUnknown;
      return std::stoll(word);
    }
    return file >> value ? value : kUnknown;
  }
  return kUnknown;
}

int64_t system_room() {
  const int64_t kilobytes = number_in("/proc/meminfo", "MemAvailable:");
  return kilobytes == kUnknown ? kUnknown : kilobytes * 1024;
}

/// A container's limit less what it holds; file pages that it could drop count as free.
int64_t container_room() {
  const int64_t limit = number_in("/sys/fs/cgroup/memory.max", "");
  const int64_t held = number_in("/sys/fs/cgroup/memory.current", "");
  const int64_t pages = number_in("/sys/fs/cgroup/memory.stat", "file");
  if (limit == kUnknown || held == kUnknown) return kUnknown;
  return std::max<int64_t>(limit - held + (pages == kUnknown ? 0 : pages), 0);
}

int64_t process_room() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kUnknown;
  const int64_t pages = number_in("/proc/self/statm", "");
  const int64_t held = pages == kUnknown ? 0 : pages * sysconf(_SC_PAGESIZE);
  return std::max<int64_t>(static_cast<int64_t>(limit.rlim_cur) - held, 0);
}

bool on_gpu(Engine& engine) {
  return !engine.device().memory_is_host();
}

/// Weights in bf16 that will still be copied to the GPU.
int64_t missing_weights(Engine& engine) {
  const Model& model = engine.model();
  const auto values = [](const Weight& weight) { return weight.n_out * weight.n_in; };
  int64_t total = values(model.output_weight()) + static_cast<int64_t>(model.shape().n_vocab) * model.shape().n_embd;
  for (int32_t layer = 0; layer < model.shape().n_layer; ++layer) {
    for (const Weight* weight : model.layer_weights(layer)) total += values(*weight);
  }
  return std::max<int64_t>(2 * total - engine.device().memory().held(), 0);
}

}  // namespace

int64_t available_bytes(Engine& engine) {
  if (on_gpu(engine)) return free_gpu_bytes();
  return std::min({system_room(), container_room(), process_room()});
}

int64_t needed_bytes(Engine& engine, int64_t n_tokens) {
  const ModelShape& shape = engine.model().shape();
  const Type kv = engine.options().kv_type;
  const int64_t blocks = (n_tokens + kBlockSlots - 1) / kBlockSlots;
  const int64_t cache =
      blocks * shape.n_layer * shape.n_head_kv * 2 * static_cast<int64_t>(kv_block_bytes(kv, shape.head_dim));
  const int64_t kv_width = static_cast<int64_t>(shape.n_head_kv) * shape.head_dim;
  const int64_t q_width = static_cast<int64_t>(shape.n_head) * shape.head_dim;
  const int64_t chunk = std::min<int64_t>(n_tokens, engine.options().chunk);
  const int64_t chunk_row = 3LL * shape.n_ff + 2LL * shape.n_embd + q_width;
  if (on_gpu(engine)) {  // float32 residual; q, prepared keys and values, and a chunk's activations in bf16
    const int64_t row = 4 * shape.n_embd + 2 * (q_width + 2 * kv_width);
    return cache + n_tokens * row + 2 * chunk * chunk_row + 4LL * shape.n_vocab + missing_weights(engine);
  }
  const int64_t row = shape.n_embd + q_width + 2 * kv_width;  // of the whole prompt: residual, q, k, v
  const int64_t layer_values = (2 * q_width + 2 * kv_width + 3LL * shape.n_ff) * shape.n_embd;
  return cache + 4 * (n_tokens * row + chunk * chunk_row + shape.n_vocab) + 2 * layer_values;
}

}  // namespace winnow
