// The JSON that says how an image was made: what is accepted is written and read again.
#include "sigma/io/image_record.h"
#include "tests/fuzz/fuzz.h"

using namespace sigma;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::may_refuse(ErrorKind::kData, [&] {
    Json list = Json::array();
    for (const ImageRecord& record :
         parse_image_records(std::string(fuzz::text(data, size)), "fuzz.png"))
      list.push_back(to_json(record));
    Json again = Json::array();
    for (const ImageRecord& record : parse_image_records(list.dump(), "again.png"))
      again.push_back(to_json(record));
    fuzz::demand(again == list, "the same records after writing them");
  });
  return 0;
}
