// Ctrl-C and SIGTERM: the first one asks the running engine to stop, a second one ends the program.
#pragma once

#include <string>

#include "engine/engine.h"

namespace winnow {

/// From here on the two signals are caught. Reads that wait for input return early when one comes.
void watch_signals();
/// The signal that came since the start or the last `forget_signal`; 0: none.
int pending_signal();
void forget_signal();
/// Throws Cancelled where a signal came: for loops of our own.
void check_signal();

/// The engine that a signal cancels; null: none.
void watch_engine(Engine* engine);

/// A file to delete where a second signal ends the program; empty: none. Paths of 4095 bytes at most.
void delete_on_second_signal(const std::string& path);

}  // namespace winnow
