// The text side of base/config.h: TOML in and out, extends, --set, the environment.
#include <toml++/toml.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <fstream>
#include <sstream>

#include "sigma/base/config.h"
#include "sigma/base/error.h"

namespace sigma {
namespace {

constexpr int kMaxExtends = 8;

Json to_json(const toml::node& node, const std::string& source) {
  if (const auto* table = node.as_table()) {
    // toml++ sorts keys; the order of a recipe does not matter.
    Json out = Json::object();
    for (const auto& [key, value] : *table) out[std::string(key.str())] = to_json(value, source);
    return out;
  }
  if (const auto* array = node.as_array()) {
    Json out = Json::array();
    for (const auto& value : *array) out.push_back(to_json(value, source));
    return out;
  }
  if (const auto* value = node.as_string()) return value->get();
  if (const auto* value = node.as_integer()) return value->get();
  if (const auto* value = node.as_floating_point()) return value->get();
  if (const auto* value = node.as_boolean()) return value->get();
  const auto& where = node.source().begin;
  fail(ErrorKind::kUsage, "{}:{}:{}: dates and times are not used here", source, where.line,
       where.column);
}

std::string number_text(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

std::string quote(const std::string& text) { return nlohmann::json(text).dump(); }

std::string key_text(const std::string& key) {
  const bool bare = !key.empty() && std::all_of(key.begin(), key.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '_' || c == '-';
  });
  return bare ? key : quote(key);
}

std::string value_text(const Json& value) {
  if (value.is_number_float()) return number_text(value.get<double>());
  if (value.is_array()) {
    std::vector<std::string> items;
    for (const Json& item : value) items.push_back(value_text(item));
    return fmt::format("[{}]", fmt::join(items, ", "));
  }
  return value.is_string() ? quote(value.get<std::string>()) : value.dump();
}

void write_table(const Json& table, const std::string& path, std::string& out) {
  if (!path.empty()) out += fmt::format("\n[{}]\n", path);
  for (const auto& [key, value] : table.items()) {
    if (!value.is_object()) out += fmt::format("{} = {}\n", key_text(key), value_text(value));
  }
  for (const auto& [key, value] : table.items()) {
    if (value.is_object())
      write_table(value, path.empty() ? key_text(key) : path + "." + key_text(key), out);
  }
}

Json load_recipe_at(const std::filesystem::path& file, int depth) {
  SIGMA_CHECK(kUsage, depth < kMaxExtends, "extends: more than {} recipes in a row ({})",
              kMaxExtends, file.string());
  std::ifstream stream(file, std::ios::binary);
  SIGMA_CHECK(kUsage, stream.good() && !std::filesystem::is_directory(file),
              "recipe: cannot read {}", file.string());
  std::stringstream text;
  text << stream.rdbuf();
  Json tree = parse_toml(text.str(), file.string());
  const auto parents = tree.find("extends");
  if (parents == tree.end()) return tree;
  const Json names = parents->is_array() ? *parents : Json::array({*parents});
  tree.erase("extends");
  Json merged = Json::object();
  for (const Json& name : names) {
    SIGMA_CHECK(kUsage, name.is_string(),
                "extends: expected a file name in quotes, or a list of them ({})", file.string());
    merge_config(merged, load_recipe_at(file.parent_path() / name.get<std::string>(), depth + 1));
  }
  merge_config(merged, tree);
  return merged;
}

}  // namespace

Json parse_toml(std::string_view text, const std::string& source) {
  try {
    return to_json(toml::parse(text, source), source);
  } catch (const toml::parse_error& error) {
    const auto& where = error.source().begin;
    fail(ErrorKind::kUsage, "{}:{}:{}: {}", source, where.line, where.column,
         std::string(error.description()));
  }
}

std::string to_toml(const Json& tree) {
  std::string out;
  write_table(tree, "", out);
  return out;
}

Json load_recipe(const std::filesystem::path& file) { return load_recipe_at(file, 0); }

void merge_config(Json& base, const Json& over) {
  for (const auto& [key, value] : over.items()) {
    const auto found = base.find(key);
    if (found == base.end() || !found->is_object() || !value.is_object()) {
      base[key] = value;
      continue;
    }
    const auto new_kind = value.find("kind");
    const auto old_kind = found->find("kind");
    const bool changes =
        new_kind != value.end() && old_kind != found->end() && *new_kind != *old_kind;
    if (changes) *found = value;
    else merge_config(*found, value);
  }
}

void set_key(Json& tree, const std::string& assignment) {
  const size_t equals = assignment.find('=');
  SIGMA_CHECK(kUsage, equals != std::string::npos && equals > 0, "--set {}: expected KEY=VALUE",
              assignment);
  const std::string key = assignment.substr(0, equals);
  const std::string text = assignment.substr(equals + 1);
  Json value = text;
  try {
    value = parse_toml("v = " + text, "--set").at("v");
  } catch (const Error&) {
    // Not a TOML value: the text itself, so that --set generator.tokenizer=my-run needs no quotes.
  }
  Json over = Json::object();
  Json* at = &over;
  size_t begin = 0;
  for (size_t dot = key.find('.'); dot != std::string::npos; dot = key.find('.', begin)) {
    at = &(*at)[key.substr(begin, dot - begin)];
    begin = dot + 1;
  }
  (*at)[key.substr(begin)] = std::move(value);
  merge_config(tree, over);
}

void merge_environment(Json& tree, const VisitFn& visit, char** environment) {
  constexpr std::string_view kPrefix = "SIGMA_";
  const std::vector<KeyInfo> keys = list_keys(visit);
  for (char** entry = environment; *entry; ++entry) {
    const std::string_view text(*entry);
    const size_t equals = text.find('=');
    if (!text.starts_with(kPrefix) || equals == std::string_view::npos) continue;
    std::string name(text.substr(kPrefix.size(), equals - kPrefix.size()));
    if (name.find("__") == std::string::npos) continue;  // SIGMA_ASSETS and the like
    for (char& c : name) c = static_cast<char>(std::tolower(c));
    for (size_t at = name.find("__"); at != std::string::npos; at = name.find("__", at))
      name.replace(at, 2, ".");
    const auto found =
        std::find_if(keys.begin(), keys.end(), [&](const KeyInfo& k) { return k.key == name; });
    SIGMA_CHECK(kUsage, found != keys.end(), "environment: {} names no key ({})",
                text.substr(0, equals), name);
    SIGMA_CHECK(kUsage, found->role == Role::kRuntime,
                "environment: {} would change what the recipe means; only keys such as devices, "
                "threads, paths and "
                "intervals may come from the environment",
                text.substr(0, equals));
    set_key(tree, name + "=" + std::string(text.substr(equals + 1)));
  }
}

}  // namespace sigma
