#include "kernels/cpu/few_rows.h"

#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <mutex>
#include <vector>

namespace winnow {
namespace {

// A piece is what a thread takes at a time: long enough that handing out costs nothing and the hardware prefetcher
// runs, short enough that threads end together.
constexpr size_t kPieceBytes = 32U << 10;

const ggml_type_traits_cpu& traits_of(Type type) {
  static std::once_flag once;
  std::call_once(once, ggml_cpu_init);  // fills the tables that its dot products look up
  return *ggml_get_type_traits_cpu(static_cast<ggml_type>(type));
}

// x converted to one of the types that dot products take.
struct Activations {
  ggml_type type;
  size_t row_bytes;
  std::shared_ptr<std::byte> rows;
};

struct Job {
  const Weight* weight;
  Mat y;
  const ggml_type_traits_cpu* traits;
  const Activations* x;
  size_t row_bytes;
  int64_t rows_per_piece;
  int64_t first_piece;
};

Activations convert(CpuContext& context, ScratchPool& scratch, const ggml_type_traits_cpu& weight_traits, Mat x) {
  const ggml_type type = weight_traits.vec_dot_type;
  const auto from_float = ggml_get_type_traits_cpu(type)->from_float;
  Activations result{type, ggml_row_size(type, x.cols), {}};
  result.rows = scratch.lend(result.row_bytes * static_cast<size_t>(x.rows));
  context.pool.parallel_for(x.rows, [&](int64_t r, int /*thread*/) {
    from_float(x.row(r), result.rows.get() + static_cast<size_t>(r) * result.row_bytes, x.cols);
  });
  return result;
}

void multiply_piece(const Job& job, int64_t piece, int64_t n_rows, const float* bias) {
  const Weight& w = *job.weight;
  const int64_t begin = piece * job.rows_per_piece;
  const int64_t end = std::min(w.n_out, begin + job.rows_per_piece);
  const int n = static_cast<int>(w.n_in);
  for (int64_t out = begin; out < end; ++out) {
    const std::byte* row = w.data + static_cast<size_t>(out) * job.row_bytes;
    for (int64_t r = 0; r < n_rows; ++r) {
      float value = 0;
      const std::byte* x = job.x->rows.get() + static_cast<size_t>(r) * job.x->row_bytes;
      job.traits->vec_dot(n, &value, 0, row, 0, x, 0, 1);
      job.y.row(r)[out] = bias == nullptr ? value : value + bias[out];
    }
  }
}

}  // namespace

void multiply_few_rows(CpuContext& context, ScratchPool& scratch, std::span<const Weight* const> weights, Mat x,
                       std::span<const Mat> ys, const float* bias) {
  std::vector<Activations> converted;
  converted.reserve(weights.size());  // jobs point into it
  std::vector<Job> jobs;
  int64_t n_pieces = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Weight& w = *weights[i];
    const ggml_type_traits_cpu& traits = traits_of(w.type);
    auto found = std::find_if(converted.begin(), converted.end(),
                              [&](const Activations& a) { return a.type == traits.vec_dot_type; });
    if (found == converted.end()) found = converted.insert(converted.end(), convert(context, scratch, traits, x));
    const size_t row_bytes = type_bytes(w.type, w.n_in);
    const auto rows_per_piece = std::max<int64_t>(1, static_cast<int64_t>(kPieceBytes / row_bytes));
    jobs.push_back({&w, ys[i], &traits, &*found, row_bytes, rows_per_piece, n_pieces});
    n_pieces += (w.n_out + rows_per_piece - 1) / rows_per_piece;
  }
  context.pool.parallel_for(n_pieces, [&](int64_t piece, int /*thread*/) {
    size_t j = jobs.size() - 1;
    while (jobs[j].first_piece > piece) --j;
    multiply_piece(jobs[j], piece - jobs[j].first_piece, x.rows, bias);
  });
}

}  // namespace winnow
