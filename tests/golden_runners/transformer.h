// The diffusion transformer of a golden file: published weights under our names.
#pragma once

#include <memory>

#include "sigma/generator/network.h"
#include "tests/golden_runners/golden.h"

namespace sigma::golden {

/// options.network (hidden_size, depth, num_heads, mlp_ratio, patch_size), num_classes,
/// second_time, time_scale. With position "learned" and stored pos_embed the positions are the
/// stored table, else computed ones.
NetworkConfig network_config(const Json& options, const std::string& position);

/// In float64 with the `weight.*` of `weights`; positions "learned" loads pos_embed.
std::shared_ptr<DiffusionTransformer> make_network(const NetworkConfig& config,
                                                   const std::vector<int64_t>& sample_shape,
                                                   const GoldenFile& weights);

/// Our name of a published weight.
std::string our_name(const std::string& published);
/// The shape of [B, sample_shape...] without B.
std::vector<int64_t> sample_shape(const torch::Tensor& x);
/// float64 results grow with depth; 1e-12 at the sizes of the published files.
double bound64(const NetworkConfig& config);
/// float32 networks: 2e-6 at two blocks.
double bound32(const NetworkConfig& config);
/// Fixed positions against their float32 rounding.
inline constexpr double kFixedPositions = 1e-7;

/// Gradients of all parameters against grad.*, by norm, and grad_norm. grad.* are rounded to
/// float32.
void check_parameter_gradients(const GoldenFile& file, const DiffusionTransformer& network,
                               Report& report);

/// Keeps inputs and the output (with its gradient) of another network.
class Recorder : public Network {
 public:
  explicit Recorder(Network& inner) : inner_(inner) {}
  Output forward(const torch::Tensor& x, const torch::Tensor& t, const torch::Tensor& s,
                 const Condition& condition, const Context& context) override;
  int64_t num_classes() const override { return inner_.num_classes(); }
  double flops() const override { return inner_.flops(); }

  torch::Tensor input, t, s, G;

 private:
  Network& inner_;
};

}  // namespace sigma::golden
