// Copies between host and GPU through pinned memory, so that the host goes on while they run. Order is that of one
// stream, but for downloads of what is known to be made.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <functional>
#include <span>

#include "kernels/cuda/stream.h"

namespace winnow::cuda {

class Transfers {
 public:
  explicit Transfers(Stream stream);
  ~Transfers();
  Transfers(const Transfers&) = delete;
  Transfers& operator=(const Transfers&) = delete;

  /// Copies to the GPU; `from` may change as soon as this returns.
  void upload(void* to, const void* from, size_t bytes, When when = When::in_turn);
  /// `bytes` of pinned memory to write to, and the copy of what was written there: an upload without a copy on the
  /// host. At most kPiece bytes; nothing else may be uploaded in between.
  std::byte* stage(size_t bytes);
  void upload_staged(void* to, const std::byte* staged, size_t bytes, When when = When::in_turn);
  /// Copies to the host and waits until it is done.
  void download(void* to, const void* from, size_t bytes);
  /// The same, piece by piece into what take(piece, where it begins in bytes) makes of it. made: recorded behind what
  /// writes `from`, past which the copies do not wait for the stream; null: for all that is on it.
  void download(const void* from, size_t bytes,
                const std::function<void(std::span<const std::byte> piece, size_t begin)>& take,
                cudaEvent_t made = nullptr);

  static constexpr size_t kPiece = size_t{4} << 20;

 private:
  static constexpr size_t kPieces = 8;

  Stream stream_;
  cudaStream_t beside_ = nullptr;            // for copies that the stream's other work must not delay
  std::byte* ring_ = nullptr;                // kPieces of kPiece bytes
  std::byte* down_ = nullptr;                // two pieces
  size_t piece_ = 0;                         // the one that is being filled
  size_t filled_ = 0;                        // bytes of it
  std::array<cudaEvent_t, kPieces> done_{};  // of the copies from a piece
  std::array<cudaEvent_t, 2> arrived_{};
};

}  // namespace winnow::cuda
