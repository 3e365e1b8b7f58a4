#include "sigma/cli/commands.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "sigma/base/error.h"

namespace sigma {
namespace {

constexpr const char* kExitCodes = R"(Exit codes:
  0  done, or nothing left to do
  1  anything else; regenerate: the images differ
  2  bad flag, key, value or recipe; a run of another configuration; a file exists
  3  data missing, corrupt or changed
  4  no checkpoint verifies, or none has the weights that are asked for
  5  no such device, or out of memory
  6  NaN or Inf in the loss or gradient
  7  disk full; a file cannot be read or written; the run is locked
  129, 130, 143  stopped by SIGHUP, SIGINT, SIGTERM, after a checkpoint
  128 + n  a second signal n: at once, nothing saved
)";

// Commands by what they are for, in the order of --help.
const std::vector<std::pair<const char*, std::vector<std::string>>> kPurposes = {
    {"Train", {"train"}},
    {"Make images", {"sample", "regenerate", "tokenize", "detokenize"}},
    {"Measure and look", {"eval", "compare", "report", "inspect", "show"}},
    {"Settings, data, program", {"config", "data", "version"}},
};
constexpr const char* kGlobalGroup = "Options of every command";

constexpr const char* kExamples = R"(Examples:
  sigma train recipes/fashion/quickstart.toml          train, or go on with, runs/quickstart
  sigma sample runs/quickstart -o samples.png          a grid of images
  sigma eval runs/quickstart --steps 1,2,4 --json      metrics with their provenance
  sigma config keys train                              every key, its bounds and meaning
)";

}  // namespace

CLI::App* Commands::add(CLI::App& parent, const std::string& name, const std::string& about,
                        const std::string& examples, std::function<CommandResult()> action) {
  CLI::App* sub = parent.add_subcommand(name, about);
  examples_[sub] = "Examples:\n" + examples;
  add_global(*sub);
  const std::string full = parent.get_name().empty() || parent.get_name() == "sigma"
                               ? name
                               : parent.get_name() + " " + name;
  sub->callback([this, full, action = std::move(action)] {
    name_ = full;
    action_ = action;
  });
  return sub;
}

CommandResult Commands::run() const {
  if (!global_.out.empty()) check_output(global_.out, global_);
  return action_();
}

void Commands::add_global(CLI::App& app) {
  const auto group = [](CLI::Option* option) { option->group(kGlobalGroup); };
  group(app.add_flag("--json", global_.json, "one JSON object on stdout instead of text"));
  group(app.add_flag("-q,--quiet", global_.quiet, "no progress on stderr"));
  group(app.add_flag("-v,--verbose", global_.verbose, "build, threads and seconds on stderr"));
  group(app.add_flag("-n,--dry-run", global_.dry_run,
                     "check everything, write nothing, say what would be written"));
  group(app.add_flag("-f,--force", global_.force, "overwrite files that exist; never a run"));
  group(app.add_option("--color", global_.color, "auto, always or never; NO_COLOR is respected")
            ->check(CLI::IsMember({"auto", "always", "never"})));
}

CLI::App& Commands::last_parsed() const {
  CLI::App* app = &root_;
  while (!app->get_subcommands().empty()) app = app->get_subcommands().back();
  return *app;
}

std::string Commands::refused_name() const {
  std::string out;
  for (CLI::App* app = &root_; !app->get_subcommands().empty();) {
    app = app->get_subcommands().back();
    out += (out.empty() ? "" : " ") + app->get_name();
  }
  return out;
}

Error Commands::refusal(const std::string& what) const {
  const std::string name = refused_name();
  const std::string see = fmt::format("see sigma {}-h", name.empty() ? "" : name + " ");
  // The first word that should be a command: the parser only says that one is missing.
  const CLI::App* app = &root_;
  for (size_t i = 1; i < train_.argv.size(); ++i) {
    const std::string& word = train_.argv[i];
    if (word == "--color") ++i;
    if (word.starts_with('-')) continue;
    std::vector<std::string> commands;
    const CLI::App* next = nullptr;
    for (const CLI::App* sub : app->get_subcommands([](const CLI::App*) { return true; })) {
      commands.push_back(sub->get_name());
      if (sub->get_name() == word) next = sub;
    }
    if (commands.empty()) break;
    if (next == nullptr) {
      const std::string near = did_you_mean(word, commands);
      return {ErrorKind::kUsage,
              fmt::format("{}: expected one of {}", word, fmt::join(commands, ", ")),
              near.empty() ? see : fmt::format("did you mean {}?", near)};
    }
    app = next;
  }
  return {ErrorKind::kUsage, what, see};
}

