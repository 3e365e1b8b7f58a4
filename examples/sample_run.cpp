// Images of a trained run, as `sigma sample` makes them: sample_run RUN FILE.png [STEPS]
//
// Every subcommand of the program is such a function: from plain options to JSON and text.
#include <cstdio>
#include <cstdlib>

#include "sigma/base/error.h"
#include "sigma/cli/cli.h"

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fputs("usage: sample_run RUN FILE.png [STEPS]\n", stderr);
    return 2;
  }
  sigma::SampleCommand command;
  command.run = argv[1];
  command.out = argv[2];
  command.count = 8;
  if (argc > 3) command.steps = {std::atoll(argv[3])};
  try {
    const sigma::CommandResult result = sigma::run_sample(command, {.force = true});
    std::printf("%s%s\n", result.text.c_str(), result.result.dump(2).c_str());
  } catch (const sigma::Error& error) {
    std::fprintf(stderr, "%s\n%s\n", error.what(), error.hint().c_str());
    return error.exit_code();
  }
  return 0;
}
