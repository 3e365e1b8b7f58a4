// Which path runs: what is asked for, what falls back, and what is logged.
#include "sigma/attention/path.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/testing/errors.h"

namespace sigma {
namespace {

constexpr auto kReference = AttentionPath::kReference;
constexpr auto kPortable = AttentionPath::kPortable;
constexpr auto kHopper = AttentionPath::kHopper;

class Path : public ::testing::Test, public c10::WarningHandler {
 protected:
  void process(const c10::Warning& warning) override { lines_.push_back(warning.msg()); }
  void TearDown() override { unsetenv("SIGMA_ATTENTION"); }

  // Of an operator of its own: reasons are logged once. `hopper`, `portable`: why they refuse.
  AttentionPath choose(const std::string& op, AttentionPath fastest, const std::string& hopper,
                       const std::string& portable) {
    const c10::WarningUtils::WarningHandlerGuard guard(this);
    lines_.clear();
    return attention_path(op, fastest,
                          [&](AttentionPath path) { return path == kHopper ? hopper : portable; });
  }
  void ask(const char* name) { setenv("SIGMA_ATTENTION", name, 1); }

  std::vector<std::string> lines_;
};

TEST_F(Path, TheFastestThatTakesTheInput) {
  EXPECT_EQ(choose("a", kHopper, "", ""), kHopper);
  EXPECT_EQ(choose("a", kPortable, "", ""), kPortable);
  EXPECT_EQ(choose("a", kReference, "", ""), kReference);
  EXPECT_TRUE(lines_.empty());
}

TEST_F(Path, FallingBackIsLoggedOnceAReason) {
  EXPECT_EQ(choose("b", kHopper, "wide heads", ""), kPortable);
  EXPECT_EQ(lines_, std::vector<std::string>{"b does not run as hopper: wide heads"});
  EXPECT_EQ(choose("b", kHopper, "wide heads", ""), kPortable);
  EXPECT_TRUE(lines_.empty());
  EXPECT_EQ(choose("b", kHopper, "wide heads", "wider heads"), kReference);
  EXPECT_EQ(lines_, std::vector<std::string>{"b does not run as portable: wider heads"});
  EXPECT_EQ(choose("c", kHopper, "wide heads", ""), kPortable);
  EXPECT_EQ(lines_.size(), 1U);
}

TEST_F(Path, TheEnvironmentNamesTheFastest) {
  ask("portable");
  EXPECT_EQ(choose("d", kHopper, "", ""), kPortable);
  ask("reference");
  EXPECT_EQ(choose("d", kHopper, "", ""), kReference);
  EXPECT_TRUE(lines_.empty());  // as asked
  ask("hopper");
  EXPECT_EQ(choose("d", kHopper, "", ""), kHopper);
  EXPECT_EQ(choose("d", kHopper, "wide heads", ""), kPortable);
  EXPECT_EQ(choose("d", kPortable, "", ""), kPortable);
  EXPECT_EQ(lines_.size(), 1U);  // no such kernels
  EXPECT_EQ(choose("d", kPortable, "", "wide heads"), kReference);
  EXPECT_EQ(lines_.size(), 1U);
  ask("");
  EXPECT_EQ(choose("d", kHopper, "", ""), kHopper);
}

TEST_F(Path, AnotherNameIsAnError) {
  ask("fastest");
  testing::expect_error(ErrorKind::kUsage, "expected reference, portable or hopper, got fastest",
                        [&] { choose("e", kHopper, "", ""); });
}

}  // namespace
}  // namespace sigma
