// The attention verbs of class Ops on the CPU; arguments and results are those of attention/ops.h.
// `attend`, `merge`, `antidiagonal_scores`, `proxy_scores` and `select_tree` spread their work over the context's
// threads. The others run on the calling thread, because methods call them from inside for_each.
#pragma once

#include <vector>

#include "attention/ops.h"
#include "kernels/cpu/antidiagonal_kernel.h"
#include "kernels/cpu/context.h"

namespace winnow::cpu {

void attend(CpuContext& context, const AttnArgs& args);
void merge(CpuContext& context, HeadsView into, float* into_lse, const Partial& from, float gain);
void score_window(CpuContext& context, const ProbeArgs& args, int32_t head, std::vector<float>& probabilities);
void pool_queries(CpuContext& context, const HeadsView& q, int32_t head, int32_t block, std::vector<float>& pooled);
void pool_keys(CpuContext& context, const KvView& kv, int32_t kv_head, int32_t block, std::vector<float>& pooled);
void gather_keys(const KvView& kv, int32_t kv_head, std::span<const int32_t> slots, std::vector<float>& keys);
void score_blocks(CpuContext& context, const std::vector<float>& a, const std::vector<float>& b, int32_t dim,
                  float scale, std::vector<float>& scores);
/// False, and nothing done, where the kernel cannot take such groups. BlockScore::sum is antidiagonal_scores.
bool antidiagonal_scores(CpuContext& context, const AntidiagonalArgs& args, BlockScore what,
                         std::vector<std::vector<float>>& scores);
/// False where the kernel cannot take rows of this size.
bool proxy_scores(CpuContext& context, const ProxyArgs& args, std::vector<std::vector<float>>& scores);
/// The keys of all kv heads are unpacked for it; meant for many rows.
Selection select_tree(CpuContext& context, Ops& ops, const TreeArgs& args);

}  // namespace winnow::cpu
