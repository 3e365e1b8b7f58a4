#include "sigma/attention/selection.h"

#include <ATen/Parallel.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The choice of one row. Blocks are ids of the geometry's cubes.
class Row {
 public:
  Row(const SelectionConfig& config, const float* score, const float* keys, int64_t W, int64_t D)
      : config_(config), score_(score), keys_(keys), D_(D), taken_(static_cast<size_t>(W)) {}

  // Of the blocks 0 .. count - 1.
  std::vector<int32_t> choose(int64_t count, const std::vector<int32_t>& forced) {
    n_ = std::min(config_.num_selected, count);
    for (const int32_t j : forced) take(j);
    const bool top_n = config_.strategy == "top_n";
    const int64_t pool = top_n ? n_ : config_.pool_factor * config_.num_selected;
    const int64_t kept = pool > 0 ? std::min(pool, count) : count;
    std::vector<int32_t> best(static_cast<size_t>(count));
    std::iota(best.begin(), best.end(), 0);
    std::partial_sort(best.begin(), best.begin() + kept, best.end(),
                      [&](int32_t a, int32_t b) { return before(a, b); });
    best.resize(static_cast<size_t>(kept));
    if (top_n) {
      for (const int32_t j : best) take(j);
    } else if (config_.strategy == "dart") {
      dart(best);
    } else {
      max_min(best);
    }
    std::sort(chosen_.begin(), chosen_.end());
    return chosen_;
  }

 private:
  bool full() const { return std::cmp_greater_equal(chosen_.size(), n_); }
  bool take(int32_t j) {
    if (full() || taken_[static_cast<size_t>(j)]) return false;
    taken_[static_cast<size_t>(j)] = true;
    chosen_.push_back(j);
    return true;
  }
  // Higher score first, then lower index; NaN last.
  bool before(int32_t a, int32_t b) const {
    const float x = score_[a];
    const float y = score_[b];
    if (std::isnan(x) || std::isnan(y))
      return std::isnan(x) == std::isnan(y) ? a < b : std::isnan(y);
    return x != y ? x > y : a < b;
  }
  double dot(int32_t a, int32_t b) const {
    double sum = 0;
    for (int64_t d = 0; d < D_; ++d)
      sum += static_cast<double>(keys_[a * D_ + d]) * static_cast<double>(keys_[b * D_ + d]);
    return sum;
  }
  double cosine(int32_t a, int32_t b) const { return dot(a, b) / std::sqrt(dot(a, a) * dot(b, b)); }
  // What diversity may pick: not taken, and with a direction.
  bool open(int32_t j) const { return !taken_[static_cast<size_t>(j)] && dot(j, j) > 0; }

  void dart(const std::vector<int32_t>& pool) {
    const bool by_norm = config_.pivot == "key_norm";
    const auto norm = [&](int32_t j) {
      double sum = 0;
      for (int64_t d = 0; d < D_; ++d) sum += std::abs(static_cast<double>(keys_[j * D_ + d]));
      return sum;
    };
    const auto better = [&](int32_t a, int32_t b) {
      return by_norm ? norm(a) > norm(b) : before(a, b);
    };
    std::vector<int32_t> best = pool;  // pool stays in the order of scores
    std::stable_sort(best.begin(), best.end(), better);
    int64_t more = config_.num_pivots;
    for (const int32_t j : best) {
      if (more > 0 && open(j) && take(j)) --more;
    }
    std::vector<int32_t> pivots = chosen_;
    std::stable_sort(pivots.begin(), pivots.end(), better);
    const auto P = static_cast<int64_t>(pivots.size());
    const int64_t rest = n_ - P;
    for (int64_t i = 0; i < P; ++i) {
      const int32_t pivot = pivots[static_cast<size_t>(i)];
      if (dot(pivot, pivot) == 0) continue;
      for (int64_t share = rest / P + (i < rest % P ? 1 : 0); share > 0; --share) {
        int32_t lowest = -1;
        double value = kInfinity;
        for (const int32_t j : pool) {
          if (!open(j)) continue;
          const double c = cosine(pivot, j);
          if (c < value) {
            value = c;
            lowest = j;
          }
        }
        if (lowest < 0) return;
        take(lowest);
      }
    }
  }

