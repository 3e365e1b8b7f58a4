// The flags and help of the commands that show runs to people.
#include <CLI/CLI.hpp>

#include "sigma/cli/commands.h"

namespace sigma {

void Commands::add_report(CLI::App& app) {
  CLI::App* sub = add(app, "report",
                      "One HTML file about a run: samples, curves, metrics with their provenance,\n"
                      "settings, data, events. No scripts, nothing loaded from outside.",
                      "  sigma report runs/quickstart\n  sigma report runs/quickstart -o q.html\n",
                      [this] { return run_report(report_, global_); });
  sub->add_option("RUN", report_.run, "a run directory, or its name under runs/")->required();
  sub->add_option("-o,--out", report_.out, "FILE.html; default RUN/report.html; -: stdout");
}

void Commands::add_compare(CLI::App& app) {
  CLI::App* sub =
      add(app, "compare",
          "Runs beside each other: settings that differ, metrics at equal cost, the spread over\n"
          "seeds. Ranks only what is comparable, and says why something is not.",
          "  sigma compare runs/a runs/b runs/c\n"
          "  sigma compare runs/a runs/b --at seconds --json\n"
          "  sigma compare runs/a runs/b --html compare.html     also curves and same-seed grids\n",
          [this] { return run_compare(compare_, global_); });
  sub->add_option("RUN", compare_.runs, "run directories, or their names under runs/")
      ->required()
      ->expected(2, 1000);
  sub->add_option("--at", compare_.at, "equal cost in images, flops or seconds")
      ->check(CLI::IsMember({"images", "flops", "seconds"}));
  sub->add_option("--html", compare_.html, "FILE.html");
  add_device(sub, "auto, cpu or cuda: where the grids are sampled");
}

}  // namespace sigma
