#include <ATen/Parallel.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "sigma/base/tasks.h"
#include "sigma/moe/experts.h"
#include "sigma/moe/kernels/combine.h"

namespace sigma {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Rows [first, last) of expert e.
struct Tile {
  int64_t e, first, last;
};

// Of one expert, as even as can be.
std::vector<Tile> tiles_of(const int32_t* offsets, int64_t e) {
  std::vector<Tile> tiles;
  const int64_t first = offsets[e], rows = offsets[e + 1] - first;
  const int64_t count = (rows + kExpertTile - 1) / kExpertTile;
  for (int64_t i = 0; i < count; ++i)
    tiles.push_back({e, first + rows * i / count, first + rows * (i + 1) / count});
  return tiles;
}

std::vector<Tile> all_tiles(const Tensor& offsets) {
  std::vector<Tile> tiles;
  for (int64_t e = 0; e + 1 < offsets.size(0); ++e) {
    const auto some = tiles_of(offsets.data_ptr<int32_t>(), e);
    tiles.insert(tiles.end(), some.begin(), some.end());
  }
  return tiles;
}

Tensor rows_of(const Tensor& x, const Tensor& index, const Tile& t) {
  return x.index_select(0, index.slice(0, t.first, t.last));
}

// dZ from dA and Z.
Tensor activation_grad(const Tensor& dA, const Tensor& Z, const std::string& activation) {
  if (activation == "gelu") return at::gelu_backward(dA, Z, "none");
  if (activation == "gelu_tanh") return at::gelu_backward(dA, Z, "tanh");
  const auto parts = Z.chunk(2, 1);
  return torch::cat({at::silu_backward(dA * parts[1], parts[0]), dA * at::silu(parts[0])}, 1);
}

class Fast : public torch::autograd::Function<Fast> {
 public:
  // Biases may be empty. `keep`: a backward may follow, which needs Z; else a tile's stays in the
  // cache.
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w_in,
                        const Tensor& w_out, const Tensor& b_in, const Tensor& b_out,
                        const Tensor& pair_weight, const Plan& plan, const std::string& activation,
                        bool keep) {
    const int64_t R = plan.row_token.size(0);
    const Tensor g = row_weights(pair_weight, plan);
    const Tensor Z = torch::empty({keep ? R : 0, w_in.size(1)}, x.options());
    const Tensor Y = torch::empty({R, x.size(1)}, x.options());
    const std::vector<Tile> tiles = all_tiles(plan.offsets);
    run_tasks(static_cast<int64_t>(tiles.size()), [&](int64_t i) {
      const torch::NoGradGuard no_grad;
      const Tile& t = tiles[static_cast<size_t>(i)];
      Tensor z = keep ? Z.slice(0, t.first, t.last)
                      : torch::empty({t.last - t.first, w_in.size(1)}, x.options());
      at::mm_out(z, rows_of(x, plan.row_token, t), w_in[t.e].t());
      if (b_in.numel() > 0) z.add_(b_in[t.e]);
      Tensor y = Y.slice(0, t.first, t.last);
      at::mm_out(y, expert_activation(z, activation), w_out[t.e].t());
      if (b_out.numel() > 0) y.add_(b_out[t.e]);
    });
    ctx->save_for_backward({x, w_in, w_out, b_in, b_out, pair_weight, Z, plan.offsets,
                            plan.row_token, plan.row_pair, plan.token_offsets, plan.token_rows});
    ctx->saved_data["activation"] = activation;
    return combined(Y, g, plan, x.size(0));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    refuse_second_derivative("cpu");
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &w_in = saved[1], &w_out = saved[2], &b_in = saved[3],
                 &b_out = saved[4], &Z = saved[6];
    const Plan plan{saved[7], saved[8], saved[9], saved[10], saved[11]};
    const std::string activation = ctx->saved_data["activation"].toStringRef();
    const Tensor dy = grads[0].contiguous();
    const Tensor g = row_weights(saved[5], plan);
    const int64_t R = Z.size(0), E = w_in.size(0);
    const Tensor dX = torch::empty({R, x.size(1)}, x.options());
    const Tensor dw_in = torch::zeros_like(w_in), dw_out = torch::zeros_like(w_out);
    const Tensor db_in = torch::zeros_like(b_in), db_out = torch::zeros_like(b_out);
    const Tensor dg = torch::zeros({R}, x.options());

    // A task is an expert, the one with the most rows first; its tiles add up in order.
    const int32_t* at = plan.offsets.data_ptr<int32_t>();
    std::vector<int64_t> order(static_cast<size_t>(E));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return at[a + 1] - at[a] > at[b + 1] - at[b]; });
    run_tasks(E, [&](int64_t i) {
      const torch::NoGradGuard no_grad;
      const int64_t e = order[static_cast<size_t>(i)];
      Tensor dw_in_e = dw_in[e], dw_out_e = dw_out[e];
      for (const Tile& t : tiles_of(at, e)) {
        const Tensor z = Z.slice(0, t.first, t.last);
        const Tensor G = rows_of(dy, plan.row_token, t);
        const Tensor weight = g.slice(0, t.first, t.last).unsqueeze(1);
        const Tensor A = expert_activation(z, activation);
        const Tensor dA = torch::mm(G, w_out[e]);
        Tensor dot = (dA * A).sum(1);
        if (b_out.numel() > 0) {
          dot = dot + torch::mv(G, b_out[e]);
          db_out[e].add_((G * weight).sum(0));
        }
        dg.slice(0, t.first, t.last).copy_(dot);
        const Tensor dZ = activation_grad(dA * weight, z, activation);
        Tensor dx = dX.slice(0, t.first, t.last);
        at::mm_out(dx, dZ, w_in[e]);
        dw_out_e.addmm_(G.t(), A * weight);
        dw_in_e.addmm_(dZ.t(), rows_of(x, plan.row_token, t));
        if (b_in.numel() > 0) db_in[e].add_(dZ.sum(0));
      }
    });
    const int64_t used = at[E];
    Tensor d_pair = torch::zeros_like(saved[5]);
    d_pair.index_copy_(0, plan.row_pair.slice(0, 0, used).to(torch::kInt64), dg.slice(0, 0, used));
    const Tensor ones = torch::ones({R}, x.options());
    return {combined(dX, ones, plan, x.size(0)),
            dw_in,
            dw_out,
            b_in.numel() > 0 ? db_in : Tensor(),
            b_out.numel() > 0 ? db_out : Tensor(),
            d_pair,
            Tensor(),
            Tensor(),
            Tensor()};
  }

 private:
  // g of every row; rows past the used ones: anything.
  static Tensor row_weights(const Tensor& pair_weight, const Plan& plan) {
    if (pair_weight.size(0) == 0) return pair_weight;
    return pair_weight.index_select(0, plan.row_pair.clamp_min(0).to(torch::kInt64));
  }
  static Tensor combined(const Tensor& rows, const Tensor& weight, const Plan& plan, int64_t T) {
    const Tensor y = torch::empty({T, rows.size(1)}, rows.options());
    at::parallel_for(0, T, 64, [&](int64_t first, int64_t last) {
      kernels::combine_rows(
          rows.data_ptr<float>(), weight.data_ptr<float>(), plan.token_offsets.data_ptr<int32_t>(),
          plan.token_rows.data_ptr<int32_t>(), rows.size(1), first, last, y.data_ptr<float>());
    });
    return y;
  }
};

}  // namespace

Tensor experts_cpu(const Tensor& x, const Experts& experts, const Tensor& pair_weight,
                   const Plan& plan) {
  const auto or_empty = [&](const Tensor& b) { return b.defined() ? b : torch::empty({0}); };
  return Fast::apply(x.contiguous(), experts.w_in.contiguous(), experts.w_out.contiguous(),
                     or_empty(experts.b_in), or_empty(experts.b_out), pair_weight.contiguous(),
                     plan, experts.activation, torch::GradMode::is_enabled());
}

}  // namespace sigma
