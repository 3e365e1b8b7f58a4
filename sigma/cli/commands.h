// The table of subcommands: flags, help and what each calls.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "sigma/base/error.h"
#include "sigma/cli/cli.h"

namespace sigma {

class Commands {
 public:
  /// Declares everything on `app`; call run() after app.parse().
  Commands(CLI::App& app, int argc, char** argv);
  CommandResult run() const;
  const std::string& name() const { return name_; }
  const GlobalOptions& global() const { return global_; }
  /// The subcommands of a command line that was refused, "config show", or "".
  std::string refused_name() const;
  /// Why, `what` being what the parser says; a word that is no command with the nearest that is.
  Error refusal(const std::string& what) const;
  /// -h: usage and options; --help: examples first, and all. Of that subcommand.
  std::string help(bool full) const;

 private:
  void add_global(CLI::App& app);
  CLI::App& last_parsed() const;
  CLI::App* add(CLI::App& parent, const std::string& name, const std::string& about,
                const std::string& examples, std::function<CommandResult()> action);
  void add_device(CLI::App* sub, const std::string& about = "auto, cpu or cuda");
  void add_train(CLI::App& app, int argc, char** argv);
  void add_config(CLI::App& app);
  void add_data(CLI::App& app);
  void add_inspect(CLI::App& app);
  void add_inspect_routing(CLI::App& inspect);
  // commands_generator.cpp
  void add_sample(CLI::App& app);
  void add_regenerate(CLI::App& app);
  void add_eval(CLI::App& app);
  // commands_tokenizer.cpp
  void add_tokenize(CLI::App& app);
  void add_inspect_reconstruction(CLI::App& inspect);
  // commands_report.cpp
  void add_report(CLI::App& app);
  void add_compare(CLI::App& app);

  CLI::App& root_;
  GlobalOptions global_;
  TrainCommand train_;
  SampleCommand sample_;
  RegenerateCommand regenerate_;
  EvalCommand eval_;
  InspectCommand inspect_;
  InspectRoutingCommand routing_;
  InspectReconstructionCommand reconstruction_;
  TokenizeCommand tokenize_;
  DetokenizeCommand detokenize_;
  ReportCommand report_;
  CompareCommand compare_;
  std::string what_;
  std::string other_;
  std::vector<std::string> set_;
  std::string sheet_;
  std::string name_;
  std::function<CommandResult()> action_;
  std::map<const CLI::App*, std::string> examples_;
};

}  // namespace sigma
