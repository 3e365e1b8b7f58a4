// Modules and initial weights.
//
// Modules are plain torch::nn::Module. A constructor allocates its parameters and declares a rule
// for each; the root then calls initialize(), which fills every parameter from the counter-based
// generator, keyed by its full name. So initial weights depend on the seed and the names alone: not
// on the order of construction, and not on what else the model holds.
#pragma once

#include <torch/nn/module.h>

#include <map>
#include <memory>
#include <string>
#include <utility>

namespace sigma {

/// How a parameter starts.
struct Init {
  enum class Kind { kConstant, kNormal, kUniform, kXavier, kImpulse, kIdentity, kRotary };
  Kind kind = Kind::kConstant;
  double scale = 0;  // value, standard deviation, half width, place, theta

  static Init constant(double value) { return {Kind::kConstant, value}; }
  static Init zero() { return constant(0); }
  static Init one() { return constant(1); }
  static Init normal(double std) { return {Kind::kNormal, std}; }
  static Init uniform(double half_width) { return {Kind::kUniform, half_width}; }
  /// Uniform in +-sqrt(6 / (rows + columns)) of a matrix [rows, columns...] (Glorot and Bengio
  /// 2010).
  static Init xavier() { return {Kind::kXavier, 0}; }
  /// 1 at `place` of every flattened slice along the first axis, else 0.
  static Init impulse(int64_t place) { return {Kind::kImpulse, static_cast<double>(place)}; }
  /// The unit matrix on the last two axes.
  static Init identity() { return {Kind::kIdentity, 0}; }
  /// Mixed rotary frequencies [2, layers, heads, D/2] (sigma/nn/rope.h): axial ones of `theta`,
  /// turned by an angle of each layer's and head's own.
  static Init rotary(double theta) { return {Kind::kRotary, theta}; }
};

class Module : public torch::nn::Module {
 public:
  const std::map<std::string, Init>& init_rules() const { return rules_; }

 protected:
  /// Registers an uninitialised float32 parameter with its rule.
  torch::Tensor parameter(const std::string& name, torch::IntArrayRef shape, Init init);

  /// Makes and registers a child.
  template <typename M, typename... Args>
  std::shared_ptr<M> child(const std::string& name, Args&&... args) {
    return register_module(name, std::make_shared<M>(std::forward<Args>(args)...));
  }

 private:
  std::map<std::string, Init> rules_;
};

/// Fills all parameters below `root` by their rules. Errors: kFailure for a parameter without a
/// rule.
void initialize(torch::nn::Module& root, uint64_t seed);

}  // namespace sigma