std::string Commands::help(bool full) const {
  CLI::App& app = last_parsed();
  if (full) {
    const auto examples = examples_.find(&app);
    if (examples != examples_.end())
      app.description(app.get_description() + "\n\n" + examples->second);
  } else {
    app.footer("");
    for (CLI::Option* option : app.get_options())
      if (option->get_group() == kGlobalGroup) option->group("");  // hidden
  }
  std::string before;
  for (const CLI::App* parent = app.get_parent(); parent; parent = parent->get_parent())
    before = parent->get_name() + (before.empty() ? "" : " ") + before;
  return app.help(before);
}

Commands::Commands(CLI::App& app, int argc, char** argv) : root_(app) {
  app.name("sigma");
  app.description("Sigma: an open laboratory for generative vision.");
  app.set_help_flag("-h", "usage and options");
  app.set_help_all_flag("--help", "examples, usage and all options");
  examples_[&app] = kExamples;
  add_global(app);
  app.require_subcommand(1);
  add_train(app, argc, argv);
  add_sample(app);
  add_regenerate(app);
  add_eval(app);
  add_report(app);
  add_compare(app);
  add_tokenize(app);
  add_config(app);
  add_data(app);
  add_inspect(app);
  CLI::App* show =
      add(app, "show", "Tensors of a safetensors file or a run: name, dtype, shape, metadata.",
          "  sigma show runs/quickstart\n  sigma show model.safetensors --json\n",
          [this] { return run_show(what_); });
  show->add_option("WHAT", what_, "a safetensors file or a run")->required();
  add(app, "version", "Version, commit, torch, devices.", "  sigma version --json\n",
      [] { return run_version(); });
  app.footer(kExitCodes);
  for (const auto& [purpose, names] : kPurposes) {
    for (CLI::App* sub : app.get_subcommands([&names = names](const CLI::App* s) {
           return std::find(names.begin(), names.end(), s->get_name()) != names.end();
         }))
      sub->group(purpose);
  }
  // Where a command has no file of its own to write, -o takes its text.
  const std::function<void(CLI::App*)> add_out = [&](CLI::App* parent) {
    for (CLI::App* sub : parent->get_subcommands([](const CLI::App*) { return true; })) {
      add_out(sub);
      if (examples_.contains(sub) && sub->get_option_no_throw("-o") == nullptr)
        sub->add_option("-o,--out", global_.out, "FILE for what goes to stdout");
    }
  };
  add_out(&app);
}

void Commands::add_device(CLI::App* sub, const std::string& about) {
  sub->add_option("--device", global_.device, about)->check(CLI::IsMember({"auto", "cpu", "cuda"}));
}

void Commands::add_train(CLI::App& app, int argc, char** argv) {
  train_.argv.assign(argv, argv + argc);
  CLI::App* sub = add(
      app, "train", "Trains the recipe's model, or resumes its run: repeating the command goes on.",
      "  sigma train recipes/fashion/quickstart.toml\n"
      "  sigma train recipes/fashion/quickstart.toml --run runs/a --set train.seed=1\n"
      "  sigma train recipes/fashion/quickstart.toml --dry-run\n",
      [this] { return run_train(train_, global_); });
  sub->add_option("RECIPE", train_.recipe, "a TOML file (see sigma config list)")->required();
  sub->add_option("--run", train_.run, "run directory; default runs/<name of the recipe>");
  sub->add_option("--set", train_.set, "KEY=VALUE, over the recipe; may be repeated")->take_all();
  add_device(sub);
  sub->add_option("--verify", train_.verify, "how a checkpoint is checked: hash or size")
      ->check(CLI::IsMember({"hash", "size"}));
}

