// The JSON of a safetensors header without its file: tensors, and the metadata of runs.
#include "sigma/io/safetensors_json.h"
#include "tests/fuzz/fuzz.h"

using namespace sigma;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (valid_utf8(fuzz::text(data, size)) != size) return 0;  // its caller refuses that
  fuzz::may_refuse(ErrorKind::kData, [&] {
    const SafetensorsHeader header = parse_safetensors_json(fuzz::text(data, size));
    for (const auto& [key, value] : header.metadata)
      fuzz::demand(valid_utf8(key) == key.size() && valid_utf8(value) == value.size(),
                   "metadata in UTF-8");
    for (const SafetensorsEntry& entry : header.entries)
      fuzz::demand(!entry.name.empty() && entry.name.size() <= kMaxName &&
                       entry.shape.size() <= kMaxRank && dtype_bits(entry.dtype) > 0,
                   "tensors within the limits");
  });
  return 0;
}
