#include "sigma/io/image_record.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "sigma/base/error.h"
#include "sigma/base/sha256.h"

namespace sigma {
namespace {

constexpr int64_t kFormat = 1;
constexpr int kMaxDepth = 4;  // list of images, image, batch_labels, run
constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
constexpr int64_t kMaxBatch = 1'000'000;
constexpr size_t kHashDigits = 64;

[[noreturn]] void refuse_record(const std::string& name, const std::string& what) {
  throw Error(ErrorKind::kData, fmt::format("{}: provenance: {}", name, what),
              "sigma regenerate repeats images that sigma sample wrote");
}

/// The members of one image, each taken once.
class Members {
 public:
  Members(const Json& object, const std::string& name) : object_(object), name_(name) {}

  template <typename... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    refuse_record(name_, fmt::format(format, std::forward<Args>(args)...));
  }
  bool has(const char* key) const { return object_.contains(key); }

  const Json& take(const char* key) {
    const auto found = object_.find(key);
    if (found == object_.end()) refuse("expected the key {}, got none", key);
    taken_.insert(key);
    return *found;
  }
  std::string text(const char* key) {
    const Json& value = take(key);
    if (!value.is_string()) refuse("{}: expected text, got {}", key, value.dump());
    return value.get<std::string>();
  }
  std::string choice(const char* key, const std::vector<std::string>& choices) {
    const std::string value = text(key);
    if (std::find(choices.begin(), choices.end(), value) == choices.end())
      refuse("{}: expected {}, got \"{}\"", key, fmt::join(choices, " or "), value);
    return value;
  }
  std::string hash(const char* key) {
    const std::string value = text(key);
    const auto hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
    if (value.size() != kHashDigits || !std::all_of(value.begin(), value.end(), hex))
      refuse("{}: expected a SHA-256 in hex, got \"{}\"", key, value);
    return value;
  }
  bool boolean(const char* key) {
    const Json& value = take(key);
    if (!value.is_boolean()) refuse("{}: expected true or false, got {}", key, value.dump());
    return value.get<bool>();
  }
  int64_t whole(const char* key, const Json& value, int64_t low) const {
    // A number past int64 is unsigned here, and would wrap.
    if (!value.is_number_integer() ||
        (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(kLargest)) ||
        value.get<int64_t>() < low)
      refuse("{}: expected a whole number of at least {}, got {}", key, low, value.dump());
    return value.get<int64_t>();
  }
  int64_t whole(const char* key, int64_t low) { return whole(key, take(key), low); }
  double number(const char* key, const Json& value) const {
    if (!value.is_number()) refuse("{}: expected a number, got {}", key, value.dump());
    return value.get<double>();
  }
  double number(const char* key) { return number(key, take(key)); }
  /// A list; `size` elements unless it is 0.
  const Json& list(const char* key, const Json& value, size_t size) const {
    if (!value.is_array() || (size > 0 && value.size() != size))
      refuse("{}: expected a list{}, got {}", key,
             size > 0 ? fmt::format(" of {}", size) : std::string(), value.dump());
    return value;
  }
  const Json& list(const char* key, size_t size) { return list(key, take(key), size); }

  void end() const {
    for (const auto& item : object_.items())
      if (!taken_.contains(item.key())) refuse("unknown key \"{}\"", item.key());
  }

