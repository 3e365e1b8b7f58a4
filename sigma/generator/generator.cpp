#include "sigma/generator/generator.h"

#include "sigma/base/error.h"

namespace sigma {

void ObjectiveConfig::visit(ConfigVisitor& v) {
  v.choice("kind", kind, {"imm", "flow_matching"}, "how the network is trained");
  if (v.when(kind, "imm")) imm.visit(v);
  if (v.when(kind, "flow_matching")) flow_matching.visit(v);
}

void GeneratorConfig::visit(ConfigVisitor& v) {
  v.field("tokenizer", tokenizer,
          "a finished tokenizer run (path, or name under runs/); \"\" = pixels");
  v.choice("normalize", normalize, {"none", "standardize"},
           "pixels as they are, or to mean 0 and sigma_data");
  network.visit(v);
  v.choice("preconditioner", preconditioner, {"identity", "simple_edm", "euler_fm"},
           "how G becomes x_s");
  v.table("path", path, "path from data to noise");
  v.table("objective", objective, "the training objective");
  v.table("sampler", sampler, "default sampler of `sample` and `eval`", Role::kRuntime);
}

std::unique_ptr<Objective> make_objective(const ObjectiveConfig& config,
                                          const Preconditioner& preconditioner) {
  if (config.kind == "imm") return std::make_unique<Imm>(config.imm, preconditioner);
  return std::make_unique<FlowMatching>(config.flow_matching, preconditioner);
}

std::unique_ptr<Objective> make_objective(const GeneratorConfig& config) {
  auto objective =
      make_objective(config.objective, Preconditioner(config.preconditioner, Path(config.path)));
  SIGMA_CHECK(kUsage, !objective->needs().second_time || config.network.second_time != "none",
              "generator.second_time: objective {} expects s or delta, got none",
              config.objective.kind);
  return objective;
}

}  // namespace sigma
