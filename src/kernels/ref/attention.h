// The attention verbs of class Ops as plain loops in double, on the calling thread; arguments and results are those of
// attention/ops.h.
#pragma once

#include <vector>

#include "attention/ops.h"

namespace winnow::ref {

void attend(const AttnArgs& args);
void merge(HeadsView into, float* into_lse, const Partial& from, float gain);
void score_window(const ProbeArgs& args, int32_t head, std::vector<float>& probabilities);
void pool_queries(const HeadsView& q, int32_t head, int32_t block, std::vector<float>& pooled);
void pool_keys(const KvView& kv, int32_t kv_head, int32_t block, std::vector<float>& pooled);
void score_blocks(const std::vector<float>& a, const std::vector<float>& b, int32_t dim, float scale,
                  std::vector<float>& scores);

}  // namespace winnow::ref
