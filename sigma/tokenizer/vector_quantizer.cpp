#include "sigma/tokenizer/vector_quantizer.h"

#include <torch/types.h>

#include <algorithm>
#include <limits>

#include "sigma/nn/linear.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr int64_t kTileBytes = int64_t{64} << 20;
constexpr double kEntropyEps = 1e-5;
constexpr double kDecay = 0.99;
constexpr uint32_t kCodeSite = 260;   // points of codes
constexpr uint32_t kTokenSite = 261;  // points of tokens

// |z - C|^2 - |z|^2 [n,V]: the order and the softmax over the codes are those of the distances.
Tensor relative_distances(const Tensor& z, const Tensor& codes) {
  return torch::addmm(codes.square().sum(1), z, codes.t(), /*beta=*/1, /*alpha=*/-2);
}

// Uniform points on a circle of length 1, one row a key.
Tensor points(torch::IntArrayRef shape, torch::Device device, const Context& context, uint32_t site,
              const Tensor& keys) {
  const Tensor out =
      torch::empty(shape, torch::TensorOptions().dtype(torch::kDouble).device(device));
  fill_uniform(out, context.rng, Purpose::kMask, site, keys);
  return out;
}

void count_codes(Tensor counts, const Tensor& indices) {
  counts.index_add_(0, indices, torch::ones(indices.sizes(), counts.options()));
}

}  // namespace

Tensor nearest_codes(const Tensor& z, const Tensor& codes) {
  const torch::NoGradGuard no_grad;
  const int64_t row_bytes = codes.size(0) * static_cast<int64_t>(codes.element_size());
  std::vector<Tensor> parts;
  for (const Tensor& tile : z.split(std::max<int64_t>(1, kTileBytes / row_bytes)))
    parts.push_back(relative_distances(tile, codes).argmin(1));
  return torch::cat(parts);
}

Tensor code_entropy(const Tensor& z, const Tensor& codes, double temperature) {
  const Tensor log_p = torch::log_softmax(relative_distances(z, codes) * (-1 / temperature), 1);
  const Tensor p = log_p.exp();
  const Tensor mean = p.mean(0);
  return (mean * (mean + kEntropyEps).log()).sum() - (p * log_p).sum(1).mean();
}

CodeStatistics code_statistics(const Tensor& counts) {
  const Tensor p = counts.to(torch::kDouble) / counts.sum().clamp_min(1);
  return {.usage = (counts > 0).to(torch::kDouble).mean(),
          .perplexity = (-torch::xlogy(p, p).sum()).exp()};
}

// ---- usage ----

CodeUsage::CodeUsage(int64_t codes, int64_t window)
    : ring_(register_buffer("ring", torch::full({window}, -1, torch::kInt))),
      position_(register_buffer("position", torch::zeros({}, torch::kInt64))),
      counts_(register_buffer("counts", torch::zeros({codes}, torch::kInt64))) {}

void CodeUsage::record(const Tensor& indices) {
  const torch::NoGradGuard no_grad;
  const int64_t window = ring_.size(0);
  const int64_t n = std::min(indices.size(0), window);
  const Tensor fresh = indices.narrow(0, indices.size(0) - n, n);
  const Tensor places =
      (position_ + torch::arange(n, position_.options())).remainder(window).to(torch::kInt64);
  const Tensor old = ring_.index_select(0, places).to(torch::kInt64);
  counts_.index_add_(0, old.clamp_min(0), -(old >= 0).to(counts_.scalar_type()));
  count_codes(counts_, fresh);
  ring_.index_copy_(0, places, fresh.to(ring_.scalar_type()));
  position_.add_(n).remainder_(window);
}

// ---- restart ----

CodeRestart::CodeRestart(const BottleneckConfig& config)
    : below_(config.restart_below), after_(config.restart_after) {
  const int64_t V = config.codes;
  probability_ =
      register_buffer("probability", torch::full({V}, 1 / static_cast<double>(V), torch::kFloat));
  steps_ = register_buffer("steps", torch::zeros({V}, torch::kInt64));
  counts_ = register_buffer("counts", torch::zeros({V}, torch::kInt64));
  candidate_ = register_buffer("candidate", torch::zeros({V, config.dim}));
  distance_ = register_buffer(
      "distance", torch::full({V}, std::numeric_limits<double>::infinity(), torch::kDouble));
}

