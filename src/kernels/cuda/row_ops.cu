// All of these are bound by memory: each thread takes eight neighbouring values.
#include "kernels/cuda/row_ops.h"

#include <algorithm>

#include "kernels/cuda/gate.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/turn.cuh"
#include "kernels/cuda/vec_inl.h"

namespace winnow::cuda {
namespace {

constexpr int kThreads = 256;

/// A matrix as kernels see it.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
  bool wide;

  explicit Rows(const Mat& mat)
      : data(reinterpret_cast<T*>(mat.data)), stride(mat.stride), wide(cuda::wide(data, mat.stride)) {}
  __device__ void load(int64_t row, int64_t col, int64_t cols, float (&v)[8]) const {
    load_some(data + row * stride + col, cols - col, wide, v);
  }
  __device__ void store(int64_t row, int64_t col, int64_t cols, const float (&v)[8]) const {
    store_some(data + row * stride + col, cols - col, wide, v);
  }
};

/// Threads over a matrix: x along the row, eight values each, y along rows.
struct Grid {
  dim3 blocks, threads;

  Grid(int64_t rows, int64_t cols) {
    const int64_t chunks = std::max<int64_t>((cols + 7) / 8, 1);
    unsigned along = 1;
    while (along < chunks && along < kThreads) along *= 2;
    threads = dim3(along, kThreads / along);
    blocks = dim3(static_cast<unsigned>((rows + threads.y - 1) / threads.y),
                  static_cast<unsigned>((chunks + along - 1) / along));
  }
};
__device__ int64_t grid_row() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
}
__device__ int64_t grid_col() {
  return 8 * (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x);
}

template <typename From, typename To>
__global__ void copy_rows_kernel(Rows<From> from, const int32_t* rows, float scale, Rows<To> to, int64_t n_rows,
                                 int64_t cols) {
  take_turn();
  const int64_t row = grid_row(), col = grid_col();
  if (row >= n_rows || col >= cols) return;
  float v[8];
  from.load(rows == nullptr ? row : rows[row], col, cols, v);
#pragma unroll
  for (float& x : v) x *= scale;
  to.store(row, col, cols, v);
}

__device__ float block_sum(float x) {
  __shared__ float partial[32];
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  x = warp_sum(x);
  if (lane == 0) partial[warp] = x;
  __syncthreads();
  x = lane < blockDim.x / 32 ? partial[lane] : 0.0F;
  return warp_sum(x);
}

/// One block for each row. A thread keeps its first eight values; more are read again from the cache.
template <typename X, typename Y>
__global__ void rms_norm_kernel(Rows<X> x, const float* weight, float eps, Rows<Y> y, int64_t cols) {
  const int64_t row = blockIdx.x, first = 8 * static_cast<int64_t>(threadIdx.x), step = 8 * blockDim.x;
  float mine[8] = {}, w[8] = {};
  if (first < cols) load_some(weight + first, cols - first, true, w);
  take_turn();
  if (first < cols) x.load(row, first, cols, mine);
  float sum = 0;
#pragma unroll
  for (const float value : mine) sum += value * value;
  for (int64_t col = first + step; col < cols; col += step) {
    float v[8];
    x.load(row, col, cols, v);
#pragma unroll
    for (const float value : v) sum += value * value;
  }
  const float scale = 1 / sqrtf(block_sum(sum) / static_cast<float>(cols) + eps);
  if (first >= cols) return;
#pragma unroll
  for (int i = 0; i < 8; ++i) mine[i] = mine[i] * scale * w[i];
  y.store(row, first, cols, mine);
  for (int64_t col = first + step; col < cols; col += step) {
    float v[8];
    x.load(row, col, cols, v);
    load_some(weight + col, cols - col, true, w);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = v[i] * scale * w[i];
    y.store(row, col, cols, v);
  }
}

/// One warp for each head of each row.
template <typename T>
__global__ void rms_norm_heads_kernel(T* data, int64_t stride, int64_t n_rows, int32_t n_head, int32_t head_dim,
                                      const float* weight, float eps, bool is_wide) {
  take_turn();
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (item >= n_rows * n_head) return;
  T* head = data + item / n_head * stride + item % n_head * head_dim;
  const int lane = static_cast<int>(threadIdx.x % 32);
  float sum = 0;
  for (int col = 8 * lane; col < head_dim; col += 256) {
    float v[8];
    load_some(head + col, head_dim - col, is_wide, v);
#pragma unroll
    for (const float value : v) sum += value * value;
  }
  const float scale = 1 / sqrtf(warp_sum(sum) / static_cast<float>(head_dim) + eps);
  for (int col = 8 * lane; col < head_dim; col += 256) {
    float v[8], w[8];
    load_some(head + col, head_dim - col, is_wide, v);
    load_some(weight + col, head_dim - col, true, w);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = v[i] * scale * w[i];
    store_some(head + col, head_dim - col, is_wide, v);
  }
}

