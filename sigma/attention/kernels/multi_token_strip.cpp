#include "sigma/attention/kernels/multi_token_strip.h"

#include <algorithm>
#include <limits>

#include "sigma/attention/kernels/small_gemm.h"

namespace sigma::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Reach reach(const int64_t* steps, int64_t count) {
  Reach r;
  for (int64_t i = 0; i < count; ++i) {
    r.back = std::max(r.back, steps[i]);
    r.ahead = std::max(r.ahead, -steps[i]);
  }
  return r;
}

int64_t margin_of(const MultiToken& a) {
  int64_t most = 0;
  for (const MapConvolution* c : {&a.before, &a.after}) {
    const Reach r = reach(c->key_step, c->keys);
    most = std::max({most, r.back, r.ahead});
  }
  return padded(most);
}

}  // namespace

Reach query_reach(const MapConvolution& c) { return reach(c.query_step, c.queries); }

Taps::Taps(const MapConvolution& c, int64_t head, int64_t stride, bool transposed) {
  for (int kind = 0; kind < 4; ++kind) {
    const bool query_alone = kind & 2, key_alone = kind & 1;
    for (int64_t y = 0; y < c.keys; ++y) {
      const int64_t key_step = c.key_step[y];
      if (key_alone && key_step != 0) continue;
      KeyTaps same_key{.key_step = key_step};
      for (int64_t x = 0; x < c.queries; ++x) {
        const int64_t query_step = c.query_step[x] * stride;
        if (query_alone && query_step != 0) continue;
        const int64_t place = x * c.keys + y;
        const int64_t step = query_step + key_step;
        taps_[kind].push_back({transposed ? step : -step, c.weight[head * c.taps() + place]});
        same_key.in_offset.push_back(-query_step);
        same_key.place.push_back(place);
      }
      by_key_[kind].push_back(same_key);
    }
    stencils_[kind] = stencil_of(taps_[kind], stride);
  }
}

Strip::Strip(const MultiToken& a, const MultiTokenWork& work, int64_t b, int64_t first_head)
    : a_(a),
      b_(b),
      first_head_(first_head),
      heads_(work.heads),
      margin_(margin_of(a)),
      most_(work.strip) {}

Maps Strip::maps(Reach r1, Reach r2) const {
  const int64_t rows = most_ + r1.back + r1.ahead + r2.back + r2.ahead;
  return Maps(static_cast<size_t>(heads_), Map(rows, a_.places, margin_));
}

std::vector<Taps> Strip::taps(const MapConvolution& c, bool transposed) const {
  std::vector<Taps> all;
  for (int64_t h = 0; h < heads_; ++h)
    all.emplace_back(c, first_head_ + h, a_.places + 2 * margin_, transposed);
  return all;
}

std::vector<float> Strip::panels(const float* x, int64_t depth, float scale) const {
  std::vector<float> all(static_cast<size_t>(heads_ * a_.places * depth));
  for (int64_t h = 0; h < heads_; ++h)
    pack_panels(x + at(h) * depth, a_.places, depth, scale, &all[h * a_.places * depth]);
  return all;
}

int64_t Strip::columns(Rows rows) const {
  return a_.ordered ? std::min((rows.last + kPanel - 1) / kPanel * kPanel, a_.places) : a_.places;
}

int64_t Strip::columns_of_row(int64_t i) const {
  return a_.ordered ? std::min(padded(i + 1), a_.places) : a_.places;
}

Rows Strip::inside(Rows rows) const {
  const int64_t first = std::max<int64_t>(rows.first, 0);
  return {first, std::max(first, std::min(rows.last, a_.queries))};
}

void Strip::scores(const float* x, const std::vector<float>& panels, int64_t depth, Rows rows,
                   Maps& out) const {
  const Rows in = inside(rows);
  const int64_t width = columns(in);
  for (int64_t h = 0; h < heads_; ++h) {
    Map& map = out[h];
    map.hold(rows);
    if (in.first < in.last)
      product_with_panels(in.last - in.first, x + (at(h) + in.first) * depth, depth,
                          &panels[h * a_.places * depth], width / kPanel, map.row(in.first),
                          map.stride());
    for (int64_t i = rows.first; i < rows.last; ++i) {
      if (i < in.first || i >= in.last) {
        map.clear(i, 0);
        continue;
      }
      map.clear(i, width);
      hide_row(i, map);
    }
  }
}

void Strip::hide_row(int64_t i, Map& map) const {
  if (!a_.rank) return;
  if (a_.ordered) return map.clear(i, i + 1);
  for (int64_t j = 0; j < a_.places; ++j)
    if (a_.rank[j] > a_.rank[i]) map.row(i)[j] = 0;
}

void Strip::hide(Rows rows, Maps& maps) const {
  for (Map& map : maps)
    for (int64_t i = rows.first; i < rows.last; ++i) hide_row(i, map);
}

