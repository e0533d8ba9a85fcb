#include "kernels/cuda/transfers.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "kernels/cuda/check.h"

namespace winnow::cuda {

Transfers::Transfers(Stream stream) : stream_(stream) {
  void* memory = nullptr;
  check(cudaMallocHost(&memory, kPieces * kPiece), "allocating pinned memory");
  ring_ = static_cast<std::byte*>(memory);
  check(cudaMallocHost(&memory, 2 * kPiece), "allocating pinned memory");
  down_ = static_cast<std::byte*>(memory);
  for (cudaEvent_t& event : done_) check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
  check(cudaStreamCreateWithFlags(&beside_, cudaStreamNonBlocking), "creating a stream");
  for (cudaEvent_t& event : arrived_) {
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
  }
}

Transfers::~Transfers() {
  for (const cudaEvent_t event : done_) cudaEventDestroy(event);
  for (const cudaEvent_t event : arrived_) cudaEventDestroy(event);
  cudaStreamDestroy(beside_);
  cudaFreeHost(ring_);
  cudaFreeHost(down_);
}

std::byte* Transfers::stage(size_t bytes) {
  constexpr size_t kAlignment = 16;
  WINNOW_ASSERT(bytes <= kPiece);
  filled_ = (filled_ + kAlignment - 1) / kAlignment * kAlignment;
  if (filled_ + bytes > kPiece) {
    check(cudaEventRecord(done_[piece_], stream_.at(When::ahead)), "recording an event");
    piece_ = (piece_ + 1) % kPieces;
    filled_ = 0;
    check(cudaEventSynchronize(done_[piece_]), "waiting for a copy");
  }
  std::byte* staged = ring_ + piece_ * kPiece + filled_;
  filled_ += bytes;
  return staged;
}

void Transfers::upload_staged(void* to, const std::byte* staged, size_t bytes, When when) {
  check(cudaMemcpyAsync(to, staged, bytes, cudaMemcpyHostToDevice, stream_.at(when)), "copying to the GPU");
}

void Transfers::upload(void* to, const void* from, size_t bytes, When when) {
  for (size_t begin = 0; begin < bytes; begin += kPiece) {
    const size_t n = std::min(kPiece, bytes - begin);
    std::byte* staged = stage(n);
    std::memcpy(staged, static_cast<const std::byte*>(from) + begin, n);
    upload_staged(static_cast<std::byte*>(to) + begin, staged, n, when);
  }
}

void Transfers::download(void* to, const void* from, size_t bytes) {
  download(from, bytes, [to](std::span<const std::byte> piece, size_t begin) {
    std::memcpy(static_cast<std::byte*>(to) + begin, piece.data(), piece.size());
  });
}

void Transfers::download(const void* from, size_t bytes,
                         const std::function<void(std::span<const std::byte> piece, size_t begin)>& take,
                         cudaEvent_t made) {
  const size_t n_pieces = (bytes + kPiece - 1) / kPiece;
  const auto size = [&](size_t piece) { return std::min(kPiece, bytes - piece * kPiece); };
  if (made != nullptr) check(cudaStreamWaitEvent(beside_, made), "waiting for an event");
  const cudaStream_t stream = made != nullptr ? beside_ : static_cast<cudaStream_t>(stream_);
  // One piece is on its way while the one before it is taken.
  for (size_t piece = 0; piece <= n_pieces; ++piece) {
    if (piece < n_pieces) {
      check(cudaMemcpyAsync(down_ + piece % 2 * kPiece, static_cast<const std::byte*>(from) + piece * kPiece,
                            size(piece), cudaMemcpyDeviceToHost, stream),
            "copying from the GPU");
      check(cudaEventRecord(arrived_[piece % 2], stream), "recording an event");
    }
    if (piece == 0) continue;
    check(cudaEventSynchronize(arrived_[(piece - 1) % 2]), "waiting for a copy");
    take({down_ + (piece - 1) % 2 * kPiece, size(piece - 1)}, (piece - 1) * kPiece);
  }
}

}  // namespace winnow::cuda
