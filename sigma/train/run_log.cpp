#include "sigma/train/run_log.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <sstream>

#include "sigma/io/files.h"

namespace sigma {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

double number(const Json& line, const char* key, double otherwise) {
  const auto found = line.find(key);
  return found != line.end() && found->is_number() ? found->get<double>() : otherwise;
}

std::string word(const Json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_string() ? found->get<std::string>() : "";
}

void collect(const Json& node, const std::string& prefix, std::map<std::string, double>& out) {
  for (const auto& [key, value] : node.items()) {
    if (value.is_object()) collect(value, prefix + key + "/", out);
    else if (value.is_number()) out[prefix + key] = value.get<double>();
    else if (value.is_null()) out[prefix + key] = kNan;
  }
}

class Reader {
 public:
  void line(const std::string& text) {
    const Json line = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    const std::string event = line.is_object() ? word(line, "event") : "";
    const double step = event.empty() ? -1 : number(line, "step", 0);
    if (event.empty() || !(step >= 0 && step < 9e15)) {
      ++log_.broken;
      return;
    }
    if (event == "start" || event == "resume") begin(line, static_cast<int64_t>(step));
    if (event == "step") this->step(line, static_cast<int64_t>(step));
    else if (event == "eval") log_.evaluations.push_back({{}, line});
    else log_.events.push_back(line);
    if (event == "checkpoint") seconds_of_[static_cast<int64_t>(step)] = seconds(line);
  }

  RunLog take() {
    for (LogEvaluation& evaluation : log_.evaluations) {
      Cost& cost = evaluation.cost;
      cost.step = static_cast<int64_t>(number(evaluation.line, "step", 0));
      cost.images = number(evaluation.line, "images_seen", 0);
      cost.flops = cost.images * flops_per_image_;
      const auto saved = seconds_of_.find(cost.step);
      cost.seconds = saved == seconds_of_.end() ? kNan : saved->second;
    }
    return std::move(log_);
  }

 private:
  void begin(const Json& line, int64_t step) {
    std::erase_if(log_.steps, [&](const LogStep& s) { return s.cost.step > step; });
    const auto saved = seconds_of_.upper_bound(step);
    base_ = saved == seconds_of_.begin() ? 0 : std::prev(saved)->second;
    seconds_of_.erase(saved, seconds_of_.end());
    started_ = number(line, "t", 0);
    flops_per_image_ = number(line, "flops_per_image", flops_per_image_);
  }

  double seconds(const Json& line) const { return base_ + number(line, "t", started_) - started_; }

  void step(const Json& line, int64_t step) {
    // The same step twice, or one that goes back: only a resume may.
    if (!log_.steps.empty() && step <= log_.steps.back().cost.step) {
      ++log_.broken;
      return;
    }
    LogStep out;
    const double images = number(line, "images_seen", 0);
    out.cost = {step, images, images * flops_per_image_, seconds(line)};
    Json values = line;
    for (const char* key : {"t", "event", "step", "images_seen", "nonfinite"}) values.erase(key);
    collect(values, "", out.values);
    log_.steps.push_back(std::move(out));
  }

  RunLog log_;
  std::map<int64_t, double> seconds_of_;  // of checkpoints
  double base_ = 0;                       // seconds before this session
  double started_ = 0;                    // t of this session
  double flops_per_image_ = kNan;
};

}  // namespace

std::vector<std::string> RunLog::names() const {
  std::set<std::string> names;
  for (const LogStep& step : steps) {
    for (const auto& [name, value] : step.values) names.insert(name);
  }
  return {names.begin(), names.end()};
}

Json RunLog::of_start(const std::string& field) const {
  for (auto event = events.rbegin(); event != events.rend(); ++event) {
    const std::string name = event->at("event").get<std::string>();
    if ((name == "start" || name == "resume") && event->contains(field)) return event->at(field);
  }
  return nullptr;
}

RunLog read_run_log(const std::filesystem::path& run) {
  std::istringstream lines(read_file(run / "log.jsonl"));
  Reader reader;
  for (std::string text; std::getline(lines, text);) {
    if (!text.empty()) reader.line(text);
  }
  return reader.take();
}

}  // namespace sigma
