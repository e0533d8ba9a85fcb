// The GPU under test, for tests that are skipped where there is none.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "attention/device.h"
#include "base/error.h"

namespace winnow::test {

/// One device for each choice of kernels ("", "hopper", "portable"), made once; null with the reason where it cannot
/// be.
struct Gpu {
  std::unique_ptr<Device> device;
  std::string why_not;
};

inline const Gpu& gpu(const std::string& kernels = "") {
  static std::map<std::string, Gpu> all;
  const auto found = all.find(kernels);
  if (found != all.end()) return found->second;
  Gpu& made = all[kernels];
  if (!kernels.empty()) setenv("WINNOW_CUDA_KERNELS", kernels.c_str(), 1);
  try {
    made.device = make_device("cuda", 0);
  } catch (const Error& error) {
    made.why_not = error.what();
  }
  unsetenv("WINNOW_CUDA_KERNELS");
  return made;
}

/// GTEST_SKIPs where there is no GPU.
class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    if (gpu().device == nullptr) GTEST_SKIP() << gpu().why_not;
  }
  static Device& device() { return *gpu().device; }
};

inline std::vector<float> random_values(size_t n, uint32_t seed, float spread = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> values(n);
  for (float& v : values) v = normal(random);
  return values;
}

inline void round_to_bf16(std::vector<float>& values) {
  for (float& v : values) v = bf16_to_f32(f32_to_bf16(v));
}

}  // namespace winnow::test
