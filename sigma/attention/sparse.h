// Native sparse attention (arXiv 2502.11089), on sequences and on 2-D and 3-D grids.
//
//   o = g_cmp Attn(q, Kc, Vc) + g_slc Attn(q, K, V over chosen blocks) + g_win Attn(q, K, V nearby)
//   Kc_i = phi_K(window i), Vc_i = phi_V(window i);  g = sigmoid(W_g x + b_g), a head and branch
//   phi = mean over the window's tokens (`mean`), + W2 gelu(W1 vec(tokens + pe)) (`mlp`, 2 D wide)
//
// The probabilities of the compressed branch score the blocks, summed over a group of heads and, on
// full grids, over the queries of a tile (selection.h). Sequences with pattern `causal` have a
// list for every token and, where `window` is set, the third branch; other layouts have tiles of
// queries and two branches. Keys and values may be a branch's own (`separate_kv`, the paper's).
//
// At the start W_g = 0 and k gates are 1/k; W2 = 0. Rotary embeddings turn q, k, and Kc at its
// window's centre. Tokens before and after the grid attend to everything and are in every list.
// Refused by name: causal_after, masked layouts, causal grids, windows without causality.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sigma/attention/block_plan.h"
#include "sigma/attention/block_sparse.h"
#include "sigma/attention/selection.h"
#include "sigma/attention/selection_gpu.h"
#include "sigma/nn/attention.h"
#include "sigma/nn/linear.h"

namespace sigma {

struct SparseConfig {
  std::vector<int64_t> block;    // sides on the grid's axes; empty: 64 | 8, 8 | 4, 4, 4
  int64_t compress_size = 0;     // of windows of a sequence; 0: the block's
  int64_t compress_stride = 0;   // 0: the window's size
  std::string compress = "mlp";  // mean | mlp
  int64_t window = 0;            // causal sequences: tokens of the window branch; 0: none
  int64_t num_kv_heads = 0;      // 0: as many as heads
  bool separate_kv = false;
  SelectionConfig selection;
  void visit(ConfigVisitor& v);
};

/// The paper's settings for causal sequences (section 4.1). The defaults are for images and clips.
SparseConfig nsa_paper();

class SparseAttention : public Attention {
 public:
  /// Errors: kUsage (sides, sizes and heads that do not fit, both printed).
  SparseAttention(const SparseConfig& config, int64_t dim, int64_t num_heads, bool qk_norm,
                  const Grid& grid);
  torch::Tensor forward(const torch::Tensor& x, const TokenLayout& layout, const Rope* rope,
                        const Context& context) override;
  double flops(const TokenLayout& layout) const override;

  /// The lists of the last forward: int32 [B,G,R,n], for looking.
  const torch::Tensor& last_lists() const { return lists_; }
  /// The blocks that they name.
  const BlockGeometry& geometry() const { return plan_->geometry; }

 private:
  // What a layout fixes. Tensors of the second part are on the device of the tokens: a pass copies
  // nothing from the host.
  struct Plan {
    TokenLayout layout;
    BlockGeometry geometry;
    bool causal = false;
    bool regular = false;       // windows: one every stride_ packed rows, all complete
    torch::Tensor window_rank;  // [windows] rank of the last token
    torch::Tensor tile_start;   // tiles of grid queries

    torch::Device device = torch::kCPU;
    torch::Tensor order, inverse;  // of the geometry
    torch::Tensor window_tokens;   // [windows, size] packed rows of grid tokens, -1: missing
    torch::Tensor centres;         // [windows, axes]
    torch::Tensor near;            // lists of the window branch
    torch::Tensor beside;  // tokens beside the grid: whether they see each token; or nothing
    std::vector<std::shared_ptr<const BlockTables>> tables;  // of the branches, on a GPU
    SelectionTables selection;                               // on a GPU
  };
  // Heads of q, and of the keys and values of each set; then gates.
  torch::Tensor projected(const torch::Tensor& x) const;
  const Plan& plan_for(const TokenLayout& layout, torch::Device device);
  AttentionOutput branch(BlockSparseInput input, size_t at);
  struct Compressor {
    torch::Tensor pe;  // [size, D]
    std::shared_ptr<Linear> in, out;
  };
  Compressor compressor(const std::string& name);
  torch::Tensor compressed(const torch::Tensor& x, const Plan& plan, const Compressor& mlp) const;
  torch::Tensor compressed_rows(const torch::Tensor& x, int64_t windows,
                                const Compressor& mlp) const;
  // `lse`: of the compressed branch.
  torch::Tensor choose(const torch::Tensor& q, const torch::Tensor& ck, const torch::Tensor& lse,
                       const torch::Tensor& raw, const Plan& plan) const;

  SparseConfig config_;
  int64_t num_heads_;
  int64_t kv_heads_;
  int64_t head_dim_;
  int64_t branches_;
  Grid block_;
  int64_t size_ = 0;    // tokens of a window
  int64_t stride_ = 0;  // sequences
  std::shared_ptr<Linear> q_, kv_, gate_, proj_;
  std::shared_ptr<RmsNorm> q_norm_, k_norm_;
  Compressor compress_k_, compress_v_;
  std::unique_ptr<Plan> plan_;
  torch::Tensor lists_;
};

}  // namespace sigma
