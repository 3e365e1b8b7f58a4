#include "sigma/moe/kernels/swiglu.h"

#include "sigma/base/lanes.h"
#include "sigma/base/simd.h"

namespace sigma::kernels {
namespace {

SIGMA_INLINE Lanes logistic(Lanes x) { return 1.0f / (1.0f + exp_lanes(-x)); }

SIGMA_INLINE void forward(const float* z, int64_t n, float* A) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const Lanes a = load_lanes(z + i);
    store_lanes(A + i, a * logistic(a) * load_lanes(z + n + i));
  }
}

SIGMA_INLINE void backward(const float* z, const float* dA, const float* g, int64_t n,
                           int64_t lanes, float* dz, float* weighted, float* dot) {
  for (int64_t v = 0; v < lanes; v += kLanes) store_lanes(dot + v, Lanes{});
  for (int64_t first = 0; first < n; first += lanes)
    for (int64_t v = 0; v < lanes; v += kLanes) {
      const int64_t i = first + v;
      const Lanes a = load_lanes(z + i), b = load_lanes(z + n + i), weight = load_lanes(g + v);
      const Lanes s = logistic(a), silu = a * s, A = silu * b;
      const Lanes d = load_lanes(dA + i);
      add_lanes(dot + v, d * A);
      store_lanes(dz + i, weight * d * b * s * (1.0f + a * (1.0f - s)));
      store_lanes(dz + n + i, weight * d * silu);
      store_lanes(weighted + i, weight * A);
    }
}

}  // namespace

SIGMA_MULTIVERSION void swiglu_panel(const float* z, int64_t I, int64_t lanes, float* A) {
  forward(z, I * lanes, A);
}

SIGMA_MULTIVERSION void swiglu_panel_backward(const float* z, const float* dA, const float* g,
                                              int64_t I, int64_t lanes, float* dz, float* weighted,
                                              float* dot) {
  backward(z, dA, g, I * lanes, lanes, dz, weighted, dot);
}

}  // namespace sigma::kernels
