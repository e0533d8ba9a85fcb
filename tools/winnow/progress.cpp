#include "progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace winnow {
namespace {

constexpr double kWorthShowing = 2.0;  // seconds that a step must last
constexpr double kFirstLook = 0.4;     // seconds until its length can be guessed
constexpr double kRedraw = 0.1;
constexpr int kBarWidth = 24;

std::string clock_text(double seconds) {
  const auto whole = int64_t{std::lround(seconds)};
  if (whole >= 3600) return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

}  // namespace

Progress::Progress(std::string what, double total, std::string unit)
    : what_(std::move(what)),
      unit_(std::move(unit)),
      total_(std::max(total, 1.0)),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(Clock::now()),
      drawn_(start_) {}

void Progress::update(double done) {
  if (!terminal_ || done <= 0) return;
  const auto now = Clock::now();
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const double left = elapsed * (total_ - done) / done;
  if (elapsed < kFirstLook || (!shown_ && elapsed + left < kWorthShowing)) return;
  if (shown_ && std::chrono::duration<double>(now - drawn_).count() < kRedraw) return;
  const double share = std::min(done / total_, 1.0);
  const int full = static_cast<int>(share * kBarWidth);
  fmt::print(stderr, "\r\033[K{} [{}{}] {:3.0f}%  {:.0f} {}/s  {} left", what_, std::string(full, '#'),
             std::string(kBarWidth - full, '.'), share * 100, done / elapsed, unit_, clock_text(left));
  std::fflush(stderr);
  shown_ = true;
  drawn_ = now;
}

void Progress::clear() {
  if (!shown_) return;
  fmt::print(stderr, "\r\033[K");
  std::fflush(stderr);
  shown_ = false;
}

}  // namespace winnow
