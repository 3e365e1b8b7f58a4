#include "sigma/base/config.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "sigma/base/error.h"
#include "sigma/base/sha256.h"

namespace sigma {

bool Bounds::contains(double value) const {
  return (low_open ? value > low : value >= low) && (high_open ? value < high : value <= high);
}

std::string Bounds::text() const {
  if (std::isinf(low) && std::isinf(high)) return "any";
  return fmt::format("{}{}, {}{}", low_open || std::isinf(low) ? '(' : '[', low, high,
                     high_open || std::isinf(high) ? ')' : ']');
}

Bounds in(double low, double high) { return {.low = low, .high = high}; }
Bounds above(double low, double high) { return {.low = low, .high = high, .low_open = true}; }
Bounds below(double low, double high) { return {.low = low, .high = high, .high_open = true}; }
Bounds at_least(double low) { return {.low = low}; }

// ---- visitor ----

void ConfigVisitor::emit(FieldSpec spec, FieldRef value) {
  if (runtime_depth_ > 0) spec.role = Role::kRuntime;
  on_field(spec, value);
}

void ConfigVisitor::field(const char* name, bool& value, const char* help, Role role) {
  emit({.name = name, .help = help, .bounds = {}, .choices = {}, .role = role}, &value);
}
void ConfigVisitor::field(const char* name, int64_t& value, Bounds bounds, const char* help,
                          Role role) {
  emit({.name = name, .help = help, .bounds = bounds, .choices = {}, .role = role}, &value);
}
void ConfigVisitor::field(const char* name, double& value, Bounds bounds, const char* help,
                          Role role) {
  emit({.name = name, .help = help, .bounds = bounds, .choices = {}, .role = role}, &value);
}
void ConfigVisitor::field(const char* name, std::string& value, const char* help, Role role) {
  emit({.name = name, .help = help, .bounds = {}, .choices = {}, .role = role}, &value);
}
void ConfigVisitor::field(const char* name, TextOrList& value, const char* help, Role role) {
  emit({.name = name, .help = help, .bounds = {}, .choices = {}, .role = role}, &value);
}
void ConfigVisitor::field(const char* name, std::vector<int64_t>& value, Bounds bounds,
                          const char* help, Role role) {
  emit({.name = name, .help = help, .bounds = bounds, .choices = {}, .role = role}, &value);
}
void ConfigVisitor::field(const char* name, std::vector<double>& value, Bounds bounds,
                          const char* help, Role role) {
  emit({.name = name, .help = help, .bounds = bounds, .choices = {}, .role = role}, &value);
}
void ConfigVisitor::choice(const char* name, std::string& value, std::vector<std::string> choices,
                           const char* help, Role role) {
  emit({.name = name, .help = help, .bounds = {}, .choices = std::move(choices), .role = role},
       &value);
}

bool ConfigVisitor::enter(const char* name, const char* help, Role role) {
  if (!on_enter(name, help)) return false;
  path_.emplace_back(name);
  runtime_.push_back(role == Role::kRuntime);
  runtime_depth_ += role == Role::kRuntime;
  return true;
}

void ConfigVisitor::leave() {
  on_leave();
  path_.pop_back();
  runtime_depth_ -= runtime_.back();
  runtime_.pop_back();
}

std::string ConfigVisitor::path() const {
  std::string text;
  for (const std::string& part : path_) text += part + ".";
  return text;
}

// ---- reading ----

namespace {

class Reader : public ConfigVisitor {
 public:
  Reader(const Json& tree, std::string source) : source_(std::move(source)) {
    check_table(tree, "");
    frames_.push_back({&tree, {}});
  }

  void finish() { reject_unknown(); }

 protected:
  void on_field(const FieldSpec& spec, FieldRef value) override {
    frames_.back().seen.push_back(spec.name);
    const Json& table = *frames_.back().table;
    const auto found = table.find(spec.name);
    if (found == table.end()) return;
    std::visit([&](auto* target) { read(spec, *found, *target); }, value);
  }

  bool on_enter(const std::string& name, const std::string&) override {
    static const Json kEmpty = Json::object();
    frames_.back().seen.push_back(name);
    const Json& table = *frames_.back().table;
    const auto found = table.find(name);
    if (found != table.end()) check_table(*found, path() + name);
    frames_.push_back({found == table.end() ? &kEmpty : &*found, {}});
    return true;
  }

  void on_leave() override {
    reject_unknown();
    frames_.pop_back();
  }

 private:
  struct Frame {
    const Json* table;
    std::vector<std::string> seen;
  };

  void check_table(const Json& value, const std::string& key) const {
    SIGMA_CHECK(kUsage, value.is_object(), "{}: expected a table, got {} ({})", key, value.dump(),
                source_);
  }

