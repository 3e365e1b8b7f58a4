// What all commands share: help, --json, -n, -f, -o, -v, colours, closed pipes.
#include <fcntl.h>
#include <pty.h>

#include "sigma/io/images.h"
#include "tests/cli/program.h"

namespace sigma {
namespace {

using nlohmann::json;

class CommandLine : public ::testing::Test {
 protected:
  CommandLine() : p("commands") {
    p.write_data();
    p.write_recipe();
  }
  void train() { ASSERT_EQ(p.run({"train", "tiny.toml", "--set", "train.images=80"}).exit, 0); }
  // What a command prints to stderr where that is a terminal.
  std::string on_terminal(const std::vector<std::string>& arguments,
                          const std::function<void()>& environment) {
    int master = -1, slave = -1;
    EXPECT_EQ(openpty(&master, &slave, nullptr, nullptr, nullptr), 0);
    const pid_t child = p.start(arguments, [&] {
      setenv("TERM", "xterm", 1);
      unsetenv("NO_COLOR");
      environment();
      dup2(slave, STDERR_FILENO);
    });
    p.wait(child);
    close(slave);
    std::string out(4096, '\0');
    const ssize_t count = read(master, out.data(), out.size());
    close(master);
    out.resize(static_cast<size_t>(std::max<ssize_t>(count, 0)));
    return out;
  }
  Program p;
};

TEST_F(CommandLine, HelpSortsCommandsByPurposeAndShowsExamplesFirst) {
  const std::string help = p.run({"--help"}).out;
  EXPECT_FALSE(contains(help, "Subcommands:")) << "a command without a purpose:\n" << help;
  for (const char* part : {"Train:", "Make images:", "Measure and look:", "regenerate",
                           "Exit codes:", "--dry-run", "--color"})
    EXPECT_CONTAINS(help, part);
  const std::vector<std::vector<std::string>> commands = {
      {}, {"train"}, {"regenerate"}, {"inspect", "routing"}, {"config", "keys"}};
  for (const std::vector<std::string>& command : commands) {
    std::vector<std::string> with = command;
    with.emplace_back("--help");
    const std::string full = p.run(with).out;
    EXPECT_CONTAINS(full, "Examples:");
    EXPECT_LT(full.find("Examples:"), full.find("Usage:")) << full;
    EXPECT_CONTAINS(full, fmt::format("Usage: sigma{}{} ", command.empty() ? "" : " ",
                                      fmt::join(command, " ")));
    EXPECT_CONTAINS(full, "--json");
    with.back() = "-h";
    const Finished brief = p.run(with);
    EXPECT_EQ(brief.exit, 0);
    EXPECT_CONTAINS(brief.out, "Usage:");
    EXPECT_FALSE(contains(brief.out, "Examples:"));
    EXPECT_LT(brief.out.size(), full.size());
  }
}

TEST_F(CommandLine, JsonIsOneObjectEverywhere) {
  train();
  p.write("tokenizer.toml", R"(task = "tokenizer"
[data]
kind = "idx"
images = "images.idx"
labels = "labels.idx"
threads = 0
[tokenizer]
patch_size = 4
bottleneck = { dim = 3 }
latent_norm = { images = 100 }
[tokenizer.encoder]
queries = 4
trunk = { hidden_size = 16, depth = 1, num_heads = 2 }
[tokenizer.decoder]
trunk = { hidden_size = 16, depth = 1, num_heads = 2 }
[train]
images = 80
batch = 8
)");
  const auto train_more = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "train");
    const Finished r = p.run(arguments);
    ASSERT_EQ(r.exit, 0) << r.err;
  };
  ASSERT_NO_FATAL_FAILURE(train_more({"tokenizer.toml"}));
  ASSERT_NO_FATAL_FAILURE(train_more(
      {"tiny.toml", "--run", "runs/looked-into", "--set", "train.images=80", "--set",
       "generator.trunk.attention.kind=sparse", "--set", "generator.trunk.attention.block=[1, 1]",
       "--set", "generator.trunk.attention.num_selected=2", "--set", "generator.trunk.mlp.kind=moe",
       "--set", "generator.trunk.mlp.num_experts=2", "--set", "generator.trunk.mlp.num_chosen=1"}));
  struct Entry {
    std::vector<std::string> command;
    int exit;
  };
  const std::vector<Entry> entries = {
      {{"sample", "runs/tiny", "-o", "a.png"}, 0},
      {{"regenerate", "a.png"}, 0},
      {{"eval", "runs/tiny", "--metrics", "energy_pixels", "--count", "8"}, 0},
      {{"report", "runs/tiny"}, 0},
      {{"compare", "runs/tiny", "runs/looked-into"}, 0},
      {{"inspect", "attention", "runs/looked-into"}, 0},
      {{"inspect", "routing", "runs/looked-into"}, 0},
      {{"inspect", "reconstruction", "runs/tokenizer"}, 0},
      {{"tokenize", "runs/tokenizer", "train"}, 0},
      {{"detokenize", "runs/tokenizer", "latents.safetensors"}, 0},
      {{"show", "runs/tiny"}, 0},
      {{"config", "show", "tiny.toml"}, 0},
      {{"config", "check", "tiny.toml"}, 0},
      {{"config", "keys", "train"}, 0},
      {{"config", "diff", "tiny.toml", "runs/tiny"}, 0},
      {{"config", "list"}, 0},
      {{"data", "check", "tiny.toml"}, 0},
      {{"data", "list"}, 0},
      {{"version"}, 0},
      // Refused: a file that is there; runs of another kind; files that are not there.
      {{"sample", "runs/tiny", "-o", "a.png"}, 2},
      {{"inspect", "attention", "runs/tiny", "-o", "b.png"}, 2},
      {{"tokenize", "runs/tiny", "train", "-o", "b.safetensors"}, 2},
      {{"detokenize", "runs/tokenizer", "none.safetensors", "-o", "b.png"}, 3},
      {{"eval", "runs/none"}, 2},
  };
  for (const Entry& entry : entries) {
    const std::string text = fmt::format("{}", fmt::join(entry.command, " "));
    std::vector<std::string> command = entry.command;
    command.emplace_back("--json");
    const Finished r = p.run(command);
    EXPECT_EQ(r.exit, entry.exit) << text << "\n" << r.err;
    const json out = json::parse(r.out, nullptr, /*allow_exceptions=*/false);
    ASSERT_TRUE(out.is_object()) << text << ": " << r.out << r.err;
    EXPECT_TRUE((text + " ").starts_with(out.at("command").get<std::string>() + " ")) << text;
    EXPECT_EQ(out.at("ok"), entry.exit == 0) << text;
    if (entry.exit == 0) {
      EXPECT_TRUE(out.contains("result") && !out.contains("error")) << text;
    } else {
      EXPECT_EQ(out.at("error").at("exit"), entry.exit) << text;
      EXPECT_FALSE(out.at("error").at("message").get<std::string>().empty()) << text;
      EXPECT_TRUE(out.at("error").contains("kind") && out.at("error").contains("hint")) << text;
    }
  }
  // Before the subcommand too, and where the command line itself is refused.
  EXPECT_EQ(json::parse(p.run({"--json", "version"}).out).at("command"), "version");
  const Finished refused = p.run({"sample", "runs/tiny", "--no-such-flag", "--json"});
  EXPECT_EQ(refused.exit, 2);
  EXPECT_EQ(json::parse(refused.out).at("error").at("kind"), "usage");
  EXPECT_EQ(json::parse(refused.out).at("command"), "sample");
  const Finished misspelt = p.run({"config", "shwo", "tiny.toml"});
  EXPECT_EQ(misspelt.exit, 2);
  EXPECT_CONTAINS(misspelt.err, "shwo: expected one of show, check");
  EXPECT_CONTAINS(misspelt.err, "did you mean show?");
  // train: the lines of the log, then the object.
  const Finished trained =
      p.run({"train", "tiny.toml", "--run", "runs/b", "--set", "train.images=80", "--json", "-q"});
  std::istringstream lines(trained.out);
  std::vector<json> objects;
  for (std::string line; std::getline(lines, line);) objects.push_back(json::parse(line));
  ASSERT_GE(objects.size(), 4u);
  EXPECT_EQ(objects.front().at("event"), "start");
  EXPECT_EQ(objects.back().at("result").at("images_seen"), 80);
  EXPECT_EQ(trained.err, "");
}

