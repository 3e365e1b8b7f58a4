// The objective slot of a generator: how a network is trained to jump from a noisy x_t to x_s, and
// how it jumps.
//
// draw() holds all randomness, loss() none, jump() is all that samplers use. Times are float64 [B];
// s <= r < t.
#pragma once

#include <memory>
#include <string>

#include "sigma/base/config.h"
#include "sigma/base/context.h"
#include "sigma/generator/network.h"
#include "sigma/generator/preconditioner.h"
#include "sigma/nn/output.h"

namespace sigma {

struct GeneratorBatch {
  torch::Tensor data;    // float [B, ...], standard deviation about sigma_data
  torch::Tensor labels;  // int64 [B], or undefined
};

struct Draws {
  torch::Tensor t, r, s;  // float64 [B]; r undefined where unused
  torch::Tensor eps;      // as data: sigma_data times standard normal
  torch::Tensor
      student_labels;  // labels with some replaced by the null label; undefined without labels
};

/// G = G_null + scale (G_cond - G_null) on all channels of raw G, for t in [t_lo, t_hi]; scale 1 is
/// one conditional pass.
struct GuidanceConfig {
  double scale = 1;
  double t_lo = 0;
  double t_hi = 2;  // beyond the range of every path
  void visit(ConfigVisitor& v);
};

/// What the trainer must provide; read before step 0.
struct Needs {
  int64_t group_size = 1;    // divides the micro-batch
  bool second_time = false;  // the network must embed s
};

class Objective {
 public:
  virtual ~Objective() = default;
  virtual Needs needs() const = 0;
  /// `context.samples` are the indices in the global batch.
  virtual Draws draw(const GeneratorBatch& batch, int64_t null_label,
                     const Context& context) const = 0;
  /// `target`: the network whose no_grad output the student is compared with (IMM: the student
  /// itself).
  virtual Output loss(Network& student, Network& target, const GeneratorBatch& batch,
                      const Draws& draws, const Context& context) const = 0;
  /// x_t -> x_s; t, s float64 [B]. Errors: kUsage (guidance without labels).
  virtual torch::Tensor jump(Network& network, const torch::Tensor& x_t, const torch::Tensor& t,
                             const torch::Tensor& s, const Condition& condition,
                             const GuidanceConfig& guidance, const Context& context) const = 0;
  /// Forward passes a training step costs (a backward counts two).
  virtual double passes_per_step() const = 0;
};

/// Raw network output at (x_t, t, s): x_t scaled by c_in and cast to the network's dtype.
Output raw_output(Network& network, const Preconditioner& f, const torch::Tensor& x_t,
                  const torch::Tensor& t, const torch::Tensor& s, const Condition& condition,
                  const Context& context);
/// The same under guidance: at most one doubled batch, null rows first.
torch::Tensor guided_output(Network& network, const Preconditioner& f, const torch::Tensor& x_t,
                            const torch::Tensor& t, const torch::Tensor& s,
                            const Condition& condition, const GuidanceConfig& guidance,
                            const Context& context);
/// eps of a training batch: sigma_data times normal numbers keyed by the samples.
torch::Tensor draw_noise(const torch::Tensor& like, double sigma_data, const Context& context);
/// Labels with a share replaced by `null_label`, keyed by the samples; undefined stays undefined.
torch::Tensor drop_labels(const torch::Tensor& labels, double share, int64_t null_label,
                          const Context& context);

}  // namespace sigma