  void reject_unknown() const {
    for (const auto& [key, value] : frames_.back().table->items()) {
      const auto& seen = frames_.back().seen;
      if (std::find(seen.begin(), seen.end(), key) != seen.end()) continue;
      const std::string near = did_you_mean(key, seen);
      throw Error(ErrorKind::kUsage, fmt::format("{}{}: unknown key ({})", path(), key, source_),
                  near.empty() ? fmt::format("the keys here are: {}", fmt::join(seen, ", "))
                               : fmt::format("did you mean {}{}?", path(), near));
    }
  }

  [[noreturn]] void wrong_type(const FieldSpec& spec, const Json& value,
                               const char* expected) const {
    fail(ErrorKind::kUsage, "{}{} = {}: expected {} ({})", path(), spec.name, value.dump(),
         expected, source_);
  }

  void check_bounds(const FieldSpec& spec, double value) const {
    SIGMA_CHECK(kUsage, spec.bounds.contains(value), "{}{} = {}: must be in {} ({})", path(),
                spec.name, value, spec.bounds.text(), source_);
  }

  void read(const FieldSpec& spec, const Json& value, bool& target) const {
    if (!value.is_boolean()) wrong_type(spec, value, "true or false");
    target = value.get<bool>();
  }

  void read(const FieldSpec& spec, const Json& value, int64_t& target) const {
    if (value.is_string()) target = parse_count(value.get<std::string>());
    else if (value.is_number_integer()) target = value.get<int64_t>();
    else wrong_type(spec, value, "a whole number");
    check_bounds(spec, static_cast<double>(target));
  }

  void read(const FieldSpec& spec, const Json& value, double& target) const {
    if (!value.is_number()) wrong_type(spec, value, "a number");
    target = value.get<double>();
    check_bounds(spec, target);
  }

  void read(const FieldSpec& spec, const Json& value, std::string& target) const {
    if (!value.is_string()) wrong_type(spec, value, "text in quotes");
    target = value.get<std::string>();
    if (spec.choices.empty() ||
        std::find(spec.choices.begin(), spec.choices.end(), target) != spec.choices.end())
      return;
    const std::string near = did_you_mean(target, spec.choices);
    throw Error(ErrorKind::kUsage,
                fmt::format("{}{} = \"{}\": must be one of {} ({})", path(), spec.name, target,
                            fmt::join(spec.choices, ", "), source_),
                near.empty() ? "" : fmt::format("did you mean \"{}\"?", near));
  }

  void read(const FieldSpec& spec, const Json& value, TextOrList& target) const {
    if (value.is_string()) {
      target = value.get<std::string>();
      return;
    }
    std::vector<int64_t> list;
    read(spec, value, list);
    target = list;
  }

  template <typename T>
  void read(const FieldSpec& spec, const Json& value, std::vector<T>& target) const {
    if (!value.is_array()) wrong_type(spec, value, "a list of numbers");
    target.clear();
    for (const Json& item : value) {
      T element{};
      read(spec, item, element);
      target.push_back(element);
    }
  }

  std::string source_;
  std::vector<Frame> frames_;
};

// ---- writing ----

class Writer : public ConfigVisitor {
 public:
  explicit Writer(const Role* filter) : filter_(filter) {
    frames_.emplace_back("", Json::object());
  }
  Json take() { return std::move(frames_.front().second); }

 protected:
  void on_field(const FieldSpec& spec, FieldRef value) override {
    if (filter_ && spec.role != *filter_) return;
    std::visit([&](auto* source) { write(spec.name, *source); }, value);
  }
  bool on_enter(const std::string& name, const std::string&) override {
    frames_.emplace_back(name, Json::object());
    return true;
  }
  void on_leave() override {
    auto [name, table] = std::move(frames_.back());
    frames_.pop_back();
    if (!table.empty()) frames_.back().second[name] = std::move(table);
  }

 private:
  template <typename T>
  void write(const std::string& name, const T& value) {
    frames_.back().second[name] = value;
  }
  void write(const std::string& name, const TextOrList& value) {
    std::visit([&](const auto& v) { frames_.back().second[name] = v; }, value);
  }
  const Role* filter_;
  std::vector<std::pair<std::string, Json>> frames_;
};

}  // namespace

void read_config(const VisitFn& visit, const Json& tree, const std::string& source) {
  Reader reader(tree, source);
  visit(reader);
  reader.finish();
}

Json write_config(const VisitFn& visit, const Role* role_filter) {
  Writer writer(role_filter);
  visit(writer);
  return writer.take();
}

std::string config_hash(const VisitFn& visit) {
  const Role identity = Role::kIdentity;
  const nlohmann::json sorted = nlohmann::json::parse(write_config(visit, &identity).dump());
  return sha256_hex(sorted.dump());
}

}  // namespace sigma
