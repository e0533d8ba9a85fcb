// Products in eight-bit floats against plain formulas, and whole runs with them against ref.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/cuda/gpu_fixture.h"
#include "tiny_engine.h"

namespace winnow {
namespace {

using test::random_values;

constexpr float kLargest = 448;

/// To the nearest e4m3: three bits of mantissa, of the exponents from -6 on.
float to_e4m3(float x) {
  if (x == 0) return 0;
  const int exponent = std::max(std::ilogb(x), -6);
  const float step = std::ldexp(1.0F, exponent - 3);
  return std::clamp(std::nearbyint(x / step) * step, -kLargest, kLargest);
}

/// Each row divided by its scale, rounded, and multiplied again.
std::vector<float> through_e4m3(std::vector<float> values, int64_t cols) {
  for (size_t begin = 0; begin < values.size(); begin += static_cast<size_t>(cols)) {
    const auto row = std::span(values).subspan(begin, static_cast<size_t>(cols));
    float largest = 0;
    for (const float v : row) largest = std::max(largest, std::abs(v));
    const float by = largest > 0 ? kLargest / largest : 0;
    for (float& v : row) v = to_e4m3(v * by) * (largest / kLargest);
  }
  return values;
}

struct Sizes {
  int64_t rows, n_in, n_out;
};

class CudaFp8 : public testing::Test {
 protected:
  void SetUp() override {
    if (device_ == nullptr) GTEST_SKIP() << why_not_;
  }
  static void SetUpTestSuite() {
    try {
      device_ = make_device("cuda", 0, ProductType::fp8);
    } catch (const Error& error) {
      why_not_ = error.what();
    }
  }
  static void TearDownTestSuite() { device_.reset(); }

  /// Root mean square of the product's difference from that of these factors, over the size of the product's values.
  static double error(const std::vector<float>& got, const std::vector<float>& x, const std::vector<float>& w,
                      const Sizes& sizes) {
    double difference = 0, size = 0;
    for (int64_t r = 0; r < sizes.rows; ++r) {
      for (int64_t o = 0; o < sizes.n_out; ++o) {
        double sum = 0;
        for (int64_t i = 0; i < sizes.n_in; ++i) {
          sum += static_cast<double>(x[static_cast<size_t>(r * sizes.n_in + i)]) *
                 w[static_cast<size_t>(o * sizes.n_in + i)];
        }
        const double d = got[static_cast<size_t>(r * sizes.n_out + o)] - sum;
        difference += d * d;
        size += sum * sum;
      }
    }
    EXPECT_TRUE(std::isfinite(difference));
    return std::sqrt(difference / size);
  }

  static std::unique_ptr<Device> device_;
  static std::string why_not_;
};
std::unique_ptr<Device> CudaFp8::device_;
std::string CudaFp8::why_not_;

/// Rows of very different sizes: each has its own scale. Added products are exact but for float's rounding; few rows
/// are not rounded themselves.
TEST_F(CudaFp8, ProductsEqualTheFormula) {
  for (const int64_t rows : {1, 3, 4, 33, 257}) {
    for (const int64_t n_in : {64, 100, 1111}) {
      for (const int64_t n_out : {16, 304, 300}) {  // 300 is no multiple of 16: bf16
        SCOPED_TRACE(testing::Message() << rows << " x " << n_in << " to " << n_out);
        const Sizes sizes{rows, n_in, n_out};
        std::vector<float> x = random_values(static_cast<size_t>(rows * n_in), 1);
        for (size_t i = 0; i < x.size(); ++i) x[i] *= std::ldexp(1.0F, static_cast<int>(i / n_in % 9) - 4);
        std::vector<float> w = random_values(static_cast<size_t>(n_out * n_in), 2);
        test::round_to_bf16(x);
        test::round_to_bf16(w);
        const Weight weight{"w", Type::f32, n_out, n_in, reinterpret_cast<const std::byte*>(w.data())};
        const Scratch in = device_->activations(rows, n_in), out = device_->activations(rows, n_out),
                      sum = device_->scratch(rows, n_out);
        device_->upload(in, x.data());
        std::vector<float> got(static_cast<size_t>(rows * n_out), 0.0F);
        device_->upload(sum, got.data());
        device_->linear(weight, in, out);
        device_->linear_add(weight, in, sum);
        const bool is_fp8 = n_out % 16 == 0;
        const std::vector<float> w8 = is_fp8 ? through_e4m3(w, n_in) : w;
        const std::vector<float> x8 = is_fp8 && rows > 3 ? through_e4m3(x, n_in) : x;
        device_->download(got.data(), out);
        EXPECT_LT(error(got, x8, w8, sizes), 4e-3);
        EXPECT_LT(error(got, x, w, sizes), 0.08);
        device_->download(got.data(), sum);
        EXPECT_LT(error(got, x8, w8, sizes), 2e-3);
        device_->linear(weight, in, sum);  // as logits are made: bf16
        device_->download(got.data(), sum);
        EXPECT_LT(error(got, x, w, sizes), 1e-4);
      }
    }
  }
}

TEST_F(CudaFp8, RowsOfZeros) {
  const std::vector<float> x(size_t{8} * 64, 0.0F), w(size_t{32} * 64, 1.0F);
  const Weight weight{"w", Type::f32, 32, 64, reinterpret_cast<const std::byte*>(w.data())};
  const Scratch in = device_->activations(8, 64), out = device_->activations(8, 32);
  device_->upload(in, x.data());
  device_->linear(weight, in, out);
  std::vector<float> got(size_t{8} * 32, 1.0F);
  device_->download(got.data(), out);
  EXPECT_EQ(got, std::vector<float>(got.size(), 0.0F));
}

TEST_F(CudaFp8, FiguresTellTheProducts) {
  EXPECT_EQ(device_->name(), "cuda (fp8)");
  EXPECT_EQ(make_device("cuda", 0)->name(), "cuda");
}

/// Rows of tiny models are short and the distance is the worst logit's, so that eight bits show: 0.5 was seen.
TEST_F(CudaFp8, WholeRunsStayNearRef) {
  constexpr double kBound = 0.8;
  for (const char* architecture : {"llama", "gemma3"}) {
    const TinyEngine here(architecture, {}, "ref");
    Engine engine(load_model(Gguf::parse("tiny", here.bytes.data(), here.bytes.size())),
                  make_device("cuda", 0, ProductType::fp8), {});
    Sequence a = here.start(), b = engine.start(Policy({}, engine.method_shape()));
    EXPECT_LT(relative_distance(engine.prefill(b, random_tokens(200)), here->prefill(a, random_tokens(200))), kBound)
        << architecture;
    EXPECT_LT(relative_distance(engine.decode(b, 3), here->decode(a, 3)), kBound) << architecture;
  }
}

TEST(Fp8, OnlyCudaHasIt) {
  for (const char* name : {"cpu", "ref"}) EXPECT_THROW(make_device(name, 1, ProductType::fp8), Error) << name;
  EXPECT_THROW(product_type("fp4"), Error);
}

}  // namespace
}  // namespace winnow
