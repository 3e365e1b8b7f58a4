// The programs of examples/, one after the other: train on a folder of images, sample from the run,
// use an operator.
#include "sigma/io/images.h"
#include "tests/cli/program.h"

namespace sigma {
namespace {

TEST(Examples, TrainOnAFolderSampleFromItsRunUseAnOperator) {
  const Program p("examples");
  // Bright above, or bright on the left.
  for (int i = 0; i < 16; ++i) {
    Image image{.height = 20, .width = 20, .channels = 1, .pixels = {}};
    for (int y = 0; y < 20; ++y)
      for (int x = 0; x < 20; ++x)
        image.pixels.push_back(
            static_cast<uint8_t>(((i % 2 == 0 ? y : x) < 8 + i % 5 ? 180 : 40) + (x * 3 + y) % 20));
    p.write(fmt::format("photos/{}/{:02}.png", i % 2 == 0 ? "above" : "left", i),
            encode_png(image));
  }
  const auto run = [&](const std::string& name, const std::vector<std::string>& arguments) {
    return p.run_program(SIGMA_BINARY_DIR "/examples/" + name, arguments);
  };
  EXPECT_EQ(run("train_folder", {}).exit, 2);
  EXPECT_EQ(run("train_folder", {"none", "runs/a", "64"}).exit, 3);
  const Finished trained = run("train_folder", {"photos", "runs/a", "64"});
  ASSERT_EQ(trained.exit, 0) << trained.err;
  EXPECT_CONTAINS(trained.out, "64 images seen");

  const Finished sampled = run("sample_run", {"runs/a", "samples.png", "2"});
  ASSERT_EQ(sampled.exit, 0) << sampled.err;
  EXPECT_CONTAINS(sampled.out, "8 images, steps 2");
  // Two labels of four images, each doubled: what the program says of the file holds.
  EXPECT_EQ(decode_image(read_file(p.folder / "samples.png"), "samples").height, 2 * 32 + 2);
  EXPECT_EQ(p.run({"regenerate", "samples.png"}).exit, 0);
  EXPECT_EQ(run("sample_run", {"no-such-run", "samples.png"}).exit, 2);

  const Finished op = run("use_op", {});
  EXPECT_EQ(op.exit, 0) << op.err;
  EXPECT_CONTAINS(op.out, "out [2,2,16,8]");
}

}  // namespace
}  // namespace sigma
