// The listing side of base/config.h: every key of every option, and flat views of a tree.
#include "sigma/base/config.h"
#include "sigma/base/error.h"

namespace sigma {
namespace {

class Lister : public ConfigVisitor {
 public:
  std::vector<KeyInfo> keys;
  bool when(const std::string&, const char* option) override {
    condition_ = option;
    return true;
  }

 protected:
  void on_field(const FieldSpec& spec, FieldRef value) override {
    KeyInfo info;
    info.key = path() + spec.name;
    info.help = spec.help;
    info.role = spec.role;
    info.bounds = spec.choices.empty() ? spec.bounds.text()
                                       : fmt::format("{}", fmt::join(spec.choices, " | "));
    if (spec.name == "kind") condition_.clear();
    if (!condition_.empty()) info.condition = fmt::format("kind = {}", condition_);
    static constexpr const char* kTypes[] = {"true or false", "integer", "number", "text",
                                             "text or list",  "list",    "list"};
    info.type = kTypes[value.index()];
    std::visit([&](auto* v) { info.default_value = text(*v); }, value);
    keys.push_back(std::move(info));
  }
  bool on_enter(const std::string&, const std::string&) override {
    conditions_.push_back(condition_);
    condition_.clear();
    return true;
  }
  void on_leave() override {
    condition_ = conditions_.back();
    conditions_.pop_back();
  }

 private:
  template <typename T>
  static std::string text(const T& value) {
    return Json(value).dump();
  }
  static std::string text(const TextOrList& value) {
    return std::visit([](const auto& v) { return Json(v).dump(); }, value);
  }
  std::string condition_;
  std::vector<std::string> conditions_;
};

void flatten_into(const Json& tree, const std::string& prefix,
                  std::vector<std::pair<std::string, std::string>>& out) {
  for (const auto& [key, value] : tree.items()) {
    if (value.is_object()) flatten_into(value, prefix + key + ".", out);
    else out.emplace_back(prefix + key, value.dump());
  }
}

}  // namespace

std::vector<KeyInfo> list_keys(const VisitFn& visit) {
  Lister lister;
  visit(lister);
  return lister.keys;
}

std::vector<std::pair<std::string, std::string>> flatten(const Json& tree) {
  std::vector<std::pair<std::string, std::string>> out;
  flatten_into(tree, "", out);
  return out;
}

}  // namespace sigma