TEST_F(CommandLine, ADryRunWritesNothing) {
  train();
  const auto files = [&] {
    std::vector<std::string> out;
    for (const auto& entry : fs::recursive_directory_iterator(p.folder)) {
      const std::string name = entry.path().filename();
      if (name != "stdout" && name != "stderr") out.push_back(entry.path());
    }
    std::sort(out.begin(), out.end());
    return out;
  };
  ASSERT_EQ(p.run({"sample", "runs/tiny", "-o", "a.png"}).exit, 0);
  ASSERT_EQ(p.run({"train", "tiny.toml", "--run", "runs/other", "--set", "train.images=80"}).exit,
            0);
  const auto before = files();
  for (const std::vector<std::string>& command : std::vector<std::vector<std::string>>{
           {"train", "tiny.toml", "--run", "runs/third", "-n"},
           {"sample", "runs/tiny", "-o", "b.png", "-n"},
           {"sample", "runs/tiny", "-o", "b/", "-n", "--count", "3"},
           {"sample", "runs/tiny", "-o", "b.png", "--seeds", "2", "-n"},
           {"eval", "runs/tiny", "--metrics", "energy_pixels", "-n"},
           {"regenerate", "a.png", "-o", "again.png", "-n"},
           {"report", "runs/tiny", "-n"},
           {"compare", "runs/tiny", "runs/other", "--html", "c.html", "-n"},
           {"data", "check", "tiny.toml", "--sheet", "sheet.png", "-n"},
           {"config", "show", "tiny.toml", "-o", "all.toml", "-n"}}) {
    const Finished r = p.run(command);
    EXPECT_EQ(r.exit, 0) << r.err;
    EXPECT_FALSE(r.out.empty());
    EXPECT_EQ(files(), before) << command[0];
  }
  EXPECT_CONTAINS(p.run({"sample", "runs/tiny", "-o", "b/", "-n", "--count", "3"}).out,
                  "would write b/000002.png\nwould write b/000002.png.json\n");
  EXPECT_CONTAINS(p.run({"eval", "runs/tiny", "--metrics", "energy_pixels", "-n"}).out,
                  "would write runs/tiny/log.jsonl\n");
  // What training was to write is what it writes.
  std::vector<std::string> train = {"train",      "tiny.toml", "--run",
                                    "runs/third", "--set",     "train.images=80"};
  EXPECT_EQ(p.run(train).exit, 0);
  train.insert(train.end(), {"--json", "-n"});
  std::vector<std::string> planned = json::parse(p.run(train).out).at("result").at("files");
  train.pop_back();
  train.back() = "-n";
  const std::string text = p.run(train).out;
  for (const std::string& file : planned) EXPECT_CONTAINS(text, "would write " + file + "\n");
  std::vector<std::string> written;
  for (const auto& entry : fs::directory_iterator(p.folder / "runs/third"))
    written.push_back("runs/third/" + entry.path().filename().string());
  std::sort(planned.begin(), planned.end());
  std::sort(written.begin(), written.end());
  EXPECT_EQ(planned, written);
}

