// Recipes: TOML text to a tree, into a configuration, and back to the same text; --set too.
#include "tests/base/example_config.h"
#include "tests/fuzz/fuzz.h"

using namespace sigma;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text = fuzz::text(data, size);
  fuzz::may_refuse(ErrorKind::kUsage, [&] {
    Json tree = parse_toml(text, "fuzz.toml");
    const std::string written = to_toml(tree);
    fuzz::demand(to_toml(parse_toml(written, "written.toml")) == written,
                 "the same text after reading it again");
    example::RunConfig config;
    read_config(visit_of(config), tree, "fuzz.toml");
    const std::string resolved = to_toml(write_config(visit_of(config)));
    example::RunConfig again;
    read_config(visit_of(again), parse_toml(resolved, "resolved.toml"), "resolved.toml");
    fuzz::demand(config_hash(visit_of(again)) == config_hash(visit_of(config)),
                 "the same configuration from what it wrote");
  });
  fuzz::may_refuse(ErrorKind::kUsage, [&] {
    Json tree = Json::object();
    set_key(tree, std::string(text.substr(0, text.find('\n'))));
    flatten(tree);
  });
  return 0;
}
