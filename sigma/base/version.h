// The version and commit of this build, written into runs, checkpoints and images.
#pragma once

namespace sigma {
const char* version();      // "0.1.0"
const char* commit_hash();  // short, or "unknown"
}  // namespace sigma
