// Trains a small one-step generator on a folder of images, a folder a class inside of it:
// train_folder FOLDER RUN [IMAGES]
//
// A run's configuration is a plain struct; a recipe fills the same fields. Starting it again goes on
// with the run.
#include <cstdio>
#include <cstdlib>

#include "sigma/base/error.h"
#include "sigma/train/trainer.h"

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fputs("usage: train_folder FOLDER RUN [IMAGES]\n", stderr);
    return 2;
  }
  sigma::RunConfig config;
  config.data.kind = "folder";
  config.data.root = argv[1];
  config.data.size = 16;  // sides after a centre crop
  config.data.channels = 1;
  config.generator.path = {.kind = "ot_fm", .t_min = 0.006};
  config.generator.network.patch_size = 4;
  config.generator.network.embedding_init = "unit";
  config.generator.network.trunk = {.hidden_size = 64, .depth = 2, .num_heads = 4};
  config.train.images = argc > 3 ? std::atoll(argv[3]) : 100'000;
  config.train.batch = 32;
  config.train.optimizer.lr = 2e-3;
  try {
    config.generator.network.num_classes = sigma::open_dataset(config.data)->info().num_classes;
    const sigma::TrainResult result = sigma::train(config, {.run = argv[2]});
    std::printf("%lld images seen, loss %.4f: %s\n", static_cast<long long>(result.images_seen),
                result.loss, result.checkpoint.c_str());
  } catch (const sigma::Error& error) {
    std::fprintf(stderr, "%s\n%s\n", error.what(), error.hint().c_str());
    return error.exit_code();
  }
  return 0;
}
