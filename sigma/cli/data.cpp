#include "sigma/base/error.h"
#include "sigma/cli/cli.h"
#include "sigma/data/check.h"
#include "sigma/data/dataset.h"
#include "sigma/io/files.h"
#include "sigma/io/images.h"
#include "sigma/train/config.h"

namespace sigma {
namespace {

constexpr int64_t kSheetColumns = 10;

DataConfig data_of(const std::string& what, const std::vector<std::string>& set) {
  // A recipe or run names its data; any other folder is a folder of images.
  const std::filesystem::path path = what;
  const bool folder =
      std::filesystem::is_directory(path) && !std::filesystem::exists(path / "config.toml");
  Json tree = folder ? Json{{"data", {{"kind", "folder"}, {"root", what}}}} : load_tree(what);
  for (const std::string& assignment : set) set_key(tree, assignment);
  RunConfig config;
  read_config(visit_of(config), tree, what);
  return config.data;
}

}  // namespace

CommandResult run_data_check(const std::string& what, const std::string& sheet,
                             const std::vector<std::string>& set, const GlobalOptions& global) {
  if (!sheet.empty()) check_output(sheet, global);
  const DataConfig config = data_of(what, set);
  const DataReport report = check_data(config);
  CommandResult out;
  out.result = report.to_json();
  out.text = report.to_text();
  out.exit_code = report.bad.empty() ? 0 : static_cast<int>(ErrorKind::kData);
  if (!sheet.empty() && global.dry_run) {
    out.result["would_write"] = sheet;
    out.text += fmt::format("would write {}\n", sheet);
  } else if (!sheet.empty() && report.count > 0) {
    DataConfig readable = config;
    readable.on_bad_image = "skip";
    write_file_atomic(sheet, encode_png(contact_sheet(*open_dataset(readable), kSheetColumns)));
    out.result["sheet"] = sheet;
    out.text += fmt::format("contact sheet: {}\n", sheet);
  }
  return out;
}

CommandResult run_data_list() {
  CommandResult out;
  out.result = Json::array();
  std::vector<std::vector<std::string>> rows = {{"kind", "usable", "reads", "needs"}};
  for (const DataReader& reader : list_readers()) {
    out.result.push_back({{"kind", reader.kind},
                          {"usable", reader.usable},
                          {"reads", reader.reads},
                          {"needs", reader.needs}});
    rows.push_back({reader.kind, reader.usable ? "yes" : "no", reader.reads, reader.needs});
  }
  out.text = text_table(rows);
  return out;
}

}  // namespace sigma
