#include "sigma/cli/html.h"

#include <openssl/evp.h>

#include <cctype>

#include "sigma/base/error.h"

namespace sigma {
namespace {

constexpr const char* kStyle = R"(
:root { --ink: #1b1f24; --soft: #59636e; --line: #d8dee4; --back: #f6f8fa; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem; color: var(--ink);
  background: #fff; font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; padding-bottom: .25rem;
  border-bottom: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.lead { color: var(--soft); margin: 0 0 1rem; }
.note { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0;
  border-bottom: 1px solid var(--line); }
th, td { white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
td.wide { white-space: normal; min-width: 16rem; max-width: 32rem; overflow-wrap: anywhere; }
.n { text-align: right; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .25rem 1rem;
  margin: .5rem 0; font-size: .95rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr));
  gap: 1.5rem; align-items: start; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .9rem; overflow-wrap: anywhere; }
figure > figcaption:first-child { font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; font-size: .8rem; color: var(--soft); }
.legend span { display: inline-flex; align-items: center; gap: .35rem; overflow-wrap: anywhere; }
figure svg { display: block; width: 100%; height: auto; }
.legend svg { width: 26px; height: 8px; flex: none; }
img { display: block; max-width: 100%; height: auto;
  border: 1px solid var(--line); margin: 0 0 .4rem; }
details { margin: .4rem 0; }
summary { cursor: pointer; color: var(--soft); font-size: .875rem; }
.columns { columns: 24rem; column-gap: 2rem; }
details .scroll { max-height: 20rem; overflow-y: auto; }
pre { background: var(--back); border: 1px solid var(--line); border-radius: 6px;
  padding: .75rem 1rem; font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; }
)";

bool is_number(const std::string& text) {
  const size_t at = text.starts_with('-') ? 1 : 0;
  return text.size() > at && std::isdigit(static_cast<unsigned char>(text[at]));
}

bool is_empty(const std::string& text) { return text.empty() || text == "-"; }

// Numbers, and places that wait for one.
std::vector<bool> numeric_columns(const std::vector<std::vector<std::string>>& rows) {
  std::vector<bool> out(rows.empty() ? 0 : rows[0].size(), false);
  for (size_t c = 0; c < out.size(); ++c) {
    bool some = false;
    bool all = true;
    for (size_t r = 1; r < rows.size(); ++r) {
      some = some || is_number(rows[r].at(c));
      all = all && (is_number(rows[r][c]) || is_empty(rows[r][c]));
    }
    out[c] = some && all;
  }
  return out;
}

std::string base64(std::string_view bytes) {
  std::string out((bytes.size() + 2) / 3 * 4 + 1, '\0');
  const int size = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                                   reinterpret_cast<const unsigned char*>(bytes.data()),
                                   static_cast<int>(bytes.size()));
  out.resize(static_cast<size_t>(size));
  return out;
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return out;
}

std::string html_page(const std::string& title, const std::string& html) {
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
      "'unsafe-inline'; img-src data:\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>{}</title>\n<style>{}</style>\n</head>\n<body>\n{}</body>\n</html>\n",
      escape_html(title), kStyle, html);
}

std::string html_section(const std::string& heading, const std::string& html) {
  return fmt::format("<section>\n<h2>{}</h2>\n{}</section>\n", escape_html(heading), html);
}

std::string html_table(const std::vector<std::vector<std::string>>& rows) {
  constexpr size_t kWide = 40;  // longer text may break into lines
  const std::vector<bool> numeric = numeric_columns(rows);
  std::string out = "<div class=\"scroll\"><table>\n";
  for (size_t r = 0; r < rows.size(); ++r) {
    const char* tag = r == 0 ? "th" : "td";
    out += "<tr>";
    for (size_t c = 0; c < rows[r].size(); ++c) {
      const char* look = numeric.at(c)                        ? " class=\"n\""
                         : r > 0 && rows[r][c].size() > kWide ? " class=\"wide\""
                                                              : "";
      out += fmt::format("<{0}{1}>{2}</{0}>", tag, look, escape_html(rows[r][c]));
    }
    out += "</tr>\n";
  }
  return out + "</table></div>\n";
}

std::string html_facts(const std::vector<std::pair<std::string, std::string>>& facts) {
  std::string out = "<dl>\n";
  for (const auto& [name, value] : facts)
    out += fmt::format("<dt>{}</dt><dd>{}</dd>\n", escape_html(name), escape_html(value));
  return out + "</dl>\n";
}

std::string html_details(const std::string& summary, const std::string& html) {
  return fmt::format("<details><summary>{}</summary>\n{}</details>\n", escape_html(summary), html);
}

std::string html_picture(std::string_view png, const std::string& caption) {
  constexpr size_t kLargest = size_t{2} << 20;
  if (png.size() > kLargest) {
    return fmt::format(
        "<figure><figcaption>{}: {} bytes, more than this page takes</figcaption>"
        "</figure>\n",
        escape_html(caption), png.size());
  }
  const std::string text = escape_html(caption);
  return fmt::format(
      "<figure><img alt=\"{}\" src=\"data:image/png;base64,{}\"><figcaption class=\"note\">{}"
      "</figcaption></figure>\n",
      text, base64(png), text);
}

std::string shell_command(const std::vector<std::string>& arguments) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=:,+@%";
  std::string out;
  for (const std::string& argument : arguments) {
    const bool plain = !argument.empty() && argument.find_first_not_of(kPlain) == std::string::npos;
    if (!out.empty()) out += ' ';
    if (plain) {
      out += argument;
      continue;
    }
    out += '\'';
    for (const char c : argument) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
    out += '\'';
  }
  return out;
}

}  // namespace sigma
