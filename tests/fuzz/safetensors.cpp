// A whole safetensors file: what is accepted covers the file exactly, and is written and read again.
#include "sigma/io/safetensors_header.h"
#include "tests/fuzz/fuzz.h"

using namespace sigma;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view file = fuzz::text(data, size);
  SafetensorsHeader header;
  bool accepted = false;
  fuzz::may_refuse(ErrorKind::kData, [&] {
    const uint64_t length = safetensors_header_length(file.substr(0, 8), size);
    header = parse_safetensors_header(file.substr(8, length), size);
    accepted = true;
  });
  if (!accepted) return 0;
  uint64_t at = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    fuzz::demand(entry.begin == at && entry.end >= at, "tensors without holes");
    at = entry.end;
  }
  fuzz::demand(header.data_start + at == size, "tensors up to the end of the file");
  std::vector<SafetensorsEntry> entries = header.entries;
  const std::string built = build_safetensors_header(entries, header.metadata);
  const SafetensorsHeader again =
      parse_safetensors_header(std::string_view(built).substr(8), built.size() + at);
  fuzz::demand(again.metadata == header.metadata && again.entries.size() == entries.size(),
               "the same header after writing it");
  for (size_t i = 0; i < entries.size(); ++i)
    fuzz::demand(
        again.entries[i].name == entries[i].name && again.entries[i].shape == entries[i].shape,
        "the same tensors after writing them");
  return 0;
}
