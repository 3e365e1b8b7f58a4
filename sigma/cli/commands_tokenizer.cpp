// The subcommands of tokenizer runs.
#include <CLI/CLI.hpp>

#include "sigma/cli/commands.h"

namespace sigma {
void Commands::add_tokenize(CLI::App& app) {
  CLI::App* there =
      add(app, "tokenize", "Images to a file of latents, by the averaged weights of a tokenizer.",
          "  sigma tokenize runs/autoencoder test -o latents.safetensors --count 100\n"
          "  sigma tokenize runs/autoencoder photos/ -o photos.safetensors\n"
          "  sigma tokenize runs/autoencoder shoe.png -o shoe.safetensors\n",
          [this] { return run_tokenize(tokenize_, global_); });
  there->add_option("RUN", tokenize_.run, "a finished tokenizer run, or its name under runs/")
      ->required();
  there
      ->add_option("IN", tokenize_.in,
                   "an image file, a folder of images, or train or test: the run's own data")
      ->required();
  there->add_option("-o,--out", tokenize_.out, "FILE.safetensors");
  there->add_option("--count", tokenize_.count, "only the first images; default all");
  there->add_option("--batch", tokenize_.batch, "images a pass");
  add_device(there);

  CLI::App* back =
      add(app, "detokenize", "A file of latents to images, by the tokenizer that made it.",
          "  sigma detokenize runs/autoencoder latents.safetensors -o images/\n"
          "  sigma detokenize runs/semanticist latents.safetensors -o four.png --keep 4\n",
          [this] { return run_detokenize(detokenize_, global_); });
  back->add_option("RUN", detokenize_.run, "a finished tokenizer run, or its name under runs/")
      ->required();
  back->add_option("LATENTS", detokenize_.latents, "a file that sigma tokenize wrote")->required();
  back->add_option("-o,--out", detokenize_.out, "FILE.png: a grid; DIR: single images");
  back->add_option("--keep", detokenize_.keep,
                   "tokenizers of nested prefixes: only the first tokens of each image");
  back->add_option("--batch", detokenize_.batch, "images a pass");
  add_device(back);
}

void Commands::add_inspect_reconstruction(CLI::App& inspect) {
  CLI::App* sub = add(
      inspect, "reconstruction",
      "Tokenizers: images, what the encoder sees of them in training, what comes back; of nested\n"
      "prefixes, what the first 1, 2, 4, .. tokens say.",
      "  sigma inspect reconstruction runs/maetok -o reconstruction.png\n"
      "  sigma inspect reconstruction runs/semanticist --image 0,7,23 -o prefixes.png\n",
      [this] { return run_inspect_reconstruction(reconstruction_, global_); });
  sub->add_option("RUN", reconstruction_.run, "a tokenizer run, or its name under runs/")
      ->required();
  sub->add_option("-o,--out", reconstruction_.out, "FILE.png");
  sub->add_option("--image", reconstruction_.images,
                  "numbers of images of the run's test split, or of its training split if there is "
                  "no other; default the first eight")
      ->delimiter(',');
  sub->add_option("--ema", reconstruction_.ema, "main (averaged weights) or none");
  add_device(sub);
}

}  // namespace sigma
