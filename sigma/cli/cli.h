// The program's subcommands: each is one C++ function from plain options to a result, as JSON for
// programs and as text for people. Errors are exceptions (sigma/base/error.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sigma/base/config.h"

namespace CLI {
class App;
}

namespace sigma {

/// Options of every subcommand.
struct GlobalOptions {
  bool json = false;     // the program: one JSON object on stdout
  bool quiet = false;    // no progress on stderr
  bool verbose = false;  // the program: build, threads and time on stderr
  bool dry_run = false;  // check everything, write nothing, say what would be written
  bool force = false;    // overwrite files that exist; never a run
  std::string device = "auto";
  std::string color = "auto";  // the program: auto | always | never
  std::string out;             // the program: FILE for what else goes to stdout
};

struct CommandResult {
  Json result;       // for --json
  std::string text;  // for people, on stdout
  int exit_code = 0;
};

struct TrainCommand {
  std::string recipe;
  std::string run;  // default: runs/<recipe stem>
  std::vector<std::string> set;
  std::string verify = "hash";  // hash | size
  std::vector<std::string> argv;
};
CommandResult run_train(const TrainCommand& command, const GlobalOptions& global);

struct SampleCommand {
  std::string run;
  std::string out = "samples.png";  // FILE.png: a grid; DIR/: single images
  int64_t count = 0;                // 0: ten a label, or 64
  int64_t seed = 0;
  int64_t first = 0;
  std::string labels;            // "0,1,2", "0-9", "all"; empty: all
  std::vector<int64_t> steps;    // empty: the run's
  std::vector<double> guidance;  // empty: the run's
  std::string ema = "main";      // main | none
  int64_t batch = 250;
  int64_t seeds = 0;                 // > 0: a sweep over seed, seed + 1, ..: one picture, measured
  std::vector<std::string> metrics;  // sweep: as EvalCommand::metrics
  int64_t samples = -1;              // sweep: images a metric; -1: the run's; 0: not measured
};
CommandResult run_sample(const SampleCommand& command, const GlobalOptions& global);

struct RegenerateCommand {
  std::string file;        // a PNG that run_sample wrote
  std::string checkpoint;  // where to look for its weights: a checkpoint, a run, a folder of runs
  bool alone = false;      // each image in a pass of its own, not in the recorded one
  std::string out;         // FILE.png: the picture as it comes out now; empty: none
};
/// exit_code 1: the images differ.
CommandResult run_regenerate(const RegenerateCommand& command, const GlobalOptions& global);

struct EvalCommand {
  std::string run;
  std::vector<std::string> metrics;  // empty: all that fit the task
  int64_t count = 0;                 // 0: the run's metrics.n_samples
  int64_t seed = 1000;
  std::vector<int64_t> steps;
  std::vector<double> guidance;
  std::string ema = "main";
  int64_t batch = 500;
  std::string write_asset;  // classifier: FILE for weights and reference statistics
};
CommandResult run_eval(const EvalCommand& command, const GlobalOptions& global);

struct ReportCommand {
  std::string run;
  std::string out;  // FILE.html; empty: RUN/report.html; -: stdout
};
CommandResult run_report(const ReportCommand& command, const GlobalOptions& global);

struct CompareCommand {
  std::vector<std::string> runs;
  std::string at = "images";  // images | flops | seconds: what the runs must have cost alike
  std::string html;           // FILE.html; empty: none
};
CommandResult run_compare(const CompareCommand& command, const GlobalOptions& global);

CommandResult run_config_show(const std::string& what, const std::vector<std::string>& set);
CommandResult run_config_check(const std::string& recipe, const std::vector<std::string>& set);
CommandResult run_config_keys(const std::string& filter);
CommandResult run_config_diff(const std::string& a, const std::string& b);
CommandResult run_config_list();

CommandResult run_data_check(const std::string& what, const std::string& sheet,
                             const std::vector<std::string>& set, const GlobalOptions& global);
CommandResult run_data_list();

struct InspectCommand {
  std::string run;
  std::string out = "attention.png";
  int64_t image = 0;           // of the run's data set
  double time = 0.5;           // noise on it
  std::vector<int64_t> query;  // row, column or frame, row, column of a patch; empty: the middle
  std::string ema = "main";
};
CommandResult run_inspect_attention(const InspectCommand& command, const GlobalOptions& global);

struct InspectRoutingCommand {
  std::string run;
  std::string out = "routing.png";
  std::vector<int64_t> images = {0};  // of the run's data set
  std::vector<double> times;          // noise on them; empty: 0.1, 0.5, 0.9 of the path
  std::string ema = "main";
};
CommandResult run_inspect_routing(const InspectRoutingCommand& command,
                                  const GlobalOptions& global);

struct InspectReconstructionCommand {
  std::string run;
  std::string out = "reconstruction.png";
  std::vector<int64_t> images;  // of the test split, if there is one; empty: the first eight
  std::string ema = "main";
};
CommandResult run_inspect_reconstruction(const InspectReconstructionCommand& command,
                                         const GlobalOptions& global);

struct TokenizeCommand {
  std::string run;
  std::string in;  // an image, a folder, train or test
  std::string out = "latents.safetensors";
  int64_t count = 0;  // 0: all
  int64_t batch = 250;
};
CommandResult run_tokenize(const TokenizeCommand& command, const GlobalOptions& global);

struct DetokenizeCommand {
  std::string run;
  std::string latents;
  std::string out = "images.png";  // FILE.png: a grid; DIR: single images
  std::optional<int64_t> keep;     // the first tokens of each image
  int64_t batch = 250;
};
CommandResult run_detokenize(const DetokenizeCommand& command, const GlobalOptions& global);

CommandResult run_show(const std::string& what);
CommandResult run_version();

/// A recipe or a run's config.toml, by path or run name.
Json load_tree(const std::string& what);

/// Refuses to overwrite without -f. Errors: kUsage.
void check_output(const std::string& path, const GlobalOptions& global);
/// The result of a dry run: the files that would be written, and more.
CommandResult planned(const std::vector<std::string>& files, const std::string& about,
                      const Json& more = Json::object());

/// "a  b\n1  2\n": columns padded to equal width; numbers to the right.
std::string text_table(const std::vector<std::vector<std::string>>& rows);
/// A number, or what JSON has in its place, to so many digits: "12.3"; null, NaN or infinite: "-".
std::string number_text(const Json& value, int digits = 4);
/// 1234567 -> "1.2 M"; bytes -> "1.2 MiB".
std::string count_text(double value);
std::string bytes_text(double value);

}  // namespace sigma