struct RopeCall {
  struct Heads {
    void* data;
    int64_t stride;
    int32_t n;
  };
  Heads q, k;
  int32_t head_dim, half;
  bool neox;
  float magnitude;
  const float* frequency;
  const int32_t* position;
};

/// One block for each row, or several that share its heads: the row's turns once, then the heads.
template <typename T>
__global__ void rope_kernel(const __grid_constant__ RopeCall call) {
  extern __shared__ float2 turns[];  // [half]
  const int64_t row = blockIdx.x;
  for (int i = static_cast<int>(threadIdx.x); i < call.half; i += static_cast<int>(blockDim.x)) {
    turns[i] = turn_of(call.position[row], call.frequency[i], call.magnitude);
  }
  take_turn();
  __syncthreads();
  const int n = (call.q.n + call.k.n) * call.half;
  const int step = static_cast<int>(blockDim.x * gridDim.y);
  for (int item = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x); item < n; item += step) {
    const int i = item % call.half, index = item / call.half;
    const RopeCall::Heads& heads = index < call.q.n ? call.q : call.k;
    const int64_t of_row = index < call.q.n ? index : index - call.q.n;
    T* head = static_cast<T*>(heads.data) + row * heads.stride + of_row * call.head_dim;
    T& first = head[call.neox ? i : 2 * i];
    T& second = head[call.neox ? i + call.half : 2 * i + 1];
    const float a = to_float(first), b = to_float(second);
    first = from_float<T>(a * turns[i].x - b * turns[i].y);
    second = from_float<T>(a * turns[i].y + b * turns[i].x);
  }
}

template <Gate kind, typename G, typename U, typename Y>
__global__ void gated_kernel(Rows<G> gate, Rows<U> up, Rows<Y> y, int64_t n_rows, int64_t cols) {
  take_turn();
  const int64_t row = grid_row(), col = grid_col();
  if (row >= n_rows || col >= cols) return;
  float g[8], u[8];
  gate.load(row, col, cols, g);
  up.load(row, col, cols, u);
#pragma unroll
  for (int i = 0; i < 8; ++i) g[i] = activate<kind>(g[i]) * u[i];
  y.store(row, col, cols, g);
}

template <typename X, typename Y>
__global__ void add_kernel(Rows<X> x, Rows<Y> y, int64_t n_rows, int64_t cols) {
  take_turn();
  const int64_t row = grid_row(), col = grid_col();
  if (row >= n_rows || col >= cols) return;
  float a[8], b[8];
  x.load(row, col, cols, a);
  y.load(row, col, cols, b);
#pragma unroll
  for (int i = 0; i < 8; ++i) a[i] += b[i];
  x.store(row, col, cols, a);
}

template <typename X>
__global__ void add_bias_kernel(Rows<X> x, const float* bias, int64_t n_rows, int64_t cols) {
  take_turn();
  const int64_t row = grid_row(), col = grid_col();
  if (row >= n_rows || col >= cols) return;
  float a[8], b[8];
  x.load(row, col, cols, a);
  load_some(bias + col, cols - col, true, b);
#pragma unroll
  for (int i = 0; i < 8; ++i) a[i] += b[i];
  x.store(row, col, cols, a);
}

template <typename X>
__global__ void softcap_kernel(Rows<X> x, float softcap, int64_t n_rows, int64_t cols) {
  take_turn();
  const int64_t row = grid_row(), col = grid_col();
  if (row >= n_rows || col >= cols) return;
  float a[8];
  x.load(row, col, cols, a);
#pragma unroll
  for (float& value : a) value = softcap * tanhf(value / softcap);
  x.store(row, col, cols, a);
}

}  // namespace

void copy_rows(Mat from, const int32_t* rows, float scale, Mat to, Stream stream) {
  if (to.rows == 0) return;
  const Grid grid(to.rows, to.cols);
  with_type(from.type, [&](auto* f) {
    with_type(to.type, [&](auto* t) {
      using From = std::remove_pointer_t<decltype(f)>;
      using To = std::remove_pointer_t<decltype(t)>;
      launch_early({grid.blocks, grid.threads, 0, stream, "launching a copy of rows"}, copy_rows_kernel<From, To>,
                   Rows<From>(from), rows, scale, Rows<To>(to), to.rows, to.cols);
    });
  });
}

void rms_norm(Mat x, const float* weight, float eps, Mat y, Stream stream) {
  if (x.rows == 0) return;
  // Few rows: more threads each, since nothing else fills the machine.
  const unsigned threads = x.rows < 256 ? 1024 : kThreads;
  with_type(x.type, [&](auto* a) {
    with_type(y.type, [&](auto* b) {
      using X = std::remove_pointer_t<decltype(a)>;
      using Y = std::remove_pointer_t<decltype(b)>;
      launch_early({static_cast<unsigned>(x.rows), threads, 0, stream, "launching rms_norm"}, rms_norm_kernel<X, Y>,
                   Rows<X>(x), weight, eps, Rows<Y>(y), x.cols);
    });
  });
}

