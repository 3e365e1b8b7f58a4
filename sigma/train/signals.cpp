#include "sigma/train/signals.h"

#include <signal.h>
#include <unistd.h>

#include "sigma/train/trainer.h"

namespace sigma {
namespace {

// The one exception to "no global state": a signal handler can reach nothing else.
volatile sig_atomic_t stop_signal = 0;
volatile sig_atomic_t save_requested = 0;

void on_stop(int signal) {
  if (stop_signal != 0) _exit(128 + signal);
  stop_signal = signal;
}

void on_save(int) { save_requested = 1; }

void install(int signal, void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(signal, &action, nullptr);
}

}  // namespace

void install_signal_handlers() {
  install(SIGINT, on_stop);
  install(SIGTERM, on_stop);
  install(SIGHUP, on_stop);
  install(SIGUSR1, on_save);
  install(SIGPIPE, SIG_IGN);
  install(SIGXFSZ, SIG_IGN);
}

int pending_stop_signal() { return stop_signal; }

bool take_save_request() {
  const bool requested = save_requested != 0;
  save_requested = 0;
  return requested;
}

}  // namespace sigma
