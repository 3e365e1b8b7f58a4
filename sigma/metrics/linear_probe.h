// What can be read from features in a linear way, and PCA as the yardstick of equal size.
//
//   probe   z = (x - mean) / (std + 1e-6)  of the training features
//           min over W, b of  mean_i CE(W z_i + b, label_i) + 1e-4 |W|^2;  accuracy on the test set
//   PCA     x ~ mean + U U^T (x - mean),  U [D,K]: the first eigenvectors of the covariance
//
// The probe is softmax regression by torch's L-BFGS from zero: history 10, at most 150 iterations,
// strong Wolfe line search, float32. Nothing is drawn: equal features and thread counts give equal
// bits. An image tokenizer is compared with the probe on raw pixels and on PCA codes with as many
// floats as its latents have. PCA is in float64; each column's largest entry is positive.
// Errors: kUsage (shapes, label or k out of range, too few rows), kNonFinite. Not supported:
// choosing the weight decay, probes with hidden layers.
#pragma once

#include <torch/types.h>

#include "sigma/metrics/image_quality.h"

namespace sigma {

struct LabelledFeatures {
  torch::Tensor features;  // floating [n,D]
  torch::Tensor labels;    // int64 [n], below the number of classes
};

/// The share of test rows whose label the probe gives, in [0,1]. The training set has at least as
/// many rows as there are classes.
double linear_probe_accuracy(const LabelledFeatures& train, const LabelledFeatures& test,
                             int64_t num_classes);

struct Pca {
  torch::Tensor mean;        // float64 [D]
  torch::Tensor components;  // float64 [D,K], orthonormal columns of falling variance

  /// x [n,D] -> float32 [n,K].
  torch::Tensor encode(const torch::Tensor& x) const;
  /// codes [n,k] of the first k <= K components -> float32 [n,D].
  torch::Tensor decode(const torch::Tensor& codes) const;
};

/// The first k components of train [n,D]; n >= 2, 1 <= k <= D.
Pca pca_features(const torch::Tensor& train, int64_t k);

/// Images [n,C,H,W] in [0,1] against their reconstructions from k floats each.
ImageQuality pca_quality(const Pca& pca, const torch::Tensor& images, int64_t k);

}  // namespace sigma
