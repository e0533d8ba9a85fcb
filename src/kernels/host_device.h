// What devices whose memory is the host's have in common: scratch, blocks, copies.
#pragma once

#include <cstring>
#include <memory>

#include "attention/device.h"
#include "base/threads.h"
#include "kernels/scratch_pool.h"

namespace winnow {

class HostDevice : public Device {
 public:
  explicit HostDevice(int n_threads) : pool_(n_threads), scratch_(&memory_) {}

  int n_threads() const override { return pool_.size(); }

  Scratch scratch(int64_t rows, int64_t cols) override;
  void upload(Mat to, const float* from) override;
  void download(float* to, Mat from) override;
  std::shared_ptr<std::byte> allocate(size_t bytes) override;
  void copy_bytes(std::span<const BytesCopy> copies) override {
    for (const BytesCopy& copy : copies) std::memcpy(copy.to, copy.from, copy.bytes);
  }
  void upload_bytes(std::byte* to, const std::byte* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void sync() override {}
  void gather_rows(Mat from, std::span<const int32_t> rows, Mat to) override;
  void for_each(int64_t n_items, const std::function<void(int64_t item, int thread)>& work) override {
    pool_.parallel_for(n_items, work);
  }
  std::unique_ptr<LowBitScores> low_bit_scores(const LowBitArgs& args) override {
    static constexpr const LowBitKernel* kKernels[] = {&kLowBitPortable};
    return host_low_bit_scores(*this, args, true, kKernels);
  }

 protected:
  ThreadPool pool_;
  ScratchPool scratch_;
};

}  // namespace winnow
