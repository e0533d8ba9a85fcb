// What the rows of a call may see and which keys their lists name, before any kernel runs.
#pragma once

#include <span>
#include <vector>

#include "kernels/cpu/attend_kernel.h"
#include "kernels/cpu/context.h"

namespace winnow::cpu {

/// Row r sees slots [begin[r], end[r]) of one kv head; both ascend with r.
struct Visible {
  std::vector<int32_t> begin, end;

  int64_t pairs() const;
};

Visible visible_slots(const KvHead& kv, const int32_t* limit, int64_t n_rows, int32_t window);

/// Keys of one query row's block: columns, and intervals of block_k slots.
struct KeyLists {
  std::span<const int32_t> column;
  std::span<const int32_t> block;
  int32_t block_k = 0;
};

/// Lists of q's row `row`; without a selection one interval of all `n_slots`.
KeyLists lists_of(const AttnArgs& args, int32_t head, int64_t row, int32_t n_slots);
bool same_lists(const KeyLists& a, const KeyLists& b);

/// The call on few rows, where reading K and V once for a whole group of heads is all that counts.
void attend_few(const AttendKernel& kernel, CpuContext& context, const AttnArgs& args);
/// The call on many rows, where K and V are unpacked first.
void attend_many(const AttendKernel& kernel, CpuContext& context, const AttnArgs& args);
/// One of the two, by the number of rows.
void attend_with(const AttendKernel& kernel, CpuContext& context, const AttnArgs& args);

}  // namespace winnow::cpu
