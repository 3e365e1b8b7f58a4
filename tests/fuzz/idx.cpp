// IDX files, plain and gzip-compressed: what is accepted has the bytes that its sizes promise.
#include "sigma/data/idx_format.h"
#include "tests/fuzz/fuzz.h"

using namespace sigma;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::may_refuse(ErrorKind::kData, [&] {
    const IdxArray array = read_idx(std::string(fuzz::text(data, size)), "fuzz.idx");
    uint64_t bytes = array.type == IdxType::kInt32 ? 4 : 1;
    for (const int64_t n : array.sizes) bytes *= static_cast<uint64_t>(n);
    fuzz::demand(array.data_offset + bytes == array.file.size(), "the bytes that sizes promise");
    if (array.sizes.size() == 1) {
      const auto labels = idx_labels(array, "fuzz.idx", 10);
      for (const int64_t label : labels) fuzz::demand(label >= 0 && label < 10, "labels below 10");
    } else {
      check_idx_images(array, "fuzz.idx");
    }
  });
  return 0;
}
