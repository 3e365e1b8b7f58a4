#include <ATen/Parallel.h>
#include <sys/mman.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "sigma/base/lanes.h"
#include "sigma/base/tasks.h"
#include "sigma/moe/experts.h"
#include "sigma/moe/kernels/panels.h"
#include "sigma/moe/kernels/swiglu.h"

namespace sigma {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using kernels::kPanelRows;

// Rows [first, first + n) of expert e; its panels start at column `column` of Z.
struct Panel {
  int64_t e, first, n, column;
  int64_t lanes() const { return kernels::padded(n); }
};

std::vector<Panel> panels_of(const Tensor& offsets) {
  const int32_t* at = offsets.data_ptr<int32_t>();
  std::vector<Panel> panels;
  int64_t column = 0;
  for (int64_t e = 0; e + 1 < offsets.size(0); ++e)
    for (int64_t first = at[e]; first < at[e + 1]; first += kPanelRows) {
      panels.push_back({e, first, std::min<int64_t>(at[e + 1] - first, kPanelRows), column});
      column += panels.back().lanes();
    }
  return panels;
}

// Of a panel, a column a row of the plan.
Tensor activated(const Tensor& z, const std::string& activation) {
  if (activation != "swiglu") return expert_activation(z, activation, 0);
  const Tensor A = torch::empty({z.size(0) / 2, z.size(1)}, z.options());
  kernels::swiglu_panel(z.data_ptr<float>(), A.size(0), A.size(1), A.data_ptr<float>());
  return A;
}

// The gradient dA' [I,lanes] through the activation; g [lanes].
struct Back {
  Tensor dZ;        // phi'(Z) g dA'
  Tensor weighted;  // g A
  Tensor dot;       // dA' . A of every column
};
Back activation_back(const Tensor& dA, const Tensor& z, const Tensor& g,
                     const std::string& activation) {
  if (activation != "swiglu") {
    const Tensor A = expert_activation(z, activation, 0);
    const Tensor dot = (dA * A).sum(0);
    const Tensor dZ = at::gelu_backward(dA * g, z, activation == "gelu" ? "none" : "tanh");
    return {dZ, A * g, dot};
  }
  const Back back{torch::empty_like(z), torch::empty_like(dA), torch::empty_like(g)};
  kernels::swiglu_panel_backward(z.data_ptr<float>(), dA.data_ptr<float>(), g.data_ptr<float>(),
                                 dA.size(0), dA.size(1), back.dZ.data_ptr<float>(),
                                 back.weighted.data_ptr<float>(), back.dot.data_ptr<float>());
  return back;
}

// Numbers to be written. Large ones lie on large pages where the system has them: to touch those
// first takes a fifth of the time of small ones.
Tensor large_empty(torch::IntArrayRef sizes, const torch::TensorOptions& options) {
  const Tensor out = torch::empty(sizes, options);
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const auto first = reinterpret_cast<uintptr_t>(out.data_ptr()), last = first + out.nbytes();
  const uintptr_t from = (first + kPage - 1) / kPage * kPage, to = last / kPage * kPage;
  if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);  // NOLINT
#endif
  return out;
}

const float* data_or_null(const Tensor& b, int64_t e) {
  return b.numel() == 0 ? nullptr : b.data_ptr<float>() + e * b.size(1);
}

// What the kernels see of an expert's weights; transposed: the product goes backward.
kernels::Matrix weight_of(const Tensor& w, int64_t e, bool transposed = false) {
  const float* p = w.data_ptr<float>() + e * w.size(1) * w.size(2);
  return transposed ? kernels::Matrix{p, 1, w.size(2)} : kernels::Matrix{p, w.size(2), 1};
}

// A part of the panel's columns, each times its weight (null: 1), to the rows of its tokens.
void add_panel(const Panel& p, const Plan& plan, const float* panel, const float* weight, int64_t C,
               int64_t part, float* y) {
  const int64_t width = kernels::padded((C + kCommitParts - 1) / kCommitParts);
  kernels::add_panel(panel, plan.row_token.data_ptr<int32_t>() + p.first, weight, p.n, C,
                     std::min(C, part * width), std::min(C, (part + 1) * width), y);
}