void rms_norm_heads(HeadsView x, const float* weight, float eps, Stream stream) {
  if (x.n_rows == 0) return;
  constexpr int64_t kWarps = kThreads / 32;
  const auto n_blocks = static_cast<unsigned>((x.n_rows * x.n_head + kWarps - 1) / kWarps);
  with_type(x.type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    auto* data = reinterpret_cast<T*>(x.data);
    const bool is_wide = wide(data, x.stride) && wide(data, x.head_dim);
    launch_early({n_blocks, kThreads, 0, stream, "launching rms_norm_heads"}, rms_norm_heads_kernel<T>, data, x.stride,
                 x.n_rows, x.n_head, x.head_dim, weight, eps, is_wide);
  });
}

void rope(HeadsView q, HeadsView k, const RopeArgs& args, const int32_t* position, Stream stream) {
  if (q.n_rows == 0) return;
  const RopeCall call = {{q.data, q.stride, q.n_head},
                         {k.data, k.stride, k.n_head},
                         args.head_dim,
                         args.n_rot / 2,
                         args.neox,
                         args.magnitude,
                         args.frequency,
                         position};
  const size_t shared = static_cast<size_t>(call.half) * sizeof(float2);
  // Few rows: a block for every pass over the heads, since nothing else fills the machine.
  const int64_t n_passes = (int64_t{call.q.n + call.k.n} * call.half + kThreads - 1) / kThreads;
  const dim3 grid(static_cast<unsigned>(q.n_rows),
                  q.n_rows < 64 ? static_cast<unsigned>(std::max<int64_t>(n_passes, 1)) : 1);
  with_type(q.type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    launch_early({grid, kThreads, shared, stream, "launching rope"}, rope_kernel<T>, call);
  });
}

void gated(Mat gate, Mat up, Gate kind, Mat y, Stream stream) {
  if (gate.rows == 0) return;
  const Grid grid(gate.rows, gate.cols);
  const auto launch = [&](auto* g, auto* u, auto* o) {
    using G = std::remove_pointer_t<decltype(g)>;
    using U = std::remove_pointer_t<decltype(u)>;
    using Y = std::remove_pointer_t<decltype(o)>;
    if (kind == Gate::silu) {
      launch_early({grid.blocks, grid.threads, 0, stream, "launching a gate"}, gated_kernel<Gate::silu, G, U, Y>,
                   Rows<G>(gate), Rows<U>(up), Rows<Y>(y), gate.rows, gate.cols);
    } else {
      launch_early({grid.blocks, grid.threads, 0, stream, "launching a gate"}, gated_kernel<Gate::gelu_tanh, G, U, Y>,
                   Rows<G>(gate), Rows<U>(up), Rows<Y>(y), gate.rows, gate.cols);
    }
  };
  with_type(gate.type, [&](auto* g) {
    with_type(up.type, [&](auto* u) { with_type(y.type, [&](auto* o) { launch(g, u, o); }); });
  });
}

void add(Mat x, Mat y, Stream stream) {
  if (x.rows == 0) return;
  const Grid grid(x.rows, x.cols);
  with_type(x.type, [&](auto* a) {
    with_type(y.type, [&](auto* b) {
      using X = std::remove_pointer_t<decltype(a)>;
      using Y = std::remove_pointer_t<decltype(b)>;
      launch_early({grid.blocks, grid.threads, 0, stream, "launching a sum"}, add_kernel<X, Y>, Rows<X>(x), Rows<Y>(y),
                   x.rows, x.cols);
    });
  });
}

void add_bias(Mat x, const float* bias, Stream stream) {
  if (x.rows == 0) return;
  const Grid grid(x.rows, x.cols);
  with_type(x.type, [&](auto* a) {
    using X = std::remove_pointer_t<decltype(a)>;
    launch_early({grid.blocks, grid.threads, 0, stream, "launching a sum"}, add_bias_kernel<X>, Rows<X>(x), bias,
                 x.rows, x.cols);
  });
}

void scale_softcap(Mat x, float softcap, Stream stream) {
  if (x.rows == 0) return;
  const Grid grid(x.rows, x.cols);
  with_type(x.type, [&](auto* a) {
    using X = std::remove_pointer_t<decltype(a)>;
    launch_early({grid.blocks, grid.threads, 0, stream, "launching a softcap"}, softcap_kernel<X>, Rows<X>(x), softcap,
                 x.rows, x.cols);
  });
}

}  // namespace winnow::cuda
