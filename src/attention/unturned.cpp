// Blocks of queries and keys as they were before RoPE: SeerAttention's gate and Flux Attention's router were trained on
// these. Nobody keeps them; turning the rows back costs less than a copy of them would take.
#include <algorithm>

#include "attention/ops.h"
#include "attention/rope_angles.h"
#include "base/error.h"

namespace winnow {
namespace {

constexpr int32_t kPiece = 4096;  // rows that are held in float32 at once, about

}  // namespace

void Ops::pool_unturned_queries(const UnturnedArgs& args, int32_t head, std::vector<float>& pooled) {
  const auto dim = static_cast<size_t>(args.q.head_dim);
  const int64_t block = args.block, piece = block * std::max<int64_t>(1, kPiece / block);
  Turn back(args.rope, Turn::Way::back);
  pooled.assign(static_cast<size_t>((args.q.n_rows + block - 1) / block) * dim, 0);
  std::vector<float> rows;
  for (int64_t begin = 0; begin < args.q.n_rows; begin += piece) {
    const int64_t n = std::min(piece, args.q.n_rows - begin);
    pool_queries(args.q.rows(begin, n), head, 1, rows);
    for (int64_t row = begin; row < begin + n; ++row) {
      float* values = rows.data() + static_cast<size_t>(row - begin) * dim;
      back(values, args.limit[static_cast<size_t>(row)]);
      float* mean = pooled.data() + static_cast<size_t>(row / block) * dim;
      const auto share = 1 / static_cast<float>(std::min(block, args.q.n_rows - row / block * block));
      for (size_t d = 0; d < dim; ++d) mean[d] += share * values[d];
    }
  }
}

void Ops::pool_unturned_keys(const UnturnedArgs& args, int32_t kv_head, std::vector<float>& pooled) {
  const KvHead& head = args.kv.heads[static_cast<size_t>(kv_head)];
  const auto dim = static_cast<size_t>(args.kv.head_dim);
  const int32_t block = args.block;
  WINNOW_ASSERT(block <= kPiece && kPiece % block == 0);
  Turn back(args.rope, Turn::Way::back);
  pooled.assign(static_cast<size_t>((head.n_slots + block - 1) / block) * 3 * dim, 0);
  std::vector<float> rows;
  for (int32_t begin = 0; begin < head.n_slots; begin += kPiece) {
    const int32_t n = std::min(kPiece, head.n_slots - begin);
    const auto first = static_cast<size_t>(begin / kBlockSlots);
    const KvHead part = {.k = head.k.subspan(first), .v = head.v.subspan(first), .n_slots = n};
    pool_keys({args.kv.k_type, args.kv.v_type, args.kv.head_dim, {&part, 1}}, 0, 1, rows);
    for (int32_t slot = begin; slot < begin + n; ++slot) {
      float* values = rows.data() + static_cast<size_t>(slot - begin) * dim;
      back(values, head.position(slot));
      float* most = pooled.data() + static_cast<size_t>(slot / block) * 3 * dim;
      float *least = most + dim, *mean = least + dim;
      const auto share = 1 / static_cast<float>(std::min(block, head.n_slots - slot / block * block));
      if (slot % block == 0) {
        std::copy_n(values, dim, most);
        std::copy_n(values, dim, least);
      }
      for (size_t d = 0; d < dim; ++d) {
        most[d] = std::max(most[d], values[d]);
        least[d] = std::min(least[d], values[d]);
        mean[d] += share * values[d];
      }
    }
  }
}

}  // namespace winnow