TEST_F(CommandLine, FilesAreOverwrittenOnlyByForce) {
  train();
  p.write("mine.png", "precious");
  const Finished r = p.run({"sample", "runs/tiny", "-o", "mine.png"});
  EXPECT_EQ(r.exit, 2);
  EXPECT_CONTAINS(r.err, "mine.png: expected a new file, found one");
  EXPECT_CONTAINS(r.err, "-f overwrites it");
  EXPECT_EQ(read_file(p.folder / "mine.png"), "precious");
  EXPECT_EQ(p.run({"sample", "runs/tiny", "-o", "mine.png", "-f"}).exit, 0);
  EXPECT_EQ(decode_image(read_file(p.folder / "mine.png"), "mine").channels, 1);
  // The records beside pictures too.
  for (const std::string& file : {"grid.png", "folder/000001.png", "sweep.png"}) {
    p.write(file + ".json", "precious");
    const std::string out = file.starts_with("folder") ? "folder/" : file;
    std::vector<std::string> command = {"sample", "runs/tiny", "-o", out, "--count", "2"};
    if (file == "sweep.png") command.insert(command.end(), {"--seeds", "1", "--samples", "0"});
    const Finished refused = p.run(command);
    EXPECT_EQ(refused.exit, 2);
    EXPECT_CONTAINS(refused.err, file + ".json: expected a new file, found one");
    EXPECT_EQ(read_file(p.folder / (file + ".json")), "precious");
    EXPECT_FALSE(fs::exists(p.folder / file));
  }
  // Text that would go to stdout goes to a file.
  EXPECT_EQ(p.run({"config", "show", "tiny.toml", "-o", "all.toml"}).out, "");
  EXPECT_EQ(p.run({"config", "check", "all.toml"}).exit, 0);
  EXPECT_EQ(p.run({"version", "--json", "-o", "all.toml"}).exit, 2);
  EXPECT_EQ(p.run({"version", "--json", "-o", "all.toml", "--force"}).exit, 0);
  EXPECT_EQ(json::parse(read_file(p.folder / "all.toml")).at("ok"), true);
}

