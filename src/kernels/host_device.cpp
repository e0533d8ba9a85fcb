#include "kernels/host_device.h"

#include <utility>

namespace winnow {

Scratch HostDevice::scratch(int64_t rows, int64_t cols) {
  constexpr int64_t kLine = 16;  // floats of a cache line: rows of a matrix never share one
  const int64_t stride = (cols + kLine - 1) / kLine * kLine;
  std::shared_ptr<std::byte> bytes = scratch_.lend(static_cast<size_t>(rows * stride) * sizeof(float));
  const Mat view{reinterpret_cast<float*>(bytes.get()), rows, cols, stride};
  return {view, std::move(bytes)};
}

void HostDevice::upload(Mat to, const float* from) {
  const size_t bytes = static_cast<size_t>(to.cols) * sizeof(float);
  for (int64_t r = 0; r < to.rows; ++r) std::memcpy(to.row(r), from + r * to.cols, bytes);
}

void HostDevice::download(float* to, Mat from) {
  const size_t bytes = static_cast<size_t>(from.cols) * sizeof(float);
  for (int64_t r = 0; r < from.rows; ++r) std::memcpy(to + r * from.cols, from.row(r), bytes);
}

std::shared_ptr<std::byte> HostDevice::allocate(size_t bytes) {
  auto buffer = std::make_shared<Buffer>(bytes, &memory_);
  return {buffer, buffer->data()};
}

void HostDevice::gather_rows(Mat from, std::span<const int32_t> rows, Mat to) {
  const size_t bytes = static_cast<size_t>(from.cols) * sizeof(float);
  for (size_t i = 0; i < rows.size(); ++i) std::memcpy(to.row(static_cast<int64_t>(i)), from.row(rows[i]), bytes);
}

}  // namespace winnow
