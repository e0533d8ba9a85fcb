// Small host tables that kernels read: found again where they are on the GPU already, so that a decode step uploads
// only what changed since the one before it.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "attention/device.h"
#include "kernels/cuda/copies.h"

namespace winnow::cuda {

/// Tables known by their contents: limits, positions, numbers of slots, tokens. All layers of a step share them.
class Tables {
 public:
  explicit Tables(CudaContext& context) : context_(context) {}

  /// In a decode step the table that is asked for next stays, if it can, where the one that the step before asked for
  /// then stood, so that launches are the same from step to step; and tables go up ahead of launches that wait.
  void begin_step();
  void end_step() { in_step_ = false; }

  /// The address on the GPU, good for what is launched before kKept more tables were asked for, or before the step
  /// ends. No values: null.
  template <typename T>
  const T* put(std::span<const T> values) {
    return reinterpret_cast<const T*>(put_bytes(std::as_bytes(values)));
  }

  static constexpr size_t kKept = 64;

 private:
  struct Entry {
    std::vector<std::byte> shadow;
    std::shared_ptr<std::byte> data;
    uint64_t used = 0;
  };
  const std::byte* put_bytes(std::span<const std::byte> bytes);
  size_t entry_of(std::span<const std::byte> bytes);
  size_t entry_in_step(std::span<const std::byte> bytes);
  bool free_in_step(const Entry& entry) const { return entry.used <= step_began_; }
  size_t make_entry(std::span<const std::byte> bytes);

  CudaContext& context_;
  std::vector<Entry> entries_;
  uint64_t clock_ = 0;
  bool in_step_ = false;
  uint64_t step_began_ = 0;        // by the clock
  std::vector<size_t> asked_for_;  // the entries of the tables of a step, in the order in which it asks for them
  size_t n_asked_ = 0;
};

/// Parameter vectors of a model, known by their address; contents are compared, since an address may be used again.
class Parameters {
 public:
  explicit Parameters(CudaContext& context) : context_(context) {}
  const float* get(const float* values, int64_t n);

 private:
  struct Entry {
    std::vector<float> shadow;
    std::shared_ptr<std::byte> data;
  };
  CudaContext& context_;
  std::unordered_map<const float*, Entry> entries_;
};

/// Block addresses of all kv heads of a layer, in GPU memory.
struct DeviceBlocks {
  const std::byte* const* k = nullptr;
  const std::byte* const* v = nullptr;
  const int32_t* first_block = nullptr;  // [n_head]: h * stride
  int64_t stride = 0;
};

/// A KvView's tables in GPU memory.
struct DeviceKv {
  DeviceBlocks blocks;
  const int32_t* n_slots = nullptr;   // [n_head]
  const int32_t* position = nullptr;  // [n_head, position_stride], or null: slot j stands at j
  const float* bias = nullptr;        // [n_head, bias_stride], or null
  int64_t position_stride = 0, bias_stride = 0;
  int32_t n_head = 0;
  int32_t max_slots = 0;
};

/// Tables of caches, one entry for each layer of each sequence, compared with what was uploaded before.
class KvTables {
 public:
  KvTables(CudaContext& context, Tables& tables) : context_(context), tables_(tables) {}

  /// Positions are left out where the host has found out already what each row sees.
  DeviceKv of(const KvView& kv, bool positions = true);
  DeviceBlocks of(std::span<const KvTarget> target);

 private:
  /// Rows of different lengths, `stride` values apart, with a copy of what the GPU holds.
  struct Ragged {
    size_t value_bytes = 0;
    int64_t stride = 0;
    std::vector<std::byte> shadow;
    std::shared_ptr<std::byte> data;
  };
  struct Entry {
    Ragged k{8, 0, {}, {}}, v{8, 0, {}, {}}, position{4, 0, {}, {}}, bias{4, 0, {}, {}};
    uint64_t used = 0;
    uint64_t turn = 0;  // of the stream when it was asked for last: who reads it may still wait
  };
  using Rows = std::vector<std::span<const std::byte>>;

  Entry& entry(const void* key);
  void update(Ragged& table, const Rows& rows, Patches& patches);
  void replace(Ragged& table, const Rows& rows);
  void apply(Patches& patches, Entry& entry);
  DeviceBlocks blocks_of(Entry& entry, const Rows& k, const Rows& v, Patches& patches);

  CudaContext& context_;
  Tables& tables_;
  std::unordered_map<const void*, Entry> entries_;  // by the address of the first head's block list
  Patches::Room room_;
  uint64_t clock_ = 0;
};

}  // namespace winnow::cuda
