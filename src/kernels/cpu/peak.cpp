#include "kernels/cpu/peak.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>
#include <vector>

#include "kernels/cpu/attend_kernel.h"
#include "kernels/cpu/onednn_threads.h"

namespace winnow::cpu {
namespace {

constexpr int64_t kSize = 1024;
constexpr int kProducts = 4;     // of one thread, in one measurement
constexpr int kRepetitions = 6;  // the fastest counts; the first warms up

/// One thread's operands and primitive.
class Product {
 public:
  Product(const dnnl::engine& engine, bool bf16)
      : stream_(engine),
        a_(descriptor(bf16), engine),
        b_(descriptor(bf16), engine),
        c_(descriptor(false), engine),
        primitive_({{descriptor(bf16), descriptor(bf16), descriptor(false)}, engine}) {
    for (const dnnl::memory* memory : {&a_, &b_, &c_}) {
      std::memset(memory->get_data_handle(), 0x3c, memory->get_desc().get_size());  // small ordinary numbers
    }
  }

  void run() {
    primitive_.execute(stream_, {{DNNL_ARG_SRC, a_}, {DNNL_ARG_WEIGHTS, b_}, {DNNL_ARG_DST, c_}});
    stream_.wait();
  }

 private:
  static dnnl::memory::desc descriptor(bool bf16) {
    const auto type = bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
    return {{kSize, kSize}, type, dnnl::memory::format_tag::ab};
  }

  dnnl::stream stream_;
  dnnl::memory a_, b_, c_;
  dnnl::matmul primitive_;
};

}  // namespace

double matmul_peak_gflops(CpuContext& context) {
  const AttendKernel& kernel = *attend_kernels(context.features).front();
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  const int n_threads = context.pool.size();
  std::vector<Product> products;
  products.reserve(static_cast<size_t>(n_threads));
  for (int i = 0; i < n_threads; ++i) products.emplace_back(engine, kernel.product == Type::bf16);
  double best = 0;
  for (int repetition = 0; repetition < kRepetitions; ++repetition) {
    const auto start = std::chrono::steady_clock::now();
    context.pool.parallel_for(int64_t{n_threads} * kProducts, [&](int64_t /*item*/, int thread) {
      keep_onednn_on_this_thread();
      products[static_cast<size_t>(thread)].run();
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const double flops = 2.0 * kSize * kSize * kSize * n_threads * kProducts;
    best = std::max(best, flops / seconds.count() / 1e9);
  }
  return best;
}

}  // namespace winnow::cpu
