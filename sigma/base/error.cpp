#include "sigma/base/error.h"

namespace sigma {

const char* kind_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kFailure: return "failure";
    case ErrorKind::kUsage: return "usage";
    case ErrorKind::kData: return "data";
    case ErrorKind::kCheckpoint: return "checkpoint";
    case ErrorKind::kDevice: return "device";
    case ErrorKind::kNonFinite: return "nonfinite";
    case ErrorKind::kIo: return "io";
  }
  return "failure";
}

}  // namespace sigma