class Fast : public torch::autograd::Function<Fast> {
 public:
  // Biases may be empty. `keep`: a backward may follow, which needs Z; else a panel's stays in the
  // cache.
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w_in,
                        const Tensor& w_out, const Tensor& b_in, const Tensor& b_out,
                        const Tensor& pair_weight, const Plan& plan, const std::string& activation,
                        bool keep) {
    const int64_t C = x.size(1), wide = w_in.size(1), I = w_out.size(2);
    const std::vector<Panel> panels = panels_of(plan.offsets);
    const int64_t columns = panels.empty() ? 0 : panels.back().column + panels.back().lanes();
    const Tensor g = row_weights(pair_weight, plan);
    const Tensor Z = large_empty({keep ? columns : 0, wide}, x.options());
    const Tensor y = large_empty(x.sizes(), x.options()).zero_();
    std::vector<Tensor> results(panels.size());
    const auto one_panel = [&](int64_t i) {
      const torch::NoGradGuard no_grad;
      const Panel& p = panels[static_cast<size_t>(i)];
      const int64_t lanes = p.lanes();
      const Tensor in = torch::empty({C, lanes}, x.options());
      const Tensor z = keep ? Z.slice(0, p.column, p.column + lanes).view({wide, lanes})
                            : torch::empty({wide, lanes}, x.options());
      kernels::gather_panel(x.data_ptr<float>(), plan.row_token.data_ptr<int32_t>() + p.first, p.n,
                            C, in.data_ptr<float>());
      kernels::product_panel(weight_of(w_in, p.e), wide, C, in.data_ptr<float>(), lanes,
                             data_or_null(b_in, p.e), z.data_ptr<float>());
      const Tensor a = activated(z, activation);
      kernels::product_panel(weight_of(w_out, p.e), C, I, a.data_ptr<float>(), lanes,
                             data_or_null(b_out, p.e), in.data_ptr<float>());
      results[static_cast<size_t>(i)] = in;
    };
    const auto add = [&](int64_t i, int64_t part) {
      const Panel& p = panels[static_cast<size_t>(i)];
      Tensor& result = results[static_cast<size_t>(i)];
      add_panel(p, plan, result.data_ptr<float>(), g.data_ptr<float>() + p.first, C, part,
                y.data_ptr<float>());
      if (part == kCommitParts - 1) result.reset();
    };
    run_tasks_in_order(static_cast<int64_t>(panels.size()), one_panel, add);
    ctx->save_for_backward(
        {x, w_in, w_out, b_in, b_out, pair_weight, Z, plan.offsets, plan.row_token, plan.row_pair});
    ctx->saved_data["activation"] = activation;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    refuse_second_derivative("cpu");
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &w_in = saved[1], &w_out = saved[2], &b_in = saved[3],
                 &b_out = saved[4], &Z = saved[6];
    const Plan plan{.offsets = saved[7], .row_token = saved[8], .row_pair = saved[9]};
    const std::string activation = ctx->saved_data["activation"].toStringRef();
    const Tensor dy = grads[0].contiguous();
    const Tensor g = row_weights(saved[5], plan);
    const int64_t R = plan.row_token.size(0), E = w_in.size(0), C = x.size(1);
    const int64_t wide = w_in.size(1), I = w_out.size(2);
    const Tensor dx = large_empty(x.sizes(), x.options()).zero_();
    const Tensor dw_in = large_empty(w_in.sizes(), w_in.options());
    const Tensor dw_out = large_empty(w_out.sizes(), w_out.options());
    const Tensor db_in = torch::zeros_like(b_in), db_out = torch::zeros_like(b_out);
    const Tensor dg = torch::zeros({R}, x.options());

    // A task is an expert, the one with the most rows first; its panels add up in order.
    const std::vector<Panel> panels = panels_of(plan.offsets);
    const int32_t* at = plan.offsets.data_ptr<int32_t>();
    std::vector<int64_t> order(static_cast<size_t>(E));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return at[a + 1] - at[a] > at[b + 1] - at[b]; });
    const auto panels_of_task = [&](int64_t i) {
      return std::equal_range(panels.begin(), panels.end(),
                              Panel{order[static_cast<size_t>(i)], 0, 0, 0},
                              [](const Panel& a, const Panel& b) { return a.e < b.e; });
    };
    std::vector<Tensor> results(static_cast<size_t>(E));  // dx of an expert's panels
    const auto one_expert = [&](int64_t i) {
      const torch::NoGradGuard no_grad;
      const int64_t e = order[static_cast<size_t>(i)];
      const auto [first, last] = panels_of_task(i);
      if (first == last) {
        dw_in[e].zero_();
        dw_out[e].zero_();
        return;
      }
      const Panel& end = *(last - 1);
      const Tensor result =
          torch::empty({end.column + end.lanes() - first->column, C}, x.options());
      results[static_cast<size_t>(i)] = result;
      const Tensor dw_out_turned = torch::empty({I, C}, x.options());
      // Rows in blocks of kPanelRows columns, the last one wider than what is left.
      const Tensor blocks =
          torch::empty({(C + kPanelRows - 1) / kPanelRows, kPanelRows, kPanelRows}, x.options());
      for (auto p = first; p != last; ++p) {
        const int64_t lanes = p->lanes();
        const int32_t* tokens = plan.row_token.data_ptr<int32_t>() + p->first;
        const Tensor z = Z.slice(0, p->column, p->column + lanes).view({wide, lanes});
        const Tensor weight =
            torch::constant_pad_nd(g.slice(0, p->first, p->first + p->n), {0, lanes - p->n});
        const Tensor G =
            result.slice(0, p->column - first->column).slice(0, 0, lanes).view({C, lanes});
        const Tensor dA = torch::empty({I, lanes}, x.options());
        kernels::gather_panel(dy.data_ptr<float>(), tokens, p->n, C, G.data_ptr<float>());
        kernels::product_panel(weight_of(w_out, e, true), I, C, G.data_ptr<float>(), lanes, nullptr,
                               dA.data_ptr<float>());
        const auto [dZ, weighted, by_row] = activation_back(dA, z, weight, activation);
        Tensor dot = by_row;
        if (b_out.numel() > 0) {
          dot = dot + torch::mv(G.t(), b_out[e]);
          db_out[e].add_(torch::mv(G, weight));
        }
        dg.slice(0, p->first, p->first + p->n).copy_(dot.slice(0, 0, p->n));
        if (b_in.numel() > 0) db_in[e].add_(dZ.sum(1));
        // G is needed no longer: its place takes dx.
        kernels::product_panel(weight_of(w_in, e, true), C, wide, dZ.data_ptr<float>(), lanes,
                               nullptr, G.data_ptr<float>());
        kernels::gather_blocks(x.data_ptr<float>(), tokens, p->n, C, blocks.data_ptr<float>());
        kernels::outer(dZ.data_ptr<float>(), wide, lanes, blocks.data_ptr<float>(), p->n, C,
                       p != first, dw_in.data_ptr<float>() + e * wide * C);
        kernels::gather_blocks(dy.data_ptr<float>(), tokens, p->n, C, blocks.data_ptr<float>());
        kernels::outer(weighted.data_ptr<float>(), I, lanes, blocks.data_ptr<float>(), p->n, C,
                       p != first, dw_out_turned.data_ptr<float>());
      }
      kernels::transpose(dw_out_turned.data_ptr<float>(), I, C,
                         dw_out.data_ptr<float>() + e * C * I);
    };
    const auto add = [&](int64_t i, int64_t part) {
      const auto [first, last] = panels_of_task(i);
      Tensor& result = results[static_cast<size_t>(i)];
      for (auto p = first; p != last; ++p)
        add_panel(*p, plan, result.data_ptr<float>() + (p->column - first->column) * C, nullptr, C,
                  part, dx.data_ptr<float>());
      if (part == kCommitParts - 1) result.reset();
    };
    run_tasks_in_order(E, one_expert, add);
    const int64_t used = at[E];
    Tensor d_pair = torch::zeros_like(saved[5]);
    d_pair.index_copy_(0, plan.row_pair.slice(0, 0, used).to(torch::kInt64), dg.slice(0, 0, used));
    return {dx,
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
};

}  // namespace

Tensor experts_cpu(const Tensor& x, const Experts& experts, const Tensor& pair_weight,
                   const Plan& plan) {
  const auto or_empty = [&](const Tensor& b) {
    return b.defined() ? b.contiguous() : torch::empty({0});
  };
  return Fast::apply(x.contiguous(), experts.w_in.contiguous(), experts.w_out.contiguous(),
                     or_empty(experts.b_in), or_empty(experts.b_out), pair_weight.contiguous(),
                     plan, experts.activation, torch::GradMode::is_enabled());
}

}  // namespace sigma
