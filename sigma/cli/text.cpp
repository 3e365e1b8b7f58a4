#include <algorithm>
#include <cctype>
#include <cmath>

#include "sigma/base/error.h"
#include "sigma/cli/cli.h"

namespace sigma {

std::string text_table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> width;
  for (const auto& row : rows) {
    width.resize(std::max(width.size(), row.size()), 0);
    for (size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  }
  const auto is_number = [](const std::string& text) {
    return !text.empty() && (std::isdigit(static_cast<unsigned char>(text[0])) || text[0] == '-');
  };
  // A column is numeric if its first row below the head is.
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const bool right = rows.size() > 1 && i < rows[1].size() && is_number(rows[1][i]);
      line +=
          right ? fmt::format("{:>{}}", row[i], width[i]) : fmt::format("{:<{}}", row[i], width[i]);
      if (i + 1 < row.size()) line += "  ";
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  return out;
}

std::string number_text(const Json& value, int digits) {
  const double number = value.is_number() ? value.get<double>() : std::nan("");
  return std::isfinite(number) ? fmt::format("{:.{}g}", number, digits) : "-";
}

namespace {

std::string scaled(double value, double unit, const std::vector<const char*>& names) {
  size_t i = 0;
  while (value >= unit && i + 1 < names.size()) {
    value /= unit;
    ++i;
  }
  const std::string number = i == 0 ? fmt::format("{:.0f}", value) : fmt::format("{:.3g}", value);
  return names[i][0] == '\0' ? number : number + " " + names[i];
}

}  // namespace

std::string count_text(double value) {
  return scaled(value, 1000, {"", "k", "M", "G", "T", "P", "E"});
}
std::string bytes_text(double value) {
  return scaled(value, 1024, {"B", "KiB", "MiB", "GiB", "TiB"});
}

}  // namespace sigma