void Strip::convolve_rows(const Taps& taps, const Map& in, int64_t i, int64_t rows,
                          Map& out) const {
  const bool alone = i >= a_.isolated;
  const int64_t width = columns_of_row(i + rows - 1);
  const int64_t split = std::min(width, a_.isolated);
  for (const bool key_alone : {false, true}) {
    const int64_t first = key_alone ? split : 0;
    const int64_t count = key_alone ? width - split : split;
    if (rows == kStencilRows) {
      stencil_rows(taps.stencil(alone, key_alone), in.row(i) + first, out.row(i) + first,
                   out.stride(), count);
    } else {
      stencil(taps.taps(alone, key_alone), in.row(i) + first, out.row(i) + first, count);
    }
  }
  for (int64_t r = i; r < i + rows; ++r) out.clear(r, columns_of_row(r));
}

void Strip::convolve(const std::vector<Taps>& taps, const Maps& in, Rows rows, Maps& out) const {
  const Rows exist = inside(rows);
  for (int64_t h = 0; h < heads_; ++h) {
    out[h].hold(rows);
    for (int64_t i = rows.first; i < rows.last;) {
      if (i < exist.first || i >= exist.last) {
        out[h].clear(i++, 0);
        continue;
      }
      const bool several =
          i + kStencilRows <= exist.last && (i >= a_.isolated || i + kStencilRows <= a_.isolated);
      const int64_t count = several ? kStencilRows : 1;
      convolve_rows(taps[h], in[h], i, count, out[h]);
      i += count;
    }
  }
}

void Strip::add_kernel_grad(const std::vector<Taps>& taps, const Maps& in, const Maps& grad,
                            Rows rows, int64_t taps_a_head, double* sums) const {
  std::vector<float> partial;
  const int64_t split = std::clamp(a_.isolated, rows.first, rows.last);
  for (int64_t h = 0; h < heads_; ++h) {
    for (const bool alone : {false, true}) {
      const Rows part = alone ? Rows{split, rows.last} : Rows{rows.first, split};
      for (const bool key_alone : {false, true}) {
        for (const KeyTaps& list : taps[h].by_key(alone, key_alone)) {
          partial.assign(list.place.size() * kLanes, 0.0f);
          for (int64_t i = part.first; i < part.last; ++i) {
            const int64_t width = columns_of_row(i);
            const int64_t first = key_alone ? std::min(width, a_.isolated) : 0;
            const int64_t last = key_alone ? width : std::min(width, a_.isolated);
            stencil_grad(list, in[h].row(i) + first, grad[h].row(i) + first, last - first,
                         partial.data());
          }
          const float* lane = partial.data();
          for (const int64_t place : list.place)
            for (int64_t l = 0; l < kLanes; ++l) sums[h * taps_a_head + place] += *lane++;
        }
      }
    }
  }
}

void Strip::mix_heads(const MapConvolution& c, Rows rows, Maps& maps, bool transposed) const {
  if (!c.mix) return;
  std::vector<float*> x(static_cast<size_t>(c.heads));
  const Rows exist = inside(rows);
  for (int64_t g = 0; g < heads_; g += c.heads) {
    const float* weight = c.mix + (first_head_ + g) * c.heads;
    for (int64_t i = exist.first; i < exist.last; ++i) {
      for (int64_t h = 0; h < c.heads; ++h) x[h] = maps[g + h].row(i);
      mix(weight, transposed ? 1 : c.heads, transposed ? c.heads : 1, c.heads, x.data(),
          columns_of_row(i));
    }
  }
}

void Strip::add_mix_grad(const MapConvolution& c, const Maps& in, const Maps& grad, Rows rows,
                         double* sums) const {
  if (!c.mix) return;
  for (int64_t to = 0; to < heads_; ++to) {
    const int64_t group = to / c.heads * c.heads;
    for (int64_t from = 0; from < c.heads; ++from) {
      for (int64_t i = rows.first; i < rows.last; ++i)
        sums[to * c.heads + from] +=
            dot(grad[to].row(i), in[group + from].row(i), columns_of_row(i));
    }
  }
}

void Strip::probabilities(Maps& maps, float* lse, Rows rows) const {
  for (int64_t h = 0; h < heads_; ++h) {
    Map& map = maps[h];
    for (int64_t i = map.rows().first; i < map.rows().last; ++i) {
      if (i < 0 || i >= a_.queries || !a_.is_token[i]) {
        map.clear(i, 0);
        continue;
      }
      float* s = map.row(i);
      const int64_t width = columns_of_row(i);
      if (a_.ordered) {
        std::fill(s + i + 1, s + width, -kInfinity);
      } else if (a_.rank) {
        for (int64_t j = 0; j < a_.places; ++j)
          if (a_.rank[j] > a_.rank[i]) s[j] = -kInfinity;
      }
      const float log_sum = softmax(a_.bias + b_ * a_.places, s, width);
      if (lse && i >= rows.first && i < rows.last) lse[at(h) + i] = log_sum;
    }
  }
}

void Strip::softmax_grads(const Maps& P, Maps& grad) const {
  for (int64_t h = 0; h < heads_; ++h) {
    const Rows rows = inside(grad[h].rows());
    for (int64_t i = rows.first; i < rows.last; ++i)
      softmax_grad(P[h].row(i), grad[h].row(i), columns_of_row(i));
  }
}

}  // namespace sigma::kernels
