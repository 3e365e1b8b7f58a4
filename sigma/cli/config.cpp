#include "sigma/base/config.h"

#include <algorithm>
#include <map>

#include "sigma/base/error.h"
#include "sigma/cli/cli.h"
#include "sigma/io/files.h"
#include "sigma/train/config.h"
#include "sigma/train/run.h"

namespace sigma {
namespace {

// The configuration behind a recipe or a run, defaults filled in.
Json resolved_tree(const std::string& what, const std::vector<std::string>& set) {
  Json tree = load_tree(what);
  for (const std::string& assignment : set) set_key(tree, assignment);
  RunConfig config;
  read_config(visit_of(config), tree, what);
  return write_config(visit_of(config));
}

}  // namespace

Json load_tree(const std::string& what) {
  const std::filesystem::path path = what;
  if (std::filesystem::is_regular_file(path)) return load_recipe(path);
  if (std::filesystem::exists(path / "config.toml") ||
      std::filesystem::exists("runs" / path / "config.toml")) {
    const std::filesystem::path file = find_run(what) / "config.toml";
    return parse_toml(read_file(file), file.string());
  }
  fail(ErrorKind::kUsage, "{}: expected a recipe (a TOML file) or a run directory", what);
}

CommandResult run_config_show(const std::string& what, const std::vector<std::string>& set) {
  const Json tree = resolved_tree(what, set);
  return {.result = tree, .text = to_toml(tree)};
}

CommandResult run_config_check(const std::string& recipe, const std::vector<std::string>& set) {
  const Json tree = resolved_tree(recipe, set);
  const auto keys = static_cast<int64_t>(flatten(tree).size());
  return {.result = {{"keys", keys}},
          .text = fmt::format("{}: all {} keys are good\n", recipe, keys)};
}

CommandResult run_config_keys(const std::string& filter) {
  RunConfig config;
  CommandResult out;
  out.result = Json::array();
  std::vector<std::vector<std::string>> rows = {{"key", "type", "default", "bounds", "meaning"}};
  for (const KeyInfo& key : list_keys(visit_of(config))) {
    if (!filter.empty() && key.key.find(filter) == std::string::npos) continue;
    out.result.push_back({{"key", key.key},
                          {"type", key.type},
                          {"default", key.default_value},
                          {"bounds", key.bounds},
                          {"condition", key.condition},
                          {"help", key.help},
                          {"identity", key.role == Role::kIdentity}});
    const std::string condition = key.condition.empty() ? "" : fmt::format(" ({})", key.condition);
    rows.push_back({key.key, key.type, key.default_value, key.bounds, key.help + condition});
  }
  out.text = text_table(rows);
  return out;
}

CommandResult run_config_diff(const std::string& a, const std::string& b) {
  std::map<std::string, std::pair<std::string, std::string>> values;
  for (const auto& [key, value] : flatten(resolved_tree(a, {}))) values[key].first = value;
  for (const auto& [key, value] : flatten(resolved_tree(b, {}))) values[key].second = value;
  CommandResult out;
  out.result = Json::array();
  std::vector<std::vector<std::string>> rows = {{"key", a, b}};
  for (const auto& [key, pair] : values) {
    if (pair.first == pair.second) continue;
    out.result.push_back({{"key", key}, {"a", pair.first}, {"b", pair.second}});
    rows.push_back(
        {key, pair.first.empty() ? "-" : pair.first, pair.second.empty() ? "-" : pair.second});
  }
  out.text = rows.size() > 1 ? text_table(rows) : "the same settings\n";
  return out;
}

CommandResult run_config_list() {
  CommandResult out;
  out.result = Json::array();
  std::vector<std::string> files;
  if (std::filesystem::is_directory("recipes")) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator("recipes")) {
      if (entry.path().extension() == ".toml") files.push_back(entry.path().string());
    }
  }
  std::sort(files.begin(), files.end());
  for (const std::string& file : files) {
    // The first comment of a recipe says what it is.
    const std::string text = read_file(file);
    const std::string about = text.starts_with("# ") ? text.substr(2, text.find('\n') - 2) : "";
    out.result.push_back({{"recipe", file}, {"about", about}});
    out.text += fmt::format("{}\n    {}\n", file, about);
  }
  if (files.empty()) out.text = "no recipes/ folder here\n";
  return out;
}

}  // namespace sigma