TEST_F(CommandLine, VerboseAndQuiet) {
  const Finished verbose = p.run({"config", "check", "tiny.toml", "-v"});
  EXPECT_CONTAINS(verbose.err, "torch");
  EXPECT_CONTAINS(verbose.err, "config check: ");
  EXPECT_EQ(p.run({"config", "check", "tiny.toml"}).err, "");
  const std::vector<std::string> command = {"train", "tiny.toml", "--set", "train.images=80"};
  EXPECT_CONTAINS(p.run(command).err, "step 10/10");
  std::vector<std::string> quiet = command;
  quiet.insert(quiet.end(), {"--run", "runs/quiet", "-q"});
  EXPECT_EQ(p.run(quiet).err, "");
}

TEST_F(CommandLine, ColoursAreForTerminalsThatWantThem) {
  const std::vector<std::string> wrong = {"show", "nothing"};
  const std::string red = "\x1b[31m";
  EXPECT_CONTAINS(on_terminal(wrong, [] {}), red);
  EXPECT_CONTAINS(on_terminal(wrong, [] { setenv("NO_COLOR", "", 1); }), red);
  EXPECT_FALSE(contains(on_terminal(wrong, [] { setenv("NO_COLOR", "1", 1); }), "\x1b"));
  EXPECT_FALSE(contains(on_terminal(wrong, [] { setenv("TERM", "dumb", 1); }), "\x1b"));
  EXPECT_FALSE(contains(on_terminal({"show", "nothing", "--color", "never"}, [] {}), "\x1b"));
  EXPECT_FALSE(contains(p.run(wrong).err, "\x1b"));
  EXPECT_CONTAINS(p.run({"show", "nothing", "--color", "always"}).err, red);
  EXPECT_EQ(p.run({"version", "--color", "sometimes"}).exit, 2);
  // Progress is redrawn on a terminal, and plain lines elsewhere and on a dumb one.
  const std::vector<std::string> train = {"train", "tiny.toml", "--set", "train.images=80",
                                          "--run"};
  const auto with = [&](const std::string& run) {
    std::vector<std::string> out = train;
    out.push_back(run);
    return out;
  };
  EXPECT_CONTAINS(on_terminal(with("runs/a"), [] {}), "\r\x1b[K");
  EXPECT_FALSE(contains(on_terminal(with("runs/b"), [] { setenv("TERM", "dumb", 1); }), "\x1b"));
}

TEST_F(CommandLine, AClosedPipeEndsTheOutputQuietlyAndAFullDiskDoesNot) {
  const auto closed_pipe = [](int descriptor) {
    return [descriptor] {
      int ends[2];
      if (pipe(ends) != 0) _exit(99);
      close(ends[0]);
      dup2(ends[1], descriptor);
    };
  };
  // Longer than a pipe's or a stream's buffer.
  for (const char* format : {"--json", "--quiet"}) {
    const Finished r = p.run({"config", "keys", format}, closed_pipe(STDOUT_FILENO));
    EXPECT_EQ(r.exit, 0);
    EXPECT_EQ(r.err, "");
  }
  EXPECT_EQ(p.run({"--help"}, closed_pipe(STDOUT_FILENO)).exit, 0);
  // Nobody reads the progress: the training goes on.
  EXPECT_EQ(p.run({"train", "tiny.toml", "--set", "train.images=80", "--set", "log.interval=0"},
                  closed_pipe(STDERR_FILENO))
                .exit,
            0);
  EXPECT_TRUE(fs::exists(p.folder / "runs/tiny/checkpoints/step-0000010"));
  const Finished full =
      p.run({"version"}, [] { dup2(open("/dev/full", O_WRONLY | O_CLOEXEC), STDOUT_FILENO); });
  EXPECT_EQ(full.exit, 7);
  EXPECT_CONTAINS(full.err, "standard output: cannot write");
}

}  // namespace
}  // namespace sigma
