// Configuration: one declaration a struct, from which reading, writing, --set, help and the
// identity of a run follow.
//
//   struct EmaConfig {
//     double decay = 0.995;
//     bool warmup = true;
//     void visit(ConfigVisitor& v) {
//       v.field("decay", decay, in(0, 1), "weight of the past");
//       v.field("warmup", warmup, "min(decay, (1+i)/(10+i)) at update i");
//     }
//   };
//
// In between, a configuration is a JSON tree: recipes are TOML files parsed into one; --set and the
// environment are merged into it; read_config() then fills the struct and rejects unknown keys
// ("did you mean") and values out of bounds. Torch-free.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace sigma {

using Json = nlohmann::ordered_json;

/// A closed interval unless an end is open.
struct Bounds {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_open = false;
  bool high_open = false;
  bool contains(double value) const;
  std::string text() const;  // "[0, 1)"
};
Bounds in(double low, double high);     // [low, high]
Bounds above(double low, double high);  // (low, high]
Bounds below(double low, double high);  // [low, high)
Bounds at_least(double low);            // [low, inf)

/// kIdentity keys make a run what it is; kRuntime keys (device, threads, paths, intervals) may
/// change at a resume and may come from the environment.
enum class Role { kIdentity, kRuntime };

/// Either a word ("all", "odd", "every 4th") or a list of numbers.
using TextOrList = std::variant<std::string, std::vector<int64_t>>;

using FieldRef = std::variant<bool*, int64_t*, double*, std::string*, TextOrList*,
                              std::vector<int64_t>*, std::vector<double>*>;

struct FieldSpec {
  std::string name;
  std::string help;
  Bounds bounds;
  std::vector<std::string> choices;  // of a string; empty: any text
  Role role = Role::kIdentity;
};

/// Walks the fields of a configuration in order. Subclasses read, write or list them.
class ConfigVisitor {
 public:
  virtual ~ConfigVisitor() = default;

  void field(const char* name, bool& value, const char* help, Role role = Role::kIdentity);
  void field(const char* name, int64_t& value, Bounds bounds, const char* help,
             Role role = Role::kIdentity);
  void field(const char* name, double& value, Bounds bounds, const char* help,
             Role role = Role::kIdentity);
  void field(const char* name, std::string& value, const char* help, Role role = Role::kIdentity);
  void field(const char* name, TextOrList& value, const char* help, Role role = Role::kIdentity);
  void field(const char* name, std::vector<int64_t>& value, Bounds bounds, const char* help,
             Role role = Role::kIdentity);
  void field(const char* name, std::vector<double>& value, Bounds bounds, const char* help,
             Role role = Role::kIdentity);
  /// One of `choices`.
  void choice(const char* name, std::string& value, std::vector<std::string> choices,
              const char* help, Role role = Role::kIdentity);
  /// A table with fields of its own; all of them kRuntime if `role` says so.
  template <typename T>
  void table(const char* name, T& value, const char* help, Role role = Role::kIdentity) {
    if (!enter(name, help, role)) return;
    value.visit(*this);
    leave();
  }
  /// Whether the fields that follow exist: true where `value` is `option` (a lister sees the fields
  /// of every option).
  virtual bool when(const std::string& value, const char* option) { return value == option; }

 protected:
  virtual void on_field(const FieldSpec& spec, FieldRef value) = 0;
  virtual bool on_enter(const std::string& name, const std::string& help) = 0;
  virtual void on_leave() = 0;
  std::string path() const;  // "train.optimizer." inside that table

 private:
  bool enter(const char* name, const char* help, Role role);
  void leave();
  void emit(FieldSpec spec, FieldRef value);
  std::vector<std::string> path_;
  int runtime_depth_ = 0;
  std::vector<bool> runtime_;
};

/// Anything with visit(), type-erased, so that readers and writers are not templates.
using VisitFn = std::function<void(ConfigVisitor&)>;
template <typename T>
VisitFn visit_of(T& config) {
  return [&config](ConfigVisitor& v) { config.visit(v); };
}

/// Fills the struct from `tree`. Errors (kUsage) name the key, the value, the bounds, and `source`.
void read_config(const VisitFn& visit, const Json& tree, const std::string& source);
/// All fields that exist, in order. `role_filter`: only those of that role.
Json write_config(const VisitFn& visit, const Role* role_filter = nullptr);
/// SHA-256 (hex) of the identity keys as compact JSON, sorted.
std::string config_hash(const VisitFn& visit);

struct KeyInfo {
  std::string key;   // "train.optimizer.lr"
  std::string type;  // "number", "integer", "text", ...
  std::string default_value;
  std::string bounds;     // bounds or choices
  std::string condition;  // "kind = imm", or empty
  std::string help;
  Role role = Role::kIdentity;
};
/// Every key of every option.
std::vector<KeyInfo> list_keys(const VisitFn& visit);

/// TOML text to a tree; an error names `source`, line and column.
Json parse_toml(std::string_view text, const std::string& source);
/// A tree as TOML text: fields first, then tables.
std::string to_toml(const Json& tree);
/// A recipe file; what it `extends = "other.toml"` (relative to it; or a list, later ones over
/// earlier ones) is merged underneath.
Json load_recipe(const std::filesystem::path& file);
/// Merges `over` into `base`. A table whose `kind` changes starts anew.
void merge_config(Json& base, const Json& over);
/// Applies "a.b=value" (value as TOML, else text) to `tree`.
void set_key(Json& tree, const std::string& assignment);
/// SIGMA_SECTION__KEY variables; only kRuntime keys of `visit` are allowed.
void merge_environment(Json& tree, const VisitFn& visit, char** environment);
/// "a.b.c" -> value, for all leaves; differences of two trees are differences of these maps.
std::vector<std::pair<std::string, std::string>> flatten(const Json& tree);

/// 32Ki -> 32768, 10k -> 10000; kUsage if it is no number.
int64_t parse_count(const std::string& text);
/// The nearest of `candidates` within Damerau-Levenshtein distance 2, or "".
std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace sigma
