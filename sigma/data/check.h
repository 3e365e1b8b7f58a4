// What is in a data set, and what is wrong with it: `sigma data check`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sigma/data/dataset.h"

namespace sigma {

struct DataReport {
  struct Pair {
    std::string first;  // "train:17"
    std::string second;
  };
  std::string description;
  int64_t count = 0;
  std::vector<int64_t> sample_shape;
  std::vector<std::string> class_names;
  std::vector<int64_t> class_counts;
  double mean = 0;  // of pixel / 255 (latents: of the values)
  double std = 0;   // over all of them, not N - 1
  std::vector<BadSample> bad;
  int64_t duplicates_within = 0;      // samples of the split whose pixels an earlier one has
  int64_t duplicates_across = 0;      // samples of the split whose pixels the other split has
  std::vector<Pair> duplicate_pairs;  // the first few
  std::string data_hash;
  bool good() const { return bad.empty(); }
  Json to_json() const;
  std::string to_text() const;
};

/// Reads every sample of the split, and of the other one for duplicates. Data that cannot be read
/// is listed in `bad`, not thrown. Errors: kUsage.
DataReport check_data(const DataConfig& config);

/// One row a class with its first `columns` samples, or, without labels, the first columns^2
/// samples. Errors: kUsage (no images).
Image contact_sheet(const Dataset& dataset, int64_t columns);

}  // namespace sigma
