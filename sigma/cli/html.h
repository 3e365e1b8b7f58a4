// Pieces of the HTML files that report and compare write: one file, no script, nothing from outside.
// Functions take plain text and escape it, but where a parameter is called `html`.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sigma {

/// & < > " ' as entities.
std::string escape_html(std::string_view text);

/// A whole page with its style and a policy that forbids scripts and outside references.
std::string html_page(const std::string& title, const std::string& html);

std::string html_section(const std::string& heading, const std::string& html);

/// The first row is the head. Columns whose cells below it are numbers stand to the right. Too wide
/// a table scrolls by itself.
std::string html_table(const std::vector<std::vector<std::string>>& rows);

/// Names and values, below each other.
std::string html_facts(const std::vector<std::pair<std::string, std::string>>& facts);

std::string html_details(const std::string& summary, const std::string& html);

/// A PNG inside the page, with a caption; above 2 MiB only the caption and why.
std::string html_picture(std::string_view png, const std::string& caption);

/// Arguments as one line for a shell.
std::string shell_command(const std::vector<std::string>& arguments);

}  // namespace sigma
