#include "sigma/generator/preconditioner.h"

#include <torch/types.h>

#include "sigma/base/error.h"

namespace sigma {

using torch::Tensor;

Preconditioner::Preconditioner(std::string kind, Path path)
    : kind_(std::move(kind)), path_(std::move(path)) {
  SIGMA_CHECK(kUsage, kind_ == "identity" || kind_ == "simple_edm" || kind_ == "euler_fm",
              "preconditioner: expected identity, simple_edm or euler_fm, got {}", kind_);
  SIGMA_CHECK(kUsage, kind_ != "euler_fm" || path_.kind() == "ot_fm",
              "preconditioner: euler_fm expects path.kind = ot_fm, got {}", path_.kind());
}

Tensor Preconditioner::norm2(const Tensor& t) const {
  return path_.alpha(t).square() + path_.sigma(t).square();
}

Tensor Preconditioner::skip(const Tensor& s, const Tensor& t) const {
  if (kind_ == "euler_fm") return torch::ones_like(t);
  const Tensor sigma_s = path_.sigma(s);
  const Tensor sigma_t = path_.sigma(t);
  if (kind_ == "identity") return sigma_s / sigma_t;
  return (path_.alpha(s) * path_.alpha(t) + sigma_s * sigma_t) / norm2(t);
}

Tensor Preconditioner::out(const Tensor& s, const Tensor& t) const {
  const double sd = path_.sigma_data();
  if (kind_ == "euler_fm") return -(t - s) * sd;
  const Tensor sigma_s = path_.sigma(s);
  const Tensor sigma_t = path_.sigma(t);
  if (kind_ == "identity") return path_.alpha(s) - path_.alpha(t) * sigma_s / sigma_t;
  return -(path_.alpha(s) * sigma_t - path_.alpha(t) * sigma_s) * sd / norm2(t).sqrt();
}

Tensor Preconditioner::in(const Tensor& t) const {
  return 1 / (path_.sigma_data() * norm2(t).sqrt());
}

Tensor Preconditioner::target(const Tensor& x, const Tensor& eps, const Tensor& t) const {
  const double sd = path_.sigma_data();
  if (kind_ == "identity") return x;
  if (kind_ == "euler_fm") return (eps - x) / sd;
  const Tensor scale = sd * norm2(t).sqrt();
  return expand_times(path_.alpha(t) / scale, x) * eps -
         expand_times(path_.sigma(t) / scale, x) * x;
}

Tensor Preconditioner::apply(const Tensor& x_t, const Tensor& G, const Tensor& s,
                             const Tensor& t) const {
  const Tensor value = expand_times(skip(s, t), x_t) * x_t + expand_times(out(s, t), x_t) * G;
  return torch::where(expand_times(s == t, x_t), x_t.to(value.scalar_type()), value);
}

}  // namespace sigma
