// TensorBoard event files: whole files, and one event without its checksums.
#include "tests/fuzz/fuzz.h"
#include "tests/testing/event_reader.h"

using namespace sigma;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes = fuzz::text(data, size);
  const testing::EventsRead read = testing::parse_event_file(bytes);
  fuzz::demand(read.events.size() + static_cast<size_t>(read.skipped) <= size / 16,
               "16 bytes around every record");
  testing::Event event;
  testing::parse_event(bytes, event);
  return 0;
}
