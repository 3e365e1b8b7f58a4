// The training step of a 28 M-parameter MAETok (3x128x128 images, batch 128, bfloat16) on an NVIDIA
// GPU against PyTorch eager and torch.compile.
//   build-cuda/bench/tokenizer_step_gpu --python /path/to/python [--json] [--check]
#include "bench/tokenizer_step.h"

int main(int argc, char** argv) {
  try {
    using namespace sigma;
    const auto arguments = bench::parse_arguments(argc, argv);
    if (!torch::cuda::is_available()) {
      fmt::print(stderr, "no NVIDIA GPU here: skipped\n");
      return 0;
    }
    TokenizerConfig config = bench::maetok();
    config.patch_size = 8;
    config.bottleneck.dim = 32;
    config.encoder.queries = 128;
    config.encoder.trunk.hidden_size = config.decoder.trunk.hidden_size = 384;
    config.encoder.trunk.depth = config.decoder.trunk.depth = 6;
    config.encoder.trunk.num_heads = config.decoder.trunk.num_heads = 6;
    config.hog.hidden_size = 384;
    config.hog.depth = 3;
    config.hog.num_heads = 6;
    const bench::TokenizerStepCase setup{
        .name = "tokenizer step, MAETok 3x128x128 384/6/6, batch 128, GPU bfloat16",
        .tokenizer = config,
        .image_shape = {3, 128, 128},
        .device = torch::Device(torch::kCUDA, 0),
        .dtype = torch::kBFloat16,
        .warmup = 10,
        .rounds = 3,
        .steps = 10};
    return bench::compare(setup, arguments, {"eager", "compile"});
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
}
