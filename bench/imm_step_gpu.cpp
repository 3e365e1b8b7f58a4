// A DiT-S/2 training step (32x32x4 latents, batch 256, bfloat16, target in bfloat16 too) on an
// NVIDIA GPU against PyTorch eager and torch.compile.
//   build-cuda/bench/imm_step_gpu --python /path/to/python [--json] [--check]
#include "bench/imm_step.h"

int main(int argc, char** argv) {
  try {
    const auto arguments = sigma::bench::parse_arguments(argc, argv);
    if (!torch::cuda::is_available()) {
      fmt::print(stderr, "no NVIDIA GPU here: skipped\n");
      return 0;
    }
    sigma::GeneratorConfig generator;
    generator.network = {.num_classes = 1000, .patch_size = 2};
    generator.network.trunk = {.hidden_size = 384, .depth = 12, .num_heads = 6};
    generator.network.trunk.mlp.activation = "gelu_tanh";
    generator.preconditioner = "euler_fm";
    generator.objective.imm.target_dtype = "compute";
    const sigma::bench::ImmStepCase setup{
        .name = "imm step, DiT-S/2 32x32x4 batch 256, GPU bfloat16",
        .generator = generator,
        .sample_shape = {4, 32, 32},
        .batch = 256,
        .device = torch::Device(torch::kCUDA, 0),
        .dtype = torch::kBFloat16,
        .warmup = 10,
        .steps = 30};
    return sigma::bench::compare(setup, arguments, {"eager", "compile"});
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
}