void Commands::add_config(CLI::App& app) {
  CLI::App* config = app.add_subcommand("config", "Recipes and their keys.");
  config->require_subcommand(1);
  CLI::App* show =
      add(*config, "show", "The whole configuration of a recipe or run, defaults filled in.",
          "  sigma config show recipes/fashion/quickstart.toml --set train.seed=1\n",
          [this] { return run_config_show(what_, set_); });
  show->add_option("WHAT", what_, "a recipe or a run")->required();
  show->add_option("--set", set_, "KEY=VALUE, over the recipe")->take_all();
  CLI::App* check =
      add(*config, "check", "Whether a recipe's keys and values are good.",
          "  sigma config check my.toml\n", [this] { return run_config_check(what_, set_); });
  check->add_option("WHAT", what_, "a recipe or a run")->required();
  check->add_option("--set", set_, "KEY=VALUE, over the recipe")->take_all();
  CLI::App* keys =
      add(*config, "keys", "Every key: type, default, bounds, meaning.",
          "  sigma config keys objective\n", [this] { return run_config_keys(what_); });
  keys->add_option("FILTER", what_, "only keys that contain this");
  CLI::App* diff =
      add(*config, "diff", "Settings in which two recipes or runs differ.",
          "  sigma config diff runs/a runs/b\n", [this] { return run_config_diff(what_, other_); });
  diff->add_option("A", what_, "a recipe or a run")->required();
  diff->add_option("B", other_, "a recipe or a run")->required();
  add(*config, "list", "The recipes under recipes/.", "  sigma config list\n",
      [] { return run_config_list(); });
}

void Commands::add_data(CLI::App& app) {
  CLI::App* data = app.add_subcommand("data", "Data sets.");
  data->require_subcommand(1);
  CLI::App* check =
      add(*data, "check",
          "Counts, sizes, classes, duplicates and bad files of a data set; exit 3 if any is bad.",
          "  sigma data check recipes/fashion/quickstart.toml --sheet sheet.png\n  sigma data "
          "check photos/\n",
          [this] { return run_data_check(what_, sheet_, set_, global_); });
  check->add_option("WHAT", what_, "a recipe, a run, or a folder of images")->required();
  check->add_option("--sheet", sheet_, "FILE.png: a contact sheet");
  check->add_option("--set", set_, "KEY=VALUE, over the recipe")->take_all();
  add(*data, "list", "Kinds of data, and which are usable here.", "  sigma data list\n",
      [] { return run_data_list(); });
}

void Commands::add_inspect(CLI::App& app) {
  CLI::App* inspect = app.add_subcommand("inspect", "Pictures of what a network does.");
  inspect->require_subcommand(1);
  CLI::App* attention =
      add(*inspect, "attention",
          "Sparse attention: the blocks that a patch selects, per layer and head, over the image.\n"
          "Multi-token attention: the learned kernels.",
          "  sigma inspect attention runs/imm-sparse --image 7 -o attention.png\n"
          "  sigma inspect attention runs/imm-sparse --query 0,3 --time 0.9 -o corner.png\n"
          "  sigma inspect attention runs/imm-multi-token -o kernels.png\n",
          [this] { return run_inspect_attention(inspect_, global_); });
  attention->add_option("RUN", inspect_.run, "a generator run, or its name under runs/")
      ->required();
  attention->add_option("-o,--out", inspect_.out, "FILE.png");
  attention->add_option("--image", inspect_.image, "number of an image of the run's data set");
  attention->add_option("--time", inspect_.time, "noise on the image: t on the run's path");
  attention
      ->add_option(
          "--query", inspect_.query,
          "patch whose lists are drawn: ROW,COLUMN, of clips FRAME,ROW,COLUMN; default the "
          "middle")
      ->delimiter(',');
  attention->add_option("--ema", inspect_.ema, "main (averaged weights) or none");
  add_device(attention);
  add_inspect_routing(*inspect);
  add_inspect_reconstruction(*inspect);
}

void Commands::add_inspect_routing(CLI::App& inspect) {
  CLI::App* routing =
      add(inspect, "routing",
          "Mixture of experts: the patches that choose each expert, per layer and noise, over\n"
          "images, and how often a place chooses it over many.",
          "  sigma inspect routing runs/imm-moe --image 7 -o routing.png\n"
          "  sigma inspect routing runs/imm-moe --image 3,7 --time 0.2,0.8 -o two.png\n",
          [this] { return run_inspect_routing(routing_, global_); });
  routing->add_option("RUN", routing_.run, "a generator run, or its name under runs/")->required();
  routing->add_option("-o,--out", routing_.out, "FILE.png");
  routing
      ->add_option("--image", routing_.images,
                   "numbers of images of the run's data set, one or several: 3,7")
      ->delimiter(',');
  routing
      ->add_option("--time", routing_.times,
                   "noise on the images: t on the run's path, one or several; default 0.1, 0.5 and "
                   "0.9 of it")
      ->delimiter(',');
  routing->add_option("--ema", routing_.ema, "main (averaged weights) or none");
  add_device(routing);
}

}  // namespace sigma
