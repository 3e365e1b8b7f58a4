#include <algorithm>
#include <charconv>
#include <map>

#include "sigma/base/config.h"
#include "sigma/base/error.h"

namespace sigma {

int64_t parse_count(const std::string& text) {
  static const std::map<std::string, int64_t> kUnits = {{"", 1},
                                                        {"k", 1000},
                                                        {"M", 1000'000},
                                                        {"G", 1000'000'000},
                                                        {"Ki", int64_t{1} << 10},
                                                        {"Mi", int64_t{1} << 20},
                                                        {"Gi", int64_t{1} << 30}};
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const auto unit = kUnits.find(std::string(end, text.data() + text.size()));
  SIGMA_CHECK(kUsage, error == std::errc() && unit != kUnits.end(),
              "count: expected a whole number with k, M, G, Ki, Mi or Gi, got \"{}\"", text);
  int64_t product = 0;
  SIGMA_CHECK(kUsage, !__builtin_mul_overflow(number, unit->second, &product),
              "count: {} is too large", text);
  return product;
}

std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates) {
  // Optimal string alignment: insert, delete, replace, swap neighbours.
  const auto distance = [](const std::string& a, const std::string& b) {
    std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
    for (size_t i = 0; i <= a.size(); ++i) {
      for (size_t j = 0; j <= b.size(); ++j) {
        if (i == 0 || j == 0) {
          d[i][j] = i + j;
          continue;
        }
        d[i][j] =
            std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
        if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
          d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    }
    return d[a.size()][b.size()];
  };
  std::string best;
  size_t best_distance = 3;
  for (const std::string& candidate : candidates) {
    const size_t d = distance(word, candidate);
    if (d < best_distance) {
      best = candidate;
      best_distance = d;
    }
  }
  return best;
}

}  // namespace sigma
