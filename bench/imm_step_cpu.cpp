// The quickstart's training step on the CPU against PyTorch eager.
//   build/bench/imm_step_cpu --python /path/to/python [--json] [--check]
#include "bench/imm_step.h"
#include "sigma/train/config.h"

int main(int argc, char** argv) {
  try {
    const auto arguments = sigma::bench::parse_arguments(argc, argv);
    const sigma::RunConfig config =
        sigma::load_run_config(SIGMA_SOURCE_DIR "/recipes/fashion/quickstart.toml", {});
    const sigma::bench::ImmStepCase setup{.name = "imm step, quickstart network, CPU float32",
                                          .generator = config.generator,
                                          .sample_shape = {1, 28, 28},
                                          .batch = config.train.batch,
                                          .warmup = 5,
                                          .steps = 25};
    return sigma::bench::compare(setup, arguments, {"eager"});
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
}
