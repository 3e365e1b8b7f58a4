// sigma/base/random.h against Random123's known answers, the golden bits of the specification, and
// the definitions.
#include "sigma/base/random.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "sigma/base/error.h"
#include "sigma/base/philox.h"
#include "sigma/base/sha256.h"

namespace sigma {
namespace {

using torch::Tensor;

Tensor indices(std::vector<int64_t> values) { return torch::tensor(values, torch::kInt64); }

std::vector<uint32_t> bits(const Tensor& x) {
  std::vector<uint32_t> out;
  for (int64_t i = 0; i < x.numel(); ++i)
    out.push_back(std::bit_cast<uint32_t>(x.data_ptr<float>()[i]));
  return out;
}

void expect_words(const PhiloxWords& words, std::array<uint32_t, 4> expected) {
  for (int i = 0; i < 4; ++i) EXPECT_EQ(words.w[i], expected[i]) << "word " << i;
}

TEST(Philox, KnownAnswers) {
  expect_words(philox(0, 0, 0, 0), {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  expect_words(philox(~0ull, ~0u, ~0ull, ~0u), {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  expect_words(philox(0x299f31d0a4093822ull, 0x85a308d3, 0x0370734413198a2eull, 0x243f6a88),
               {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST(Philox, UniformsStayInsideTheOpenInterval) {
  for (const uint32_t w : {0u, 1u, 0x7fffffffu, 0xffffffffu}) {
    EXPECT_EQ(uniform_double(w), (w + 0.5) * std::ldexp(1.0, -32));
    EXPECT_GT(uniform_float(w), 0.0f);
    EXPECT_LT(uniform_float(w), 1.0f);
    EXPECT_EQ(static_cast<double>(uniform_float(w)), ((w >> 9) + 0.5) * std::ldexp(1.0, -23));
  }
}

TEST(Philox, UniformBelowIsTheHighHalfOfTheProduct) {
  for (const uint64_t n : {1ull, 3ull, 1ull << 32, (1ull << 63) - 25, ~0ull}) {
    for (uint32_t block = 0; block < 50; ++block) {
      const PhiloxWords words = philox(3, 4, 5, block);
      const uint64_t x = words.w[0] | static_cast<uint64_t>(words.w[1]) << 32;
      const auto expected = static_cast<uint64_t>((static_cast<unsigned __int128>(x) * n) >> 64);
      EXPECT_EQ(uniform_below(words, n), expected);
    }
  }
}

TEST(Philox, NormalsAgreeWithTheMathematicsLibrary) {
  double largest = 0;
  for (uint32_t block = 0; block < 20000; ++block) {
    const PhiloxWords words = philox(11, 7, 3, block);
    double z0 = 0;
    double z1 = 0;
    normal_pair(words.w[0], words.w[1], &z0, &z1);
    const double r = std::sqrt(-2 * std::log(uniform_double(words.w[0])));
    const double angle = 2 * M_PI * uniform_double(words.w[1]);
    // 2 pi u itself is rounded by up to 2^-52 pi in the reference.
    EXPECT_NEAR(z0, r * std::cos(angle), 4e-15 * (1 + r));
    EXPECT_NEAR(z1, r * std::sin(angle), 4e-15 * (1 + r));
    largest = std::max({largest, std::abs(z0), std::abs(z1)});
  }
  EXPECT_LE(largest, 6.7638);
  double z0 = 0;
  double z1 = 0;
  normal_pair(0, 0, &z0, &z1);  // the smallest uniform number gives the largest normal one
  EXPECT_NEAR(z0, std::sqrt(2 * 33 * std::log(2)), 1e-12);
}

TEST(FillNormal, GoldenBits) {
  Tensor out = torch::empty({4});
  fill_normal_keyed(out, 0, 0, 0);
  EXPECT_EQ(bits(out), (std::vector<uint32_t>{0x3f7dbb33, 0xbf6cb6b0, 0xbf1e1b9f, 0xbef6d1b2}));

  Tensor row = torch::empty({1, 4});
  fill_normal(row, {.seed = 1, .step = 0}, Purpose::kNoise, 0, indices({7}));
  EXPECT_EQ(bits(row), (std::vector<uint32_t>{0xbf9f1a6e, 0x40061461, 0xbf30aaa9, 0xbf85dc0d}));

  fill_normal(row, {.seed = 0x123456789abcdef0, .step = 1}, Purpose::kPrior, 2, indices({1}));
  EXPECT_EQ(bits(row), (std::vector<uint32_t>{0x3faaaabb, 0x3ef5a478, 0xbf85a54e, 0xbf792aba}));
}

TEST(Stream, PurposeAboveSite) {
  EXPECT_EQ(random_stream(Purpose::kPrior, 2), 0x10000002u);
  EXPECT_EQ(random_stream(Purpose::kInit, 0), 0x01000000u);
  EXPECT_EQ(random_stream(Purpose::kBootstrap, (1 << 24) - 1), 0x21ffffffu);
  EXPECT_THROW(random_stream(Purpose::kInit, 1 << 24), Error);
}

template <typename Fill>
void expect_any_split_equal(torch::ScalarType dtype, Fill fill) {
  const std::vector<int64_t> keys = {3, 0, 1ll << 31, 12, 7, 5, 99};
  Tensor whole =
      torch::empty({7, 3, 5}, dtype);  // 15 numbers a sample: rows do not end at a block's border
  fill(whole, indices(keys));
  for (const int64_t cut : {1, 3, 6}) {
    Tensor first = torch::empty({cut, 3, 5}, dtype);
    Tensor second = torch::empty({7 - cut, 3, 5}, dtype);
    fill(first, indices({keys.begin(), keys.begin() + cut}));
    fill(second, indices({keys.begin() + cut, keys.end()}));
    EXPECT_TRUE(torch::equal(whole, torch::cat({first, second}))) << cut;
  }
  Tensor backwards = torch::empty({7, 3, 5}, dtype);
  fill(backwards, indices({keys.rbegin(), keys.rend()}));
  EXPECT_TRUE(torch::equal(whole, backwards.flip(0)));
  EXPECT_FALSE(torch::equal(whole[0], whole[1]));
}

TEST(Fill, AnySplitOfTheBatchGivesEqualBits) {
  const Rng rng{.seed = 5, .step = 9};
  for (const auto dtype : {torch::kFloat, torch::kDouble, torch::kBFloat16, torch::kHalf}) {
    expect_any_split_equal(dtype, [&](const Tensor& out, const Tensor& i) {
      fill_normal(out, rng, Purpose::kNoise, 3, i);
    });
  }
  for (const auto dtype : {torch::kFloat, torch::kDouble}) {
    expect_any_split_equal(dtype, [&](const Tensor& out, const Tensor& i) {
      fill_uniform(out, rng, Purpose::kTimes, 3, i);
    });
  }
}

TEST(Fill, NarrowDtypesAreRoundedFromTheWiderOnes) {
  const Rng rng{.seed = 1, .step = 2};
  const auto draw = [&](torch::ScalarType dtype) {
    Tensor out = torch::empty({4, 101}, dtype);
    fill_normal(out, rng, Purpose::kNoise, 0, indices({0, 1, 2, 3}));
    return out;
  };
  const Tensor f64 = draw(torch::kDouble);
  const Tensor f32 = draw(torch::kFloat);
  EXPECT_TRUE(torch::equal(f64.to(torch::kFloat), f32));
  EXPECT_TRUE(torch::equal(f32.to(torch::kBFloat16), draw(torch::kBFloat16)));
  EXPECT_TRUE(torch::equal(f32.to(torch::kHalf), draw(torch::kHalf)));
}

TEST(Fill, ElementsAreTheWordsOfTheirSample) {
  const Rng rng{.seed = 0xabcdef0123, .step = 6};
  Tensor u64 = torch::empty({2, 9}, torch::kDouble);
  Tensor u32 = torch::empty({2, 9}, torch::kFloat);
  fill_uniform(u64, rng, Purpose::kMask, 5, indices({8, 1000}));
  fill_uniform(u32, rng, Purpose::kMask, 5, indices({8, 1000}));
  const std::array<uint64_t, 2> samples = {(6ull << 32) | 8, (6ull << 32) | 1000};
  for (int b = 0; b < 2; ++b) {
    for (uint32_t n = 0; n < 9; ++n) {
      const uint32_t w =
          philox(rng.seed, random_stream(Purpose::kMask, 5), samples[b], n / 4).w[n % 4];
      EXPECT_EQ(u64[b][n].item<double>(), uniform_double(w));
      EXPECT_EQ(u32[b][n].item<float>(), uniform_float(w));
    }
  }
}

TEST(Fill, PurposeSiteStepAndSeedAllMatter) {
  const auto draw = [](Rng rng, Purpose purpose, uint32_t site, int64_t index) {
    Tensor out = torch::empty({1, 8});
    fill_normal(out, rng, purpose, site, indices({index}));
    return out;
  };
  const Tensor base = draw({1, 1}, Purpose::kNoise, 0, 0);
  EXPECT_FALSE(torch::equal(base, draw({2, 1}, Purpose::kNoise, 0, 0)));
  EXPECT_FALSE(torch::equal(base, draw({1, 2}, Purpose::kNoise, 0, 0)));
  EXPECT_FALSE(torch::equal(base, draw({1, 1}, Purpose::kTimes, 0, 0)));
  EXPECT_FALSE(torch::equal(base, draw({1, 1}, Purpose::kNoise, 1, 0)));
  EXPECT_FALSE(torch::equal(base, draw({1, 1}, Purpose::kNoise, 0, 1)));
  EXPECT_TRUE(torch::equal(base, draw({1, 1}, Purpose::kNoise, 0, 0)));
}

TEST(Fill, EmptyBatchIsFine) {
  Tensor out = torch::empty({0, 4});
  fill_normal(out, {}, Purpose::kNoise, 0, indices({}));
  EXPECT_EQ(out.numel(), 0);
}

TEST(Fill, MomentsWithinFiveStandardErrors) {
  constexpr double kCount = 1 << 20;
  Tensor z = torch::empty({1024, 1024}, torch::kDouble);
  fill_normal(z, {.seed = 42, .step = 1}, Purpose::kNoise, 0, torch::arange(1024));
  EXPECT_NEAR(z.mean().item<double>(), 0, 5 / std::sqrt(kCount));
  EXPECT_NEAR(z.square().mean().item<double>(), 1, 5 * std::sqrt(2 / kCount));
  EXPECT_NEAR(z.pow(3).mean().item<double>(), 0, 5 * std::sqrt(15 / kCount));
  EXPECT_NEAR(z.pow(4).mean().item<double>(), 3, 5 * std::sqrt(96 / kCount));
  // Neighbours within a sample and samples at equal places are uncorrelated.
  EXPECT_NEAR((z.slice(1, 1) * z.slice(1, 0, 1023)).mean().item<double>(), 0,
              5 / std::sqrt(kCount * 0.99));
  EXPECT_NEAR((z.slice(0, 1) * z.slice(0, 0, 1023)).mean().item<double>(), 0,
              5 / std::sqrt(kCount * 0.99));

  Tensor u = torch::empty({1024, 1024}, torch::kDouble);
  fill_uniform(u, {.seed = 42, .step = 1}, Purpose::kTimes, 0, torch::arange(1024));
  EXPECT_NEAR(u.mean().item<double>(), 0.5, 5 * std::sqrt(1 / (12 * kCount)));
  EXPECT_NEAR((u - 0.5).square().mean().item<double>(), 1.0 / 12,
              5 * std::sqrt(1 / (180 * kCount)));
}

TEST(Bernoulli, FirstWordBelowTheThreshold) {
  const Rng rng{.seed = 9, .step = 3};
  const Tensor keys = torch::arange(2000);
  for (const double p : {0.1, 0.5, 0.75}) {
    const Tensor draw = bernoulli(p, rng, Purpose::kLabelDrop, 0, keys);
    ASSERT_EQ(draw.scalar_type(), torch::kBool);
    int64_t count = 0;
    for (int64_t i = 0; i < 2000; ++i) {
      const uint32_t w = philox(9, random_stream(Purpose::kLabelDrop, 0), (3ull << 32) | i, 0).w[0];
      const bool expected = w < static_cast<uint64_t>(p * 4294967296.0);
      ASSERT_EQ(draw[i].item<bool>(), expected) << i;
      count += expected;
    }
    EXPECT_NEAR(count, 2000 * p, 5 * std::sqrt(2000 * p * (1 - p)));
  }
  EXPECT_FALSE(bernoulli(0, rng, Purpose::kLabelDrop, 0, keys).any().item<bool>());
  EXPECT_TRUE(bernoulli(1, rng, Purpose::kLabelDrop, 0, keys).all().item<bool>());
  EXPECT_TRUE(torch::equal(bernoulli(0.5, rng, Purpose::kLabelDrop, 0, keys).slice(0, 700, 900),
                           bernoulli(0.5, rng, Purpose::kLabelDrop, 0, keys.slice(0, 700, 900))));
}

TEST(UniformInt, RangeAndShares) {
  const Rng rng{.seed = 2, .step = 0};
  const Tensor keys = torch::arange(20000);
  const Tensor draw = uniform_int(10, rng, Purpose::kLabel, 0, keys);
  EXPECT_EQ(draw.min().item<int64_t>(), 0);
  EXPECT_EQ(draw.max().item<int64_t>(), 9);
  const Tensor counts = torch::bincount(draw);
  for (int i = 0; i < 10; ++i) {
    EXPECT_NEAR(counts[i].item<double>(), 2000, 5 * std::sqrt(20000 * 0.1 * 0.9));
  }
  EXPECT_EQ(
      draw[17].item<int64_t>(),
      static_cast<int64_t>(uniform_below(philox(2, random_stream(Purpose::kLabel, 0), 17, 0), 10)));
  EXPECT_TRUE((uniform_int(1, rng, Purpose::kLabel, 0, keys) == 0).all().item<bool>());
}

TEST(Permutation, Golden) {
  EXPECT_EQ(permutation(0, 0, 10), (std::vector<int64_t>{8, 6, 9, 7, 3, 0, 2, 1, 5, 4}));
  EXPECT_EQ(permutation(0, 1, 10), (std::vector<int64_t>{9, 7, 6, 5, 0, 8, 2, 3, 4, 1}));
  EXPECT_EQ(permutation(1, 0, 10), (std::vector<int64_t>{0, 3, 8, 7, 5, 9, 4, 1, 2, 6}));
  const auto p = permutation(0, 0, 60000);
  EXPECT_EQ(sha256_hex({reinterpret_cast<const char*>(p.data()), p.size() * sizeof(int64_t)}),
            "0cc532eb90b1555c1aeba880560cc7931ce682d3334391b32a301a7e46243c75");
  EXPECT_TRUE(permutation(0, 0, 0).empty());
  EXPECT_EQ(permutation(3, 4, 1), std::vector<int64_t>{0});
}

}  // namespace
}  // namespace sigma
