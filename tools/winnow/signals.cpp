// Only what POSIX allows in a handler happens there: atomics, unlink, _exit.
#include "signals.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>

namespace winnow {
namespace {

std::atomic<int> pending{0};
std::atomic<Engine*> running{nullptr};
std::array<char, 4096> doomed_path{};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<Engine*>::is_always_lock_free);

void on_signal(int signal) {
  if (pending.exchange(signal) != 0) {
    if (doomed_path[0] != '\0') unlink(doomed_path.data());
    _exit(128 + signal);
  }
  if (Engine* engine = running.load()) engine->cancel();
}

}  // namespace

void watch_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);  // without SA_RESTART, so that a waiting read returns
  sigaction(SIGTERM, &action, nullptr);
}

int pending_signal() {
  return pending.load();
}

void forget_signal() {
  pending.store(0);
}

void check_signal() {
  if (pending_signal() != 0) throw Cancelled("stopped");
}

void watch_engine(Engine* engine) {
  running.store(engine);
  if (engine != nullptr && pending_signal() != 0) engine->cancel();
}

void delete_on_second_signal(const std::string& path) {
  const size_t n = path.copy(doomed_path.data(), doomed_path.size() - 1);
  doomed_path[n] = '\0';
}

}  // namespace winnow