void CodeRestart::begin(Tensor codebook, const Context& context) {
  const torch::NoGradGuard no_grad;
  const auto step = static_cast<int64_t>(context.rng.step);
  if (step == recorded_step_) return;
  recorded_step_ = step;
  // No branch on what was counted: a GPU is not kept waiting. Before the very first pass there is
  // nothing, and nothing changes.
  const auto V = static_cast<double>(codebook.size(0));
  const Tensor total = counts_.sum();
  const Tensor share = counts_.to(probability_.scalar_type()) / total.clamp_min(1);
  probability_.copy_(
      torch::where(total > 0, kDecay * probability_ + (1 - kDecay) * share, probability_));
  steps_.add_((total > 0).to(steps_.scalar_type()));
  restarted_ = (probability_ * V < below_) & (steps_ >= after_) & (total > 0);
  codebook.copy_(torch::where(restarted_.unsqueeze(1), candidate_, codebook));
  probability_.masked_fill_(restarted_, 1 / V);
  steps_.masked_fill_(restarted_, 0);
  counts_.zero_();
  distance_.fill_(std::numeric_limits<double>::infinity());
}

void CodeRestart::record(const Tensor& e, const Tensor& indices, const Context& context) {
  const torch::NoGradGuard no_grad;
  const int64_t V = counts_.size(0);
  const int64_t tokens = indices.numel();
  count_codes(counts_, indices.flatten());
  const Tensor u = points({V}, e.device(), context, kCodeSite, torch::arange(V, torch::kInt64));
  const Tensor w = points(indices.sizes(), e.device(), context, kTokenSite, context.samples);
  const auto [places, order] = w.flatten().sort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
  const Tensor next = torch::searchsorted(places, u);
  const Tensor found = next.remainder(tokens);  // past the last token comes the first
  const Tensor way = places.index_select(0, found) - u + (next == tokens).to(torch::kDouble);
  const Tensor closer = way < distance_;  // of equals the first
  const Tensor chosen = e.flatten(0, 1).index_select(0, order.index_select(0, found));
  candidate_.copy_(torch::where(closer.unsqueeze(1), chosen, candidate_));
  distance_.copy_(torch::where(closer, way, distance_));
}

// ---- quantizer ----

VectorQuantizer::VectorQuantizer(const BottleneckConfig& config)
    : config_(config),
      codebook_(parameter("codebook", {config.codes, config.dim},
                          Init::uniform(1 / static_cast<double>(config.codes)))),
      usage_(child<CodeUsage>("usage", config.codes, config.usage_window)) {
  if (config.restart == "threshold") restart_ = child<CodeRestart>("restart", config);
}

Tensor VectorQuantizer::codes(const Tensor& indices) const {
  return torch::embedding(normalise_latents(codebook_, config_.norm), indices);
}

Tensor VectorQuantizer::restarted() const { return restart_ ? restart_->restarted() : Tensor(); }

Coded VectorQuantizer::forward(const Tensor& input, const Context& context) {
  const bool counts = context.training && context.record && codebook_.requires_grad();
  if (counts && restart_) restart_->begin(codebook_, context);
  const Tensor e = at_least_float(input);
  const Tensor z = normalise_latents(e, config_.norm);
  const Tensor table = normalise_latents(codebook_, config_.norm);
  const Tensor rows = z.flatten(0, 1);
  const Tensor indices = nearest_codes(rows, table).view({e.size(0), e.size(1)});
  const Tensor q = torch::embedding(table, indices);

  Coded coded{.latents = z + (q - z).detach(), .indices = indices, .losses = {}, .statistics = {}};
  if (torch::GradMode::is_enabled()) {
    if (config_.codebook_weight > 0)
      coded.losses["vq.codebook"] = config_.codebook_weight * (q - z.detach()).square().mean();
    if (config_.commit > 0)
      coded.losses["vq.commit"] = config_.commit * (q.detach() - z).square().mean();
    if (config_.entropy > 0)
      coded.losses["vq.entropy"] =
          config_.entropy * code_entropy(rows, table, config_.entropy_temperature);
  }
  if (!counts) return coded;
  usage_->record(indices.flatten());
  if (restart_) restart_->record(e, indices, context);
  const CodeStatistics statistics = code_statistics(usage_->counts());
  coded.statistics["vq.usage"] = statistics.usage;
  coded.statistics["vq.perplexity"] = statistics.perplexity;
  return coded;
}

}  // namespace sigma
