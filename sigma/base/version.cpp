#include "sigma/base/version.h"

#include "sigma_version.inc"

namespace sigma {
const char* version() { return SIGMA_VERSION; }
const char* commit() { return SIGMA_COMMIT; }
}  // namespace sigma
