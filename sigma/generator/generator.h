// A generator as configured: path, preconditioner, network, objective and sampler put together.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sigma/generator/network.h"
#include "sigma/generator/objective.h"
#include "sigma/generator/objectives/flow_matching.h"
#include "sigma/generator/objectives/imm.h"
#include "sigma/generator/sampler.h"

namespace sigma {

struct ObjectiveConfig {
  std::string kind = "imm";  // imm | flow_matching
  ImmConfig imm;
  FlowMatchingConfig flow_matching;
  void visit(ConfigVisitor& v);
};

struct GeneratorConfig {
  std::string tokenizer;  // a finished tokenizer run (path, or name under runs/); empty: pixels
  std::string normalize = "none";  // none | standardize
  NetworkConfig network;           // its fields stand flat in [generator]
  std::string preconditioner = "simple_edm";
  PathConfig path;
  ObjectiveConfig objective;
  SamplerConfig sampler;
  void visit(ConfigVisitor& v);
};

std::unique_ptr<Objective> make_objective(const ObjectiveConfig& config,
                                          const Preconditioner& preconditioner);

/// The objective of `config`, checked against the network: kUsage (imm needs second_time).
std::unique_ptr<Objective> make_objective(const GeneratorConfig& config);

}  // namespace sigma
