// The table of subcommands: flags, help and what each calls.
#pragma once

#include <functional>
#include <string>

#include "sigma/cli/cli.h"

namespace sigma {

class Commands {
 public:
  /// Declares everything on `app`; call run() after app.parse().
  Commands(CLI::App& app, int argc, char** argv);
  CommandResult run() const;
  const std::string& name() const { return name_; }
  bool json() const { return global_.json; }

 private:
  CLI::App* add(CLI::App& parent, const std::string& name, const std::string& about,
                const std::string& examples, std::function<CommandResult()> action);
  void add_train(CLI::App& app, int argc, char** argv);
  void add_sample(CLI::App& app);
  void add_eval(CLI::App& app);
  void add_config(CLI::App& app);
  void add_data(CLI::App& app);
  void add_inspect(CLI::App& app);
  void add_inspect_routing(CLI::App& inspect);
  // commands_tokenizer.cpp
  void add_tokenize(CLI::App& app);
  void add_inspect_reconstruction(CLI::App& inspect);
  // commands_report.cpp
  void add_report(CLI::App& app);
  void add_compare(CLI::App& app);

  GlobalOptions global_;
  TrainCommand train_;
  SampleCommand sample_;
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
};

}  // namespace sigma
