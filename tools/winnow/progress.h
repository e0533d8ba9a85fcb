// A line on standard error that tells how far a long step is: only on a terminal, only for steps of over two seconds.
#pragma once

#include <chrono>
#include <string>

namespace winnow {

class Progress {
 public:
  /// `what`: "reading the prompt"; `total` in `unit` ("tok", "MB").
  Progress(std::string what, double total, std::string unit);
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// `done` in units, at most the total.
  void update(double done);
  /// Takes the line away, so that something else can be written.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  std::string what_, unit_;
  double total_;
  bool terminal_;
  bool shown_ = false;
  Clock::time_point start_, drawn_;
};

}  // namespace winnow