  void max_min(const std::vector<int32_t>& pool) {
    std::vector<double> distance(pool.size(), kInfinity);  // to the nearest chosen block
    const auto near = [&](int32_t chosen) {
      if (dot(chosen, chosen) == 0) return;
      for (size_t i = 0; i < pool.size(); ++i) {
        if (open(pool[i]))
          distance[i] = std::min(distance[i], std::max(0.0, 1 - cosine(chosen, pool[i])));
      }
    };
    for (const int32_t j : chosen_) near(j);
    if (chosen_.empty() && config_.alpha == 0) {
      // DivPrune begins with the block whose nearest neighbour is farthest.
      int32_t first = -1;
      double farthest = -1;
      for (const int32_t j : pool) {
        if (!open(j)) continue;
        double nearest = kInfinity;
        for (const int32_t i : pool) {
          if (i != j && open(i)) nearest = std::min(nearest, std::max(0.0, 1 - cosine(i, j)));
        }
        if (nearest > farthest) {
          farthest = nearest;
          first = j;
        }
      }
      if (first >= 0 && take(first)) near(first);
    }
    while (!full()) {
      size_t best = pool.size();
      double value = 0;
      for (size_t i = 0; i < pool.size(); ++i) {
        if (!open(pool[i])) continue;
        const double score = config_.alpha == 0 ? 0 : config_.alpha * log_of(score_[pool[i]]);
        // Before the first pick all are equally far.
        const double total = score + (distance[i] == kInfinity ? 0 : log_of(distance[i]));
        if (best == pool.size() || total > value) {
          best = i;
          value = total;
        }
      }
      if (best == pool.size()) return;
      take(pool[best]);
      near(pool[best]);
    }
  }
  static double log_of(double x) { return x > 0 ? std::log(x) : -kInfinity; }

  const SelectionConfig& config_;
  const float* score_;
  const float* keys_;
  int64_t D_;
  int64_t n_ = 0;
  std::vector<int32_t> chosen_;
  std::vector<bool> taken_;
};

// The forced blocks of a row in cube `own`: at the beginning, and around it.
std::vector<int32_t> forced_blocks(const Grid& cubes, int64_t own, int64_t init, int64_t radius,
                                   int64_t candidates) {
  std::vector<int32_t> out;
  const auto add = [&](int64_t j) {
    const auto id = static_cast<int32_t>(j);
    if (j < candidates && std::find(out.begin(), out.end(), id) == out.end()) out.push_back(id);
  };
  // Its own first: should n be too small near the beginning of a sequence, the own block stays.
  if (radius >= 0) add(own);
  for (int64_t j = 0; j < init; ++j) add(j);
  if (radius < 0) return out;
  const int64_t f = own / (cubes.height * cubes.width);
  const int64_t y = own / cubes.width % cubes.height;
  const int64_t x = own % cubes.width;
  const auto range = [&](int64_t at, int64_t size) {
    return std::pair{std::max<int64_t>(at - radius, 0), std::min(at + radius, size - 1)};
  };
  const auto [f0, f1] = range(f, cubes.frames);
  const auto [y0, y1] = range(y, cubes.height);
  const auto [x0, x1] = range(x, cubes.width);
  for (int64_t i = f0; i <= f1; ++i) {
    for (int64_t j = y0; j <= y1; ++j) {
      for (int64_t k = x0; k <= x1; ++k) add((i * cubes.height + j) * cubes.width + k);
    }
  }
  return out;
}

void check_room(const SelectionConfig& config, const ForcedBlocks& forced, size_t blocks) {
  SIGMA_CHECK(
      kUsage, std::cmp_less_equal(blocks, config.num_selected),
      "num_selected: expected at least the {} forced blocks (init_blocks {}, local_radius {}), got "
      "{}",
      blocks, forced.init, forced.radius, config.num_selected);
}

}  // namespace

ForcedBlocks forced_of(const SelectionConfig& config, bool causal) {
  return {.init = config.init_blocks >= 0 ? config.init_blocks
                  : causal                ? 1
                                          : 0,
          .radius = config.local_radius >= -1 ? config.local_radius
                    : causal                  ? 1
                                              : 0};
}

void check_forced(const SelectionConfig& config, const BlockGeometry& geometry, bool causal) {
  const ForcedBlocks forced = forced_of(config, causal);
  const int64_t W = geometry.grid_blocks;
  for (int64_t own = 0; own < W; ++own) {
    check_room(config, forced,
               forced_blocks(geometry.cubes, own, forced.init, forced.radius, causal ? own + 1 : W)
                   .size());
  }
}

void SelectionConfig::visit(ConfigVisitor& v) {
  v.field("num_selected", num_selected, in(1, 1024),
          "n, blocks a row attends, forced ones included");
  v.choice("strategy", strategy, {"top_n", "dart", "max_min"}, "how the blocks are chosen");
  v.field("init_blocks", init_blocks, in(-1, 64),
          "first blocks that every row attends; -1 = 1 if causal, else 0");
  v.field(
      "local_radius", local_radius, in(-2, 8),
      "blocks around its own, on each axis, that a row attends; -1 = none, -2 = 1 if causal, else "
      "0");
  v.field("pool_factor", pool_factor, in(0, 64),
          "dart, max_min: choose among the best this times n");
  v.field("num_pivots", num_pivots, in(1, 1024), "dart: pivots beside the forced blocks");
  v.choice("pivot", pivot, {"score", "key_norm"}, "dart: what makes a pivot");
  v.field("alpha", alpha, in(0, 1e6), "max_min: weight of the score; 0 = diversity alone");
}

