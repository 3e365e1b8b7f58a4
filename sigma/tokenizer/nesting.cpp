#include "sigma/tokenizer/nesting.h"

#include <torch/types.h>

#include <bit>

#include "sigma/base/error.h"
#include "sigma/base/random.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr uint32_t kKeepSite = 258;
constexpr double kNullStd = 0.02;

int64_t log2_floor(int64_t n) { return std::bit_width(static_cast<uint64_t>(n)) - 1; }

}  // namespace

void NestingConfig::visit(ConfigVisitor& v) {
  v.choice("kind", kind, {"none", "nested"}, "whether prefixes of the latents are trained alone");
  if (!v.when(kind, "nested")) return;
  v.choice("keep", keep, {"uniform", "pow2"}, "how many tokens are kept in training");
  v.field("keep_min", keep_min, in(1, 4096), "keep = pow2: the fewest, a power of two");
  v.choice("null", null, {"per_slot", "shared"}, "what stands for a token that is not kept");
}

Nesting::Nesting(const NestingConfig& config, int64_t tokens, int64_t channels)
    : config_(config), tokens_(tokens) {
  const bool power = std::has_single_bit(static_cast<uint64_t>(config.keep_min));
  SIGMA_CHECK(kUsage, power && config.keep_min <= tokens,
              "tokenizer.nesting.keep_min: expected a power of two up to {} tokens, got {}", tokens,
              config.keep_min);
  null_ = config.null == "per_slot" ? parameter("null", {tokens, channels}, Init::normal(kNullStd))
                                    : parameter("null", {1, channels}, Init::zero());
}

Tensor Nesting::draw(const Context& context) const {
  const auto uniform = [&](int64_t n) {
    return uniform_int(n, context.rng, Purpose::kMask, kKeepSite, context.samples);
  };
  if (config_.keep == "uniform") return uniform(tokens_) + 1;
  const int64_t low = log2_floor(config_.keep_min);
  return torch::ones({}, torch::kInt64)
      .bitwise_left_shift(uniform(log2_floor(tokens_) - low + 1) + low);
}

Tensor Nesting::forward(const Tensor& c, const Tensor& kept) const {
  const Tensor place = torch::arange(tokens_, kept.options().device(c.device()));
  const Tensor stays = place.unsqueeze(0) < kept.to(c.device()).unsqueeze(1);
  return torch::where(stays.unsqueeze(2), c, null_);
}

}  // namespace sigma
