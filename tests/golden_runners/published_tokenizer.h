// A tokenizer of a golden file: its configuration, and published weights under our names.
//
// Our parameters are sums and rearrangements of published ones (queries = latent tokens + their
// positions; the head of ViTok has one bias a channel). The map is written once, on tensors that
// need gradients: so it also carries our gradients back to the published weights.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "sigma/tokenizer/tokenizer.h"
#include "tests/golden_runners/golden.h"

namespace sigma::golden {

/// Whose code a file comes from.
enum class Source { kMaetok, kTitok, kSemanticist, kMae, kVitok };
Source source_of(const GoldenFile& file);

class PublishedTokenizer {
 public:
  /// In float64. `computed`: fixed positions are ours, not the stored tables of float32.
  /// Errors: kData (a weight without a place, a parameter without a weight).
  explicit PublishedTokenizer(const GoldenFile& file, bool computed = false);

  Tokenizer& tokenizer() { return *tokenizer_; }
  const TokenizerConfig& config() const { return tokenizer_->config(); }
  /// Tokens that a nested file keeps, or -1.
  int64_t keep() const { return keep_; }
  /// A child of the tokenizer.
  template <typename M>
  M& part(const std::string& name) {
    return dynamic_cast<M&>(*tokenizer_->named_children()[name]);
  }
  /// The head on features of a frozen network that the library does not have (decoder_dino).
  Decoder& feature_head() { return *features_; }

  /// Images to a row of patches.
  torch::Tensor patches(const torch::Tensor& images) const;
  /// Gradients of our parameters, brought back to the published weights, against grad.*, by norm:
  /// the files round them to float32.
  void check_gradients(const GoldenFile& file, Report& report);

 private:
  void load(const GoldenFile& file);
  void place_positions(const std::string& side, const torch::Tensor& rows);
  void place_vitok(std::string ours, const torch::Tensor& value);
  /// Adds `value` to the rows of our parameter from `row` on; false if there is no such parameter.
  bool add(const std::string& ours, const torch::Tensor& value, int64_t row = 0);

  Source source_;
  std::shared_ptr<Tokenizer> tokenizer_;
  std::shared_ptr<Decoder> features_;
  int64_t keep_ = -1;
  int64_t image_tokens_ = 0;
  std::map<std::string, torch::Tensor> ours_;       // parameters, and the buffer of fixed queries
  std::map<std::string, torch::Tensor> published_;  // leaves
  std::map<std::string, torch::Tensor> values_;     // of our parameters, functions of the leaves
};

/// A file's mask: input.mask, 1 = hidden.
Mask mask_of(const GoldenFile& file);

}  // namespace sigma::golden
