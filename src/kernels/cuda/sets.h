// Sets of slots and their lists on the GPU: attention/core.h, important.h and sets.h for all kv heads at once, below
// the Device interface. Pointers are device memory.
#pragma once

#include "attention/ops.h"
#include "kernels/cuda/attention.h"

namespace winnow::cuda {

/// Sets that are being chosen: set s is that of kv head s, or the only one that all kv heads share.
struct SetsCall {
  int32_t n_set = 0;
  int32_t n_together = 1;            // query heads of a set
  int64_t max_slots = 0;             // from one set's first slot to the next one's
  const int32_t* n_slots = nullptr;  // [n_set]
  const float* mass = nullptr;       // [n_set * n_together, max_slots] what probe rows spend
  float* sum = nullptr;              // [n_set, max_slots] over the heads of a set
  int32_t* taken = nullptr;          // [n_set, max_slots] 1 for slots of the set; their inclusive sums after `end_sets`
  Stream stream = {};
};

/// The core's choice: fills `sum` with votes, and `taken`.
struct CoreChoice {
  const int32_t* begin = nullptr;  // [n_set]
  const double* shares = nullptr;  // [n_set, 7], as CoreShares
  int32_t sinks = 0;
  double* concentration = nullptr;  // [n_set, max_slots / kCoreBlock], work
};
void choose_core(const SetsCall& call, const CoreChoice& choice);

/// The choice of important slots: fills `sum` with mean mass, and `taken`.
struct ImportantChoice {
  const int2* visible = nullptr;  // [n_set, n_rows] of the probes' rows
  int32_t n_rows = 0;
  double share = 1;
  int32_t first = 0;
  const int32_t* host_n_slots = nullptr;  // [n_set], host memory
  std::byte* work = nullptr;              // important_work_bytes
};
size_t important_work_bytes(const SetsCall& call);
void choose_important(const SetsCall& call, const ImportantChoice& choice);

/// What the host learns of a set.
struct SetFacts {
  int32_t n = 0;    // slots
  double kept = 1;  // the share of the mass that it holds
};

/// Ends of the sets and facts of them. Mass counts as lost where slots [0, near) were left out; near [n_set], or null:
/// wherever. total: mass that was spent, or 0: the sum of all.
size_t sets_scan_bytes(const SetsCall& call);
struct SetEnds {
  const int32_t* near = nullptr;
  double total = 0;
  std::byte* scan_work = nullptr;
  int32_t* ptr = nullptr;     // [n_set + 1], written
  SetFacts* facts = nullptr;  // [n_set], written
};
void end_sets(const SetsCall& call, const SetEnds& ends);
/// The slots of all sets, ascending, one set behind the other.
void write_sets(const SetsCall& call, int32_t* slots);

/// Lists of sets. Query blocks are of kSetRows rows, key blocks of kSetBlock slots.
struct SetLists {
  int32_t n_set = 0;
  const int32_t* ptr = nullptr;    // [n_set + 1]
  const int32_t* slots = nullptr;  // [n], one set behind the other
  int64_t n = 0;
  const int2* visible = nullptr;  // [n_head_kv, n_rows]
  int64_t n_rows = 0;
  int32_t n_block_q = 0;
  int32_t window = 1, unit = 1;
  std::byte* work = nullptr;  // set_lists_work_bytes
  // Written by measure_sets: columns of all sets [n], and where the lists' end.
  int32_t* column = nullptr;
  int32_t* column_ptr = nullptr;  // [n_set * n_block_q + 1]
  int32_t* column_end = nullptr;  // [n_set * n_block_q]
  int32_t* block_ptr = nullptr;   // [n_set * n_block_q + 1]
  Stream stream = {};
};
size_t set_lists_work_bytes(const SetLists& call);
void measure_sets(const SetLists& call);
/// What is left: the blocks.
void write_set_blocks(const SetLists& call, int32_t* block_begin);

/// Lists of those rows alone that are in a set or among the last `n_wanted`.
struct SetRows {
  SetLists
      sets;  // `visible`, `window` and `unit` are not looked at; n_rows and n_block_q are those of rows that attend
  const int32_t* own = nullptr;  // [n_set] row r's own slot in set s is own[s] + r
  int64_t n_all = 0;             // rows
  int64_t n_wanted = 0;
  int32_t* rows = nullptr;  // [n_all + 1] how many attend; then they, ascending
  int32_t* more = nullptr;  // [n_set * n_block_q] columns of lists' own up to here, behind the n of the sets
};
/// The rows that attend. places: [n_all], work; scan: row_scan_bytes
size_t row_scan_bytes(const SetRows& call);
void find_rows(const SetRows& call, int32_t* places, std::byte* scan);
/// Where the lists end: block_ptr and `more`.
void measure_rows(const SetRows& call);
/// The rest, of which `column` has room for n and what is `more`.
void write_rows(const SetRows& call, int32_t* block_begin);

}  // namespace winnow::cuda
