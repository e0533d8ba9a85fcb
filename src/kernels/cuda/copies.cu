#include "kernels/cuda/copies.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "kernels/cuda/check.h"

namespace winnow::cuda {
namespace {

constexpr int kWarps = 8;
// Copies of this size and more are launched by themselves.
constexpr size_t kLarge = size_t{1} << 20;
constexpr size_t kMostPieces = size_t{1} << 16;

template <typename Word>
__device__ void copy_words(const Piece& piece, int lane) {
  auto* to = reinterpret_cast<Word*>(piece.to);
  const auto* from = reinterpret_cast<const Word*>(piece.from);
  const int64_t n = piece.bytes / static_cast<int64_t>(sizeof(Word));
  for (int64_t i = lane; i < n; i += 32) to[i] = from[i];
}

/// One warp for each piece.
__global__ void copy_pieces_kernel(const Piece* pieces, int64_t n_pieces) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (index >= n_pieces) return;
  const Piece piece = pieces[index];
  const auto bits = reinterpret_cast<uintptr_t>(piece.to) | reinterpret_cast<uintptr_t>(piece.from) |
                    static_cast<uintptr_t>(piece.bytes);
  if (bits % 16 == 0) {
    copy_words<uint4>(piece, lane);
  } else if (bits % 4 == 0) {
    copy_words<uint32_t>(piece, lane);
  } else {
    copy_words<uint8_t>(piece, lane);
  }
}

}  // namespace

void copy_pieces(const Piece* pieces, int64_t n_pieces, cudaStream_t stream) {
  const auto n_blocks = static_cast<unsigned>((n_pieces + kWarps - 1) / kWarps);
  copy_pieces_kernel<<<n_blocks, 32 * kWarps, 0, stream>>>(pieces, n_pieces);
  check(cudaGetLastError(), "launching copies");
}

bool Copies::overlaps_written(const std::byte* at, size_t bytes) const {
  const auto begin = reinterpret_cast<uintptr_t>(at);
  const auto next = written_.lower_bound(begin + bytes);
  return next != written_.begin() && std::prev(next)->second > begin;
}

void Copies::mark_written(const std::byte* at, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(at);
  const auto next = written_.upper_bound(begin);
  if (next != written_.begin() && std::prev(next)->second == begin) {
    std::prev(next)->second += bytes;
  } else {
    written_[begin] = begin + bytes;
  }
}

void Copies::add(std::byte* to, const std::byte* from, size_t bytes) {
  if (bytes == 0) return;
  if (bytes >= kLarge) {
    flush();
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, context_.stream), "copying on the GPU");
    return;
  }
  // What is read must be there already, and two writes to one place keep their order. (What waiting copies read is
  // safe: blocks that come home are held back until the flush.)
  if (pieces_.size() >= kMostPieces || overlaps_written(from, bytes) || overlaps_written(to, bytes)) flush();
  if (pieces_.empty()) context_.memory.hold_back_blocks();
  pieces_.push_back({to, from, static_cast<int64_t>(bytes)});
  mark_written(to, bytes);
}

void Copies::flush() {
  if (pieces_.empty()) return;
  const size_t bytes = pieces_.size() * sizeof(Piece);
  const auto table = context_.memory.lend(bytes);
  context_.transfers.upload(table.get(), pieces_.data(), bytes);
  copy_pieces(reinterpret_cast<const Piece*>(table.get()), static_cast<int64_t>(pieces_.size()), context_.stream);
  pieces_.clear();
  written_.clear();
  context_.memory.let_go_of_blocks();
}

void Patches::apply(When when) {
  constexpr size_t kUnit = 16;
  const auto rounded_up = [](size_t bytes) { return (bytes + kUnit - 1) / kUnit * kUnit; };
  if (pieces_.size() == 1) {
    context_.transfers.upload(pieces_[0].to, pieces_[0].from, static_cast<size_t>(pieces_[0].bytes), when);
  } else if (!pieces_.empty()) {
    const size_t header = pieces_.size() * sizeof(Piece);
    size_t total = rounded_up(header);
    size_t at = total;
    for (const Piece& piece : pieces_) total += rounded_up(static_cast<size_t>(piece.bytes));
    if (total > room_.bytes) {
      room_ = {context_.memory.lend(2 * total), 2 * total};
      when = When::in_turn;  // launches that wait may still use this memory
    }
    std::vector<std::byte> all(total);
    for (Piece& piece : pieces_) {
      std::memcpy(all.data() + at, piece.from, static_cast<size_t>(piece.bytes));
      piece.from = room_.memory.get() + at;
      at += rounded_up(static_cast<size_t>(piece.bytes));
    }
    std::memcpy(all.data(), pieces_.data(), header);
    context_.transfers.upload(room_.memory.get(), all.data(), total, when);
    copy_pieces(reinterpret_cast<const Piece*>(room_.memory.get()), static_cast<int64_t>(pieces_.size()),
                context_.stream.at(when));
  }
  pieces_.clear();
}

}  // namespace winnow::cuda