 private:
  const Json& object_;
  const std::string& name_;
  std::set<std::string> taken_;
};

void read_batch(Members& in, ImageRecord& out) {
  const Json& batch = in.list("batch", 2);
  out.batch_first = in.whole("batch", batch[0], 0);
  out.batch_count = in.whole("batch", batch[1], 1);
  if (out.batch_count > kMaxBatch || out.index < out.batch_first ||
      out.index - out.batch_first >= out.batch_count)
    in.refuse("batch: expected one that holds image {}, of at most {}, got {}", out.index,
              kMaxBatch, batch.dump());
  if (!out.label) return;
  int64_t left = out.batch_count, label_here = -1, before = out.index - out.batch_first;
  for (const Json& run : in.list("batch_labels", 0)) {
    in.list("batch_labels", run, 2);
    const int64_t label = in.whole("batch_labels", run[0], 0);
    const int64_t count = in.whole("batch_labels", run[1], 1);
    if (before >= 0 && before < count) label_here = label;
    before -= std::min(count, before + 1);
    if (count > left) break;
    left -= count;
    out.batch_labels.emplace_back(label, count);
  }
  if (left != 0) in.refuse("batch_labels: expected those of {} images", out.batch_count);
  if (label_here != *out.label)
    in.refuse("batch_labels: expected label {} for image {}, got {}", *out.label, out.index,
              label_here);
}

ImageRecord read_record(const Json& object, const std::string& name) {
  Members in(object, name);
  if (!object.is_object()) in.refuse("expected an object, got {}", object.dump());
  const int64_t v = in.whole("v", 1);
  if (v != kFormat) in.refuse("v: expected {}, got {}, which is newer", kFormat, v);
  ImageRecord out;
  out.sigma = in.text("sigma");
  out.git = in.text("git");
  out.checkpoint = in.hash("checkpoint");
  out.path = in.text("path");
  out.run_id = in.text("run_id");
  if (in.has("tokenizer")) out.tokenizer = in.hash("tokenizer");
  out.method = in.text("method");
  out.ema = in.choice("ema", {"main", "none"});
  out.seed = in.whole("seed", 0);
  out.index = in.whole("index", 0);
  if (in.has("label")) out.label = in.whole("label", 0);
  out.sampler = in.text("sampler");
  out.schedule = in.text("schedule");
  out.steps = in.whole("steps", 1);
  out.rho = in.number("rho");
  for (const Json& eta : in.list("mid_eta", 0)) out.mid_eta.push_back(in.number("mid_eta", eta));
  out.guidance = in.number("guidance");
  const Json& range = in.list("guidance_range", 2);
  for (size_t i = 0; i < 2; ++i) out.guidance_range[i] = in.number("guidance_range", range[i]);
  out.dtype = in.choice("dtype", {"float32", "bfloat16"});
  out.device = in.choice("device", {"cpu", "cuda"});
  out.hardware = in.text("hardware");
  out.deterministic = in.boolean("deterministic");
  read_batch(in, out);
  if (in.has("at")) {
    const Json& at = in.list("at", 3);
    out.at = {in.whole("at", at[0], 0), in.whole("at", at[1], 0), in.whole("at", at[2], 1)};
  }
  out.pixels = in.hash("pixels");
  in.end();
  return out;
}

}  // namespace

std::string pixels_sha256(const Image& image) {
  return sha256_hex({reinterpret_cast<const char*>(image.pixels.data()), image.pixels.size()});
}

Json to_json(const ImageRecord& r) {
  Json out = {{"v", kFormat},   {"sigma", r.sigma},  {"git", r.git}, {"checkpoint", r.checkpoint},
              {"path", r.path}, {"run_id", r.run_id}};
  if (!r.tokenizer.empty()) out["tokenizer"] = r.tokenizer;
  out["method"] = r.method;
  out["ema"] = r.ema;
  out["seed"] = r.seed;
  out["index"] = r.index;
  if (r.label) out["label"] = *r.label;
  out["sampler"] = r.sampler;
  out["schedule"] = r.schedule;
  out["steps"] = r.steps;
  out["rho"] = r.rho;
  out["mid_eta"] = r.mid_eta;
  out["guidance"] = r.guidance;
  out["guidance_range"] = r.guidance_range;
  out["dtype"] = r.dtype;
  out["device"] = r.device;
  out["hardware"] = r.hardware;
  out["deterministic"] = r.deterministic;
  out["batch"] = {r.batch_first, r.batch_count};
  if (r.label) {
    out["batch_labels"] = Json::array();
    for (const auto& [label, count] : r.batch_labels)
      out["batch_labels"].push_back(Json::array({label, count}));
  }
  if (r.at) out["at"] = *r.at;
  out["pixels"] = r.pixels;
  return out;
}

std::vector<ImageRecord> parse_image_records(const std::string& text, const std::string& name) {
  // The parser itself keeps the last of two equal keys, and nests without an end.
  std::vector<std::set<std::string>> keys;
  const auto strict = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth)
      refuse_record(name, fmt::format("expected a depth of at most {}", kMaxDepth));
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto key = parsed.get<std::string>();
      if (!keys.back().insert(key).second)
        refuse_record(name, fmt::format("the key \"{}\" comes twice", key));
    }
    return true;
  };
  Json json;
  try {
    json = Json::parse(text, strict);
  } catch (const Json::exception& problem) {
    refuse_record(name, problem.what());
  }
  if (!json.is_array()) return {read_record(json, name)};
  if (json.empty()) refuse_record(name, "expected images, got none");
  std::vector<ImageRecord> out;
  for (const Json& object : json) out.push_back(read_record(object, name));
  return out;
}

}  // namespace sigma
