// The tokenizer as a whole: independence of the batch, prefixes, masks, heads, and its gradient by
// differences. Published models by number are golden files.
#include "sigma/tokenizer/tokenizer.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <limits>

#include "sigma/trunk/patches.h"
#include "tests/testing/errors.h"
#include "tests/testing/numbers.h"
#include "tests/tokenizer/small_tokenizer.h"

namespace sigma {
namespace {

using testing::error_of;
using testing::expect_contains;
using torch::Tensor;

constexpr double kEps = std::numeric_limits<float>::epsilon();
constexpr double kStep = 1e-5;

TEST(Tokenizer, EvaluationIsTheSameInAnyBatch) {
  const torch::NoGradGuard no_grad;
  const auto model = make(masked("replace"));
  const Tensor images = normal({5, 3, 8, 12}, 1, torch::kFloat);
  const Tensor latents = model->encode(images, {});
  const Tensor drawn = model->decode(latents, {});
  EXPECT_TRUE(torch::equal(model->encode(images, {}), latents));
  EXPECT_TRUE(torch::equal(model->decode(latents, {}), drawn));
  const Tensor alone = model->encode(images.narrow(0, 3, 1), {});
  EXPECT_LT(error(alone, latents.narrow(0, 3, 1)), 16 * kEps * latents.abs().max().item<double>());
  EXPECT_LT(error(model->decode(alone, {}), drawn.narrow(0, 3, 1)),
            16 * kEps * drawn.abs().max().item<double>());
}

// A training pass of two samples of a batch: their masks, noise, prefixes and results.
TEST(Tokenizer, TrainingIsTheSameInAnyBatch) {
  TokenizerConfig config = masked("replace");
  config.mask.low = 0.1, config.mask.high = 0.9;
  config.bottleneck.kind = "kl";
  config.nesting.kind = "nested";
  const auto model = make(config);
  const Tensor images = normal({6, 3, 8, 12}, 1, torch::kFloat);
  const Tensor chosen = torch::tensor({4, 1});
  const Context all = training(torch::arange(6)), part = training(chosen);
  const Tensor hidden = model->mask_of(all).hidden;
  EXPECT_TRUE(torch::equal(model->mask_of(part).hidden, hidden.index_select(0, chosen)));
  EXPECT_FALSE((hidden == hidden[0]).all().item<bool>());
  const Tensor whole = model->forward(images, all).value;
  const Tensor cut = model->forward(images.index_select(0, chosen), part).value;
  EXPECT_LT(error(cut, whole.index_select(0, chosen)),
            16 * kEps * whole.abs().max().item<double>());
}

TEST(Tokenizer, APrefixOfTheLatentsIsAllThatCounts) {
  const torch::NoGradGuard no_grad;
  for (const char* null : {"per_slot", "shared"}) {
    TokenizerConfig config = small();
    config.nesting = {.kind = "nested", .null = null};
    const auto model = make(config);
    const Tensor latents = normal({2, 4, 3}, 1, torch::kFloat);
    for (const int64_t keep : {1, 3, 4}) {
      Tensor others = latents.clone();
      others.narrow(1, keep, 4 - keep).fill_(7);
      const Tensor image = model->decode(latents, {}, keep);
      EXPECT_TRUE(torch::equal(model->decode(others, {}, keep), image));
      others.select(1, keep - 1).fill_(7);
      EXPECT_GT(error(model->decode(others, {}, keep), image), 1e-3);
    }
    EXPECT_TRUE(torch::equal(model->decode(latents, {}, 4), model->decode(latents, {})));
  }
}

TEST(Tokenizer, ReadsAnyNumberOfChannels) {
  for (const int64_t channels : {1, 3, 5}) {
    TokenizerConfig config = masked("replace");
    config.hog.weight = 1;
    config.pixel.conv = true;
    const auto model = make(config, {channels, 8, 12});
    const Tensor images = normal({2, channels, 8, 12}, 1, torch::kFloat);
    const Output out = model->forward(images, training(torch::arange(2)));
    EXPECT_EQ(out.value.sizes(), images.sizes());
    total(out.losses).backward();
    for (const auto& item : model->named_parameters())
      EXPECT_TRUE(item.value().grad().isfinite().all().item<bool>()) << item.key();
    const torch::NoGradGuard no_grad;
    const Tensor latents = model->encode(images, {});
    EXPECT_EQ(latents.sizes(), (std::vector<int64_t>{2, 4, 3}));
    EXPECT_EQ(model->decode(latents, {}).sizes(), images.sizes());
  }
}

TEST(Tokenizer, DroppedPatchesLeaveFiniteGradients) {
  TokenizerConfig config = in_place("drop");
  config.down = false;
  config.bottleneck.dim = config.encoder.trunk.hidden_size;
  config.decoder.encoder_prefix = true;
  config.pixel = {.target = "norm_pixel", .masked_only = true};
  for (const bool queries : {false, true}) {
    const auto model = make(queries ? masked("drop") : config);
    Tensor images = normal({2, 3, 8, 12}, 1, torch::kFloat);
    images[0].fill_(0.5);  // patches without deviation
    total(model->forward(images, training(torch::arange(2))).losses).backward();
    for (const auto& item : model->named_parameters()) {
      ASSERT_TRUE(item.value().grad().defined()) << item.key();
      EXPECT_TRUE(item.value().grad().isfinite().all().item<bool>()) << item.key();
    }
  }
}

// A prediction of zeros shows every patch's mean.
TEST(Tokenizer, NormalisedPatchesAreShownAsImages) {
  const torch::NoGradGuard no_grad;
  TokenizerConfig config = small();
  config.pixel.target = "norm_pixel";
  const auto model = make(config);
  model->named_parameters()["decoder.head.weight"].zero_();
  const Tensor images = normal({2, 3, 8, 12}, 1, torch::kFloat);
  const Tensor shown = patchify(model->forward(images, training(torch::arange(2))).value, 4);
  const Tensor means = patchify(images, 4).mean(2, /*keepdim=*/true);
  EXPECT_LT(error(shown, means.expand_as(shown)), 4 * kEps);
}

TEST(Tokenizer, TheHogHeadTeachesTheEncoder) {
  TokenizerConfig config = masked("replace");
  config.hog.weight = 2;
  config.hog.masked_only = true;
  const auto model = make(config);
  const Output out =
      model->forward(normal({2, 3, 8, 12}, 1, torch::kFloat), training(torch::arange(2)));
  out.losses.at("hog").backward();
  for (const auto& item : model->named_parameters()) {
    const Tensor gradient = item.value().grad();
    const bool main_decoder = item.key().starts_with("decoder.");
    EXPECT_EQ(gradient.defined() && gradient.abs().max().item<double>() > 0, !main_decoder)
        << item.key();
  }
}

TEST(Tokenizer, CodesAreLatents) {
  const torch::NoGradGuard no_grad;
  TokenizerConfig config = small();
  config.bottleneck.kind = "vq";
  config.bottleneck.norm = "l2";
  config.bottleneck.codes = 11;
  const auto model = make(config);
  const Tensor images = normal({9, 3, 8, 12}, 1, torch::kFloat);
  const Coded raw = model->encode_raw(images, {});
  model->fit_latent_norm({raw.latents});
  const Tensor latents = model->encode(images, {});
  const Tensor rows = latents.view({-1, 3});
  EXPECT_LT(error(rows.mean(0), torch::zeros({3})), 4 * kEps);
  EXPECT_LT(error(rows.std(0, /*unbiased=*/false), torch::ones({3})), 4 * kEps);
  EXPECT_LT(error(model->latents_of(raw.indices), latents),
            8 * kEps * latents.abs().max().item<double>());
  expect_contains(
      error_of(ErrorKind::kUsage, [&] { model->latents_of(torch::tensor({{0, 1, 2, 11}})); }),
      "codes in [0, 11)");
  expect_contains(error_of(ErrorKind::kUsage, [&] { make(small())->latents_of(raw.indices); }),
                  "bottleneck.kind");
  expect_contains(
      error_of(ErrorKind::kUsage, [&] { model->fit_latent_norm({raw.latents.narrow(0, 0, 7)}); }),
      "latent_norm: expected at least 30 tokens, got 28");
}

// Matrix products in bfloat16, the rest in float32.
TEST(Tokenizer, TrainsInHalfPrecision) {
  TokenizerConfig config = masked("replace");
  config.bottleneck.kind = "kl";
  config.hog.weight = 1;
  const auto model = make(config);
  const Tensor images = normal({2, 3, 8, 12}, 1, torch::kFloat);
  Context context = training(torch::arange(2));
  const Output wide = model->forward(images, context);
  context.dtype = torch::kBFloat16;
  const Output out = model->forward(images, context);
  EXPECT_EQ(out.value.scalar_type(), torch::kFloat);
  const double difference = error(out.value, wide.value);
  EXPECT_GT(difference, 0);
  EXPECT_LT(difference, 0.02 * wide.value.abs().max().item<double>());
  for (const auto& [name, loss] : out.losses)
    EXPECT_NEAR(loss.item<double>(), wide.losses.at(name).item<double>(),
                0.02 * wide.losses.at(name).item<double>());
}

// One parameter along a random direction: its difference quotient is the gradient's part.
void expect_gradients(const TokenizerConfig& config) {
  const auto model = make(config);
  model->to(torch::kDouble);
  const Tensor images = normal({2, 3, 8, 12}, 1);
  const Context context = training(torch::arange(2));
  const auto loss = [&] { return total(model->forward(images, context).losses); };
  const auto move = [](Tensor parameter, const Tensor& by) {
    const torch::NoGradGuard no_grad;
    parameter.add_(by);
  };
  uint32_t site = 2;
  for (const Tensor& parameter : model->parameters())  // nothing starts at zero
    move(parameter, 0.3 * normal(parameter.sizes(), site++));
  loss().backward();
  for (const auto& item : model->named_parameters()) {
    const Tensor gradient = item.value().grad();
    ASSERT_TRUE(gradient.defined()) << item.key();
    Tensor direction = normal(gradient.sizes(), site++);
    direction = direction / direction.norm();
    move(item.value(), kStep * direction);
    const double up = loss().item<double>();
    move(item.value(), -2 * kStep * direction);
    const double down = loss().item<double>();
    move(item.value(), kStep * direction);
    const double size = gradient.norm().item<double>();
    EXPECT_GT(size, 1e-4) << item.key();
    EXPECT_NEAR((up - down) / (2 * kStep), (gradient * direction).sum().item<double>(),
                1e-6 * size + 1e-9)
        << item.key();
  }
}

TEST(Tokenizer, GradientsByDifferences) {
  TokenizerConfig config = masked("replace");
  config.bottleneck.kind = "kl";
  config.bottleneck.kl_weight = 0.1;
  config.decoder.condition = "latent_tokens";
  config.decoder.trunk.depth = 2;
  config.decoder.trunk.rope.kind = "mixed";
  config.hog.weight = 1;
  expect_gradients(config);
}

TEST(Tokenizer, GradientsOfNestedPrefixesByDifferences) {
  TokenizerConfig config = masked("drop");
  config.encoder.causal = true;
  config.encoder.trunk.pre_norm = true;
  config.encoder.trunk.layer_scale = 0.5;
  config.encoder.trunk.rope.kind = "mixed";
  config.bottleneck.norm = "layer";
  config.nesting.kind = "nested";
  config.decoder.image_query = "per_position";
  config.decoder.order = "latents_first";
  config.pixel = {.target = "norm_pixel", .masked_only = true, .conv = true};
  expect_gradients(config);
}

}  // namespace
}  // namespace sigma
