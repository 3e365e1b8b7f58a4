// The program's streams: the result to stdout or to FILE, words for people to stderr.
#pragma once

#include <string>

#include "sigma/cli/cli.h"

namespace sigma {

/// All of `text`, flushed. A pipe whose reader has gone ends the output quietly. Errors: kIo.
void write_stdout(const std::string& text);

/// Whether a stream takes colour. when = auto: it is a terminal, TERM is not dumb, and NO_COLOR is
/// unset or empty.
bool takes_color(int descriptor, const std::string& when);

/// `text` in red, bold, ... by its ANSI number where `color` is true, else as it is.
std::string painted(const std::string& text, int ansi, bool color);

}  // namespace sigma
