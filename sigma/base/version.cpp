#include "sigma/base/version.h"

#include "sigma_version.inc"

namespace sigma {
const char* version() { return SIGMA_VERSION; }
const char* commit_hash() { return SIGMA_COMMIT; }
}  // namespace sigma
