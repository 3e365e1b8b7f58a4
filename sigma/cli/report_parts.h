// What the pages of report and compare share.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "sigma/cli/svg_plot.h"
#include "sigma/train/run_log.h"

namespace sigma {

/// The last part of a run's path.
std::string run_name(const std::filesystem::path& run);

/// Of the images that a run learns from, without padding, also behind latents: from the log's start;
/// where that does not say, the data_sha256 of its run.json, `info`.
std::string images_sha256(const RunLog& log, const Json& info);

/// images | flops | seconds of a cost.
double cost_of(const Cost& cost, const std::string& at);

/// What is worth a plot: the values in one log, or in at least two of several; losses first, rates
/// last. One part of the loss alone is the loss.
std::vector<std::string> curve_names(const std::vector<const RunLog*>& logs);

/// A value of the log over the cost, where that is a finite number.
Series curve_of(const RunLog& log, const std::string& value, const std::string& at,
                const std::string& name);

/// The PNG files of a run, as HTML with what they say of themselves: RUN/*.png and
/// RUN/samples/*.png; of those that training wrote, six from the first to the last. Empty: none.
std::string pictures_of(const std::filesystem::path& run);

}  // namespace sigma
