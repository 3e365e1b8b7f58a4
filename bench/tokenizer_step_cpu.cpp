// A tokenizer's training step on two cores against PyTorch eager: the autoencoder of
// recipes/fashion, and a MAETok (masks, mixed rotary positions, latents that modulate, gradient
// targets).
//   build/bench/tokenizer_step_cpu --python /path/to/python [--json] [--check]
#include <ATen/Parallel.h>

#include "bench/tokenizer_step.h"

int main(int argc, char** argv) {
  try {
    using namespace sigma;
    const auto arguments = bench::parse_arguments(argc, argv);
    at::set_num_threads(2);
    const RunConfig recipe =
        load_run_config(SIGMA_SOURCE_DIR "/recipes/fashion/autoencoder.toml", {});
    const bench::TokenizerStepCase autoencoder{
        .name = "tokenizer step, autoencoder 1x32x32, batch 128, CPU float32",
        .tokenizer = recipe.tokenizer,
        .image_shape = {1, 32, 32},
        .optimizer = recipe.train.optimizer,
        .batch = recipe.train.batch};

    TokenizerConfig small = bench::maetok();
    small.patch_size = 4;
    small.encoder.queries = 32;
    small.encoder.trunk.hidden_size = small.decoder.trunk.hidden_size = 96;
    small.encoder.trunk.depth = small.decoder.trunk.depth = 3;
    small.encoder.trunk.num_heads = small.decoder.trunk.num_heads = 3;
    const bench::TokenizerStepCase masked{
        .name = "tokenizer step, MAETok 1x28x28 96/3/3, batch 128, CPU float32",
        .tokenizer = small,
        .image_shape = {1, 28, 28},
        .optimizer = recipe.train.optimizer};

    const int first = bench::compare(autoencoder, arguments, {"eager"});
    const int second = bench::compare(masked, arguments, {"eager"});
    return std::max(first, second);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
}
