// `sigma compare --html`: the tables, the curves of all runs in one plot each, and grids of the
// same noise and labels.
#include "sigma/base/error.h"
#include "sigma/cli/compare.h"
#include "sigma/cli/html.h"
#include "sigma/cli/report_parts.h"
#include "sigma/cli/sample_grid.h"
#include "sigma/cli/svg_plot.h"

namespace sigma {
namespace {

std::string curves(const Comparison& c) {
  std::vector<const RunLog*> logs;
  for (const ComparedRun& run : c.runs) logs.push_back(&run.log);
  std::string out;
  for (const std::string& name : curve_names(logs)) {
    std::vector<Series> series;
    for (const ComparedRun& run : c.runs) series.push_back(curve_of(run.log, name, c.at, run.name));
    out += SvgPlot{.title = name, .x_label = c.at, .series = series, .log_y = wants_log(series)}
               .html();
  }
  return "<div class=\"grid\">\n" + out + "</div>\n";
}

std::string grid_of(const ComparedRun& run, const std::string& device) {
  try {
    const LoadedGenerator g = load_generator(run.folder.string(), "main", device);
    const SamplerConfig& sampler = g.config.generator.sampler;
    return html_picture(
        encode_png(sample_grid(g).picture()),
        fmt::format("{}: at step {}; steps {}, guidance {}, averaged weights {}", run.name, g.step,
                    sampler.steps, sampler.guidance.scale, g.weights_sha256.substr(0, 12)));
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kCheckpoint) throw;
    return fmt::format("<p class=\"note\">{}</p>\n", escape_html(error.what()));
  }
}

}  // namespace

std::string comparison_page(const Comparison& c, const std::string& device) {
  std::string names;
  for (const ComparedRun& run : c.runs) names += (names.empty() ? "" : ", ") + run.name;
  std::string html = fmt::format(
      "<h1>{}</h1>\n<p class=\"lead\">Runs beside each other, at equal "
      "{}.</p>\n",
      escape_html(names), escape_html(c.at));
  html += html_table(runs_table(c));

  std::string metrics = "<p class=\"note\">Not measured yet: sigma eval.</p>\n";
  if (!c.metrics.empty()) metrics = html_table(metrics_table(c));
  for (const std::string& line : obstacle_lines(c))
    metrics += fmt::format("<p>{}</p>\n", escape_html(line));
  html += html_section("Metrics", metrics);

  std::string grids;
  for (const ComparedRun& run : c.runs) {
    if (run.task == "generator") grids += grid_of(run, device);
  }
  if (!grids.empty()) {
    html += html_section(
        "Same-seed grids",
        fmt::format("<p class=\"note\">The newest checkpoint of each run; the same noise (seed {}) "
                    "and labels in the same places.</p>\n<div class=\"grid\">\n{}</div>\n",
                    kGridSeed, grids));
  }
  html += html_section("Curves", curves(c));
  html += html_section("Settings that differ", c.settings.empty()
                                                   ? "<p class=\"note\">The same settings.</p>\n"
                                                   : html_table(settings_table(c)));
  return html_page(names + " - sigma compare", html);
}

}  // namespace sigma
