// What the signal handlers of trainer.h saw: flags that the training loop reads between steps.
#pragma once

namespace sigma {

/// The first SIGINT, SIGTERM or SIGHUP since the start, or 0.
int pending_stop_signal();
/// Whether SIGUSR1 came since the last call.
bool take_save_request();

}  // namespace sigma
