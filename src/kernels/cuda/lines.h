// Vertical and slash lines on the GPU: attention/lines.h for all heads at once, without a visit to the host but for the
// lists' lengths.
#pragma once

#include "attention/ops.h"
#include "kernels/cuda/attention.h"

namespace winnow::cuda {

inline constexpr int32_t kMaxProbeRows = 64;

/// The rows of a probe. For lines they are the last of those that lists are made for; each sees its own slot last, and
/// these slots follow each other. Pointers are device memory.
struct LineProbe {
  HeadRows q;  // [n_probe, n_head, head_dim], at most kMaxProbeRows rows
  StagedKv kv;
  const int2* visible = nullptr;  // [n_head_kv, n_probe]
  int32_t max_slots = 0;          // the longest head's n_slots
  float scale = 1, softcap = 0;
  Stream stream = {};
};

/// Sums of probabilities over rows, for each slot and each distance. [n_head, max_slots] in device memory
struct LineSums {
  float* vertical = nullptr;
  float* slash = nullptr;  // null: not wanted
  bool adds = false;       // to what is in `vertical`
};

/// Sums of the probe's probabilities; work: line_work_bytes(probe).
size_t line_work_bytes(const LineProbe& probe);
void line_mass(const LineProbe& probe, const LineSums& sums, std::byte* work);

/// The chosen lines of each head.
struct ChosenLines {
  int32_t* vertical = nullptr;  // [n_head, most_vertical] ascending
  int32_t* slash = nullptr;     // [n_head, most_slash] distances, descending
  int32_t* n = nullptr;         // [n_head, 2] how many of each
  int32_t most_vertical = 0, most_slash = 0;
};

/// The heaviest lines of vertical and slash [n_head, max_slots], as far as the probe's last row sees; ties go to the
/// lower index. budget [n_head], device memory.
void choose_lines(const LineProbe& probe, const float* vertical, const float* slash, const LineBudget* budget,
                  const ChosenLines& chosen);

/// Lists of blocks of kLineBlock rows. visible [n_head_kv, n_rows] of all rows. With block_begin null only the ends of
/// the lists are written: block_ptr and column_ptr [n_head * n_block_q + 1], from which the caller learns how much room
/// block_begin and column need.
struct LayArgs {
  ChosenLines chosen;
  const int2* visible = nullptr;
  int64_t n_rows = 0;
  int32_t n_head = 0, group = 1;
  int32_t* block_ptr = nullptr;
  int32_t* column_ptr = nullptr;
  int32_t* block_begin = nullptr;
  int32_t* column = nullptr;
  std::byte* work = nullptr;  // lay_work_bytes of device memory
  Stream stream = {};
};
size_t lay_work_bytes(int32_t n_head, int64_t n_rows);
void lay_lines(const LayArgs& args);

}  // namespace winnow::cuda