Tensor block_scores(const Tensor& p_cmp, int64_t N, int64_t size, int64_t stride, int64_t block) {
  SIGMA_CHECK(
      kUsage, stride >= 1 && size % stride == 0 && block % stride == 0 && size <= block,
      "compress: expected a stride that divides compress_size and block, and compress_size of "
      "at most block; got {}, {}, {}",
      stride, size, block);
  const int64_t windows = p_cmp.size(-1);
  const int64_t W = (N + block - 1) / block;
  // Windows that meet block j begin at strides (j b - l)/d + 1 .. (j b + b)/d - 1.
  const int64_t before = size / stride - 1;
  const int64_t reach = before + block / stride;
  std::vector<double> weight;
  for (int64_t i = 0; i < reach; ++i) {
    const int64_t at = (i - before) * stride;  // the window's first token, from the block's
    const int64_t overlap = std::min(at + size, block) - std::max<int64_t>(at, 0);
    weight.push_back(static_cast<double>(overlap) / static_cast<double>(stride));
  }
  const Tensor window =
      (torch::arange(W) * (block / stride) - before).unsqueeze(1) + torch::arange(reach);
  const Tensor there = (window >= 0) & (window < windows);
  const Tensor weights = torch::tensor(weight, torch::kDouble) * there;
  if (windows == 0) {
    std::vector<int64_t> shape = p_cmp.sizes().vec();
    shape.back() = W;
    return torch::zeros(shape, p_cmp.options());
  }
  const Tensor terms =
      p_cmp.index_select(-1, window.clamp(0, windows - 1).flatten().to(p_cmp.device()))
          .unflatten(-1, {W, reach});
  return (terms * weights.to(p_cmp.device(), p_cmp.scalar_type())).sum(-1);
}

Tensor select_blocks(const SelectionConfig& config, const BlockGeometry& geometry,
                     const SelectionRows& rows, const Tensor& scores_in, const Tensor& keys_in) {
  const Tensor scores = scores_in.detach().to(torch::kCPU, torch::kFloat).contiguous();
  const bool diverse = config.strategy != "top_n";
  SIGMA_CHECK(kUsage, !diverse || keys_in.defined(), "selection: {} expects the blocks' mean keys",
              config.strategy);
  const Tensor keys =
      diverse ? keys_in.detach().to(torch::kCPU, torch::kFloat).contiguous() : Tensor();
  const int64_t W = scores.size(3);
  SIGMA_CHECK(kUsage, W == geometry.grid_blocks, "selection: expected scores of {} blocks, got {}",
              geometry.grid_blocks, W);
  const int64_t pairs = scores.size(0) * scores.size(1);
  const int64_t R = scores.size(2);
  const int64_t n = std::min(config.num_selected, W);
  const auto [init, radius] = forced_of(config, rows.causal);
  const Tensor out = torch::full({scores.size(0), scores.size(1), R, n}, -1, torch::kInt);
  const int64_t* start = geometry.start.data_ptr<int64_t>();
  const int64_t* block_of = geometry.block_of.data_ptr<int64_t>();
  std::vector<int64_t> candidates;  // of each row: the first so many blocks
  std::vector<std::vector<int32_t>> forced;
  for (int64_t r = 0; r < R; ++r) {
    const int64_t row = rows.first + r;
    const int64_t own = rows.tiles ? row : block_of[row];
    int64_t count = W;
    if (rows.causal) {
      const int64_t last = rows.tiles ? start[row + 1] - 1 : row;
      count = block_of[last] + 1;
    }
    candidates.push_back(count);
    forced.push_back(forced_blocks(geometry.cubes, own, init, radius, count));
    check_room(config, {init, radius}, forced.back().size());
  }
  at::parallel_for(0, pairs * R, 64, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const float* c = diverse ? keys.data_ptr<float>() + i / R * W * keys.size(3) : nullptr;
      Row row(config, scores.data_ptr<float>() + i * W, c, W, diverse ? keys.size(3) : 0);
      const auto r = static_cast<size_t>(i % R);
      const std::vector<int32_t> chosen = row.choose(candidates[r], forced[r]);
      std::copy(chosen.begin(), chosen.end(), out.data_ptr<int32_t>() + i * n);
    }
  });
  return out;
}

}  // namespace sigma
