// What a tokenizer refuses, by the name of the key.
#include <gtest/gtest.h>
#include <torch/types.h>

#include "tests/testing/errors.h"
#include "tests/tokenizer/small_tokenizer.h"

namespace sigma {
namespace {

using testing::error_of;
using testing::expect_contains;
using torch::Tensor;

TEST(TokenizerErrors, NameTheKey) {
  const auto refuses = [](const std::string& key, const TokenizerConfig& config,
                          const std::vector<int64_t>& shape = kShape) {
    expect_contains(error_of(ErrorKind::kUsage, [&] { make(config, shape); }), key);
  };
  refuses("patch_size", small(), {3, 8, 10});
  TokenizerConfig config = small();
  config.encoder.queries = 0;
  refuses("tokenizer.decoder.layout", config);
  config = in_place("none");
  config.encoder.queries = 4;
  refuses("tokenizer.decoder.layout", config);
  config = small();
  config.pixel.masked_only = true;
  refuses("tokenizer.pixel.masked_only", config);
  config = small();
  config.hog = {.weight = 1, .masked_only = true};
  refuses("tokenizer.hog.masked_only", config);
  config = small();
  config.decoder.condition = "latent_tokens";
  config.decoder.order = "latents_first";
  refuses("tokenizer.decoder.condition", config);
  config = in_place("drop");
  config.encoder.trunk.rope.kind = "sequence";
  refuses("tokenizer.encoder.trunk.rope.kind", config);
  config = in_place("none");
  config.nesting.kind = "nested";
  refuses("tokenizer.nesting", config);
  config = in_place("none");
  config.decoder.encoder_prefix = true;
  refuses("tokenizer.decoder.encoder_prefix", config);
  config = small();
  config.down = false;
  refuses("tokenizer.down", config);
}

TEST(TokenizerErrors, OfDecoding) {
  const Tensor latents = torch::zeros({1, 4, 3});
  const auto decode = [&](const TokenizerConfig& of, int64_t keep) {
    return error_of(ErrorKind::kUsage, [&] { make(of)->decode(latents, {}, keep); });
  };
  expect_contains(decode(small(), 2), "keep");
  TokenizerConfig config = small();
  config.nesting.kind = "nested";
  for (const int64_t keep : {0, 5}) expect_contains(decode(config, keep), "keep: expected 1 to 4");
  config = small();
  config.pixel.target = "norm_pixel";
  expect_contains(decode(config, -1), "tokenizer.pixel.target");
  config = in_place("none");
  config.down = false;
  config.bottleneck.dim = config.encoder.trunk.hidden_size;
  config.decoder.encoder_prefix = true;
  expect_contains(
      error_of(ErrorKind::kUsage, [&] { make(config)->decode(torch::zeros({1, 6, 16}), {}); }),
      "tokenizer.decoder.encoder_prefix");
}

}  // namespace
}  // namespace sigma
