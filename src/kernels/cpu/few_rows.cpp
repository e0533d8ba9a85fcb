#include "kernels/cpu/few_rows.h"

#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <vector>

#include "kernels/cpu/row_dot.h"

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

// x converted to what a dot product takes: own rounding, or one of ggml's types.
struct Activations {
  bool own = false;
  ggml_type type = GGML_TYPE_COUNT;
  size_t row_bytes = 0;
  std::shared_ptr<std::byte> rows;
};

struct Job {
  const Weight* weight;
  Mat y;
  RowDots dots;  // null: ggml's
  const ggml_type_traits_cpu* traits;
  const Activations* x;
  size_t row_bytes;
  int64_t rows_per_piece;
  int64_t first_piece;
};

Activations convert(CpuContext& context, ScratchPool& scratch, const Job& job, Mat x) {
  Activations result;
  result.own = job.dots != nullptr;
  result.type = job.traits->vec_dot_type;
  result.row_bytes = result.own ? rounded_row_bytes(x.cols) : ggml_row_size(result.type, x.cols);
  result.rows = scratch.lend(result.row_bytes * static_cast<size_t>(x.rows));
  const auto from_float = ggml_get_type_traits_cpu(result.type)->from_float;
  context.pool.parallel_for(x.rows, [&](int64_t r, int /*thread*/) {
    std::byte* to = result.rows.get() + static_cast<size_t>(r) * result.row_bytes;
    if (result.own) {
      choose_row_rounding(context.features)(x.row(r), to, x.cols);
    } else {
      from_float(x.row(r), to, x.cols);
    }
  });
  return result;
}

void ggml_dots(const ggml_type_traits_cpu& traits, const WeightRows& rows, const std::byte* x, float* y) {
  for (int r = 0; r < rows.n_rows; ++r) {
    const std::byte* row = rows.data + static_cast<size_t>(r) * rows.row_bytes;
    traits.vec_dot(static_cast<int>(rows.n_in), y + r, 0, row, 0, x, 0, 1);
  }
}

void multiply_piece(const Job& job, int64_t piece, int64_t n_rows, const float* bias) {
  const Weight& w = *job.weight;
  const int64_t begin = piece * job.rows_per_piece;
  const int64_t end = std::min(w.n_out, begin + job.rows_per_piece);
  for (int64_t out = begin; out < end; out += kDotRows) {
    const auto n = static_cast<int>(std::min<int64_t>(kDotRows, end - out));
    const WeightRows rows{w.data + static_cast<size_t>(out) * job.row_bytes, job.row_bytes, n, w.n_in};
    for (int64_t r = 0; r < n_rows; ++r) {
      const std::byte* x = job.x->rows.get() + static_cast<size_t>(r) * job.x->row_bytes;
      std::array<float, kDotRows> value{};
      if (job.dots != nullptr) {
        job.dots(rows, x, value.data());
      } else {
        ggml_dots(*job.traits, rows, x, value.data());
      }
      float* y = job.y.row(r) + out;
      for (int i = 0; i < n; ++i) {
        y[i] = value[static_cast<size_t>(i)] + (bias == nullptr ? 0 : bias[out + i]);
      }
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
    Job job{&w, ys[i], choose_row_dots(w.type, context.features), &traits_of(w.type), nullptr, 0, 0, n_pieces};
    auto found = std::find_if(converted.begin(), converted.end(), [&](const Activations& a) {
      return a.own == (job.dots != nullptr) && (a.own || a.type == job.traits->vec_dot_type);
    });
    if (found == converted.end()) found = converted.insert(converted.end(), convert(context, scratch, job, x));
    job.x = &*found;
    job.row_bytes = type_bytes(w.type, w.n_in);
    job.rows_per_piece = std::max<int64_t>(1, static_cast<int64_t>(kPieceBytes / job.row_bytes));
    n_pieces += (w.n_out + job.rows_per_piece - 1) / job.rows_per_piece;
    jobs.push_back(job);
  }
  context.pool.parallel_shares(n_pieces, [&](int64_t piece, int /*thread*/) {
    size_t j = jobs.size() - 1;
    while (jobs[j].first_piece > piece) --j;
    multiply_piece(jobs[j], piece - jobs[j].first_piece, x.rows, bias);
  });
}

}  // namespace winnow
