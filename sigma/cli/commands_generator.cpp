// The subcommands of generator runs: images, the same images again, metrics.
#include <CLI/CLI.hpp>

#include "sigma/cli/commands.h"

namespace sigma {

void Commands::add_sample(CLI::App& app) {
  CLI::App* sub =
      add(app, "sample",
          "Images of a generator run: a grid, or single files, each with its provenance inside.",
          "  sigma sample runs/quickstart -o samples.png\n"
          "  sigma sample runs/quickstart -o shoes/ --labels 7,9 --count 40 --seed 3\n"
          "  sigma sample runs/quickstart -o s.png --steps 1,2,4 --guidance 1,1.5\n"
          "  sigma sample runs/quickstart -o sweep.png --steps 1,2,4,8 --guidance 1,1.5,2 --seeds "
          "3\n",
          [this] { return run_sample(sample_, global_); });
  sub->add_option("RUN", sample_.run, "a run directory, or its name under runs/")->required();
  sub->add_option("-o,--out", sample_.out, "FILE.png: a grid, labels in rows; DIR/: single images");
  sub->add_option("--count", sample_.count, "images in all; default ten a label, or 64");
  sub->add_option("--seed", sample_.seed, "of the noise");
  sub->add_option("--first", sample_.first,
                  "number of the first image: image i of a seed is always the same");
  sub->add_option("--labels", sample_.labels, "labels, such as 0,3,5-7; default all");
  sub->add_option("--steps", sample_.steps, "network calls, one or several: 1,2,4")->delimiter(',');
  sub->add_option("--guidance", sample_.guidance, "guidance scales, one or several")
      ->delimiter(',');
  sub->add_option("--seeds", sample_.seeds,
                  "a sweep: so many seeds from --seed on, all steps and guidance scales in one "
                  "picture, and metrics against steps");
  sub->add_option("--metrics", sample_.metrics, "of a sweep, as for sigma eval")->delimiter(',');
  sub->add_option("--samples", sample_.samples,
                  "of a sweep: images a metric; default metrics.n_samples of the run; 0: none");
  sub->add_option("--ema", sample_.ema, "main (averaged weights) or none");
  sub->add_option("--batch", sample_.batch, "images a pass");
  add_device(sub);
}

void Commands::add_regenerate(CLI::App& app) {
  CLI::App* sub = add(
      app, "regenerate",
      "Makes the images of a PNG of sigma sample again, from the record inside it, and compares.",
      "  sigma regenerate samples.png\n"
      "  sigma regenerate shoes/000003.png --alone --json\n"
      "  sigma regenerate samples.png --checkpoint /backup/runs -o again.png\n",
      [this] { return run_regenerate(regenerate_, global_); });
  sub->add_option("FILE", regenerate_.file, "a PNG that sigma sample wrote")->required();
  sub->add_option("--checkpoint", regenerate_.checkpoint,
                  "where its weights may lie, beside the recorded path and runs/: a checkpoint, a "
                  "run, a folder of runs; they are known by their hash");
  sub->add_flag("--alone", regenerate_.alone,
                "each image in a pass of its own; default the recorded pass, for equal bits");
  sub->add_option("-o,--out", regenerate_.out, "FILE.png: the picture as it comes out now");
  add_device(sub, "auto (the recorded one, if it is here), cpu or cuda");
}

void Commands::add_eval(CLI::App& app) {
  CLI::App* sub =
      add(app, "eval", "Metrics of a run, each with extractor, reference and counts.",
          "  sigma eval runs/quickstart --steps 1,2,4\n"
          "  sigma eval runs/quickstart --metrics fd_fashion_cnn,energy_pixels --json\n"
          "  sigma eval runs/autoencoder --metrics psnr_of_mean,linear_probe --count 2000\n",
          [this] { return run_eval(eval_, global_); });
  sub->add_option("RUN", eval_.run, "a run directory, or its name under runs/")->required();
  sub->add_option(
         "--metrics", eval_.metrics,
         "generators: fd_fashion_cnn, label_accuracy, energy_pixels; default the first two, of "
         "clips the last; other runs: an unknown name lists those that fit")
      ->delimiter(',');
  sub->add_option("--count", eval_.count,
                  "samples; default metrics.n_samples of the run; tokenizers: the first test "
                  "images; default all");
  sub->add_option("--seed", eval_.seed, "of the noise");
  sub->add_option("--steps", eval_.steps, "network calls, one or several: 1,2,4")->delimiter(',');
  sub->add_option("--guidance", eval_.guidance, "guidance scales, one or several")->delimiter(',');
  sub->add_option("--ema", eval_.ema, "main (averaged weights) or none");
  sub->add_option("--batch", eval_.batch, "images a pass");
  sub->add_option("--write-asset", eval_.write_asset,
                  "classifier runs: FILE for weights and reference statistics");
  add_device(sub);
}

}  // namespace sigma
