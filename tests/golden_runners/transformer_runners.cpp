// dit-imm, dit-imm-loss, dit-published, sit-published, fm-*: the diffusion transformer and losses
// on it.
#include <fmt/format.h>
#include <torch/types.h>

#include "sigma/generator/objectives/flow_matching.h"
#include "sigma/trunk/patches.h"
#include "sigma/trunk/positions.h"
#include "tests/golden_runners/imm.h"
#include "tests/golden_runners/setup.h"
#include "tests/golden_runners/transformer.h"

namespace sigma::golden {
namespace {

using torch::Tensor;

/// "s", "delta", "s_scale1", "none_scale1000": the second time and the time scale of a variant.
Json variant_options(const GoldenFile& file, const std::string& variant) {
  Json options = file.options();
  const size_t scale = variant.find("_scale");
  options["second_time"] = variant.substr(0, scale);
  if (scale != std::string::npos) options["time_scale"] = std::stod(variant.substr(scale + 6));
  return options;
}

struct Variant {
  NetworkConfig config;
  Preconditioner f;
  std::shared_ptr<DiffusionTransformer> network;

  Tensor G(const Tensor& x_t, const Tensor& t, const Tensor& s, const Tensor& labels) const {
    const torch::NoGradGuard no_grad;
    return raw_output(*network, f, x_t, t, s, {labels}, {}).value;
  }
};

/// The networks' parts that the file stores at time_scale 1000 with the second time s.
void check_embeddings(const GoldenFile& file, const Variant& v, Report& report) {
  const torch::NoGradGuard no_grad;
  const auto modules = v.network->named_modules();
  const auto linear = [&](const std::string& name, const Tensor& x) {
    return std::dynamic_pointer_cast<Linear>(modules[name])->forward(x);
  };
  const auto embed = [&](const std::string& embedder, const Tensor& time) {
    const Tensor features = time_features(time * v.config.time_scale, 128);
    return linear(embedder + ".mlp.2", torch::silu(linear(embedder + ".mlp.0", features)));
  };
  const Tensor t = file.get("t");
  if (file.has("emb_t"))
    report.relative("emb_t", time_features(t * v.config.time_scale, 128), file.get("emb_t"), 1e-12);
  if (file.has("t_emb")) report.relative("t_emb", embed("t_embedder", t), file.get("t_emb"), 1e-12);
  if (file.has("s_emb"))
    report.relative("s_emb", embed("s_embedder", file.get("s")), file.get("s_emb"), 1e-12);
  const auto parameters = v.network->named_parameters();
  if (file.has("y_emb")) {
    const Tensor table = parameters["y_embedder.embedding_table.weight"];
    report.relative("y_emb", table.index_select(0, file.get("labels")), file.get("y_emb"), 1e-12);
  }
  if (file.has("patches_plus_pos")) {
    const Tensor x = file.get("x_t");
    const Tensor tokens = linear("x_embedder.proj", patchify(x, v.config.patch_size));
    report.relative("patches_plus_pos", tokens + parameters["trunk.pos_embed"],
                    file.get("patches_plus_pos"), 1e-12);
    const Grid grid = patch_grid(x.size(2), x.size(3), v.config.patch_size);
    report.relative("patches_plus_pos, computed positions",
                    tokens + sincos_positions(grid, v.config.trunk.hidden_size, 2).to(device()),
                    file.get("patches_plus_pos"), kFixedPositions);
  }
}

void check_variant(const GoldenFile& file, const std::string& variant, Report& report) {
  const Json options = variant_options(file, variant);
  const Tensor x_t = file.get("x_t");
  const Tensor t = file.get("t");
  const Tensor s = file.get("s");
  const Tensor labels = file.has("labels") ? file.get("labels") : Tensor();
  const auto make = [&](const std::string& position) {
    const NetworkConfig config = network_config(options, position);
    return Variant{config, make_preconditioner(options),
                   make_network(config, sample_shape(x_t), file)};
  };
  const Variant stored = make(file.has("weight.pos_embed") ? "learned" : "sincos2d");
  const double bound = bound64(stored.config);
  const auto name = [&](const char* tensor) { return variant + "." + tensor; };

  const Tensor expected = file.get(name("G"));
  const Tensor G = stored.G(x_t, t, s, labels);
  report.relative(name("G"), G, expected, bound);
  if (file.has(name("f")))
    report.relative(name("f"), stored.f.apply(x_t, G, s, t), file.get(name("f")), bound);
  if (file.has(name("nondyadic_G"))) {
    report.relative(name("nondyadic_G"),
                    stored.G(x_t, file.get("nondyadic.t"), file.get("nondyadic.s"), labels),
                    file.get(name("nondyadic_G")), bound);
  }
  const auto guided = options.find("guided");
  if (file.has(name("guided_f")) && guided != options.end()) {
    GuidanceConfig guidance;
    guidance.scale = number(*guided, "scale", 1);
    const int64_t B = x_t.size(0);
    const Tensor label =
        labels.index_select(0, torch::full({B}, whole(*guided, "label_row", 0), labels.options()));
    const auto at = [&](const char* key) {
      return torch::full({B}, number(*guided, key, 0), x_t.options());
    };
    const torch::NoGradGuard no_grad;
    ImmConfig imm;
    const Tensor out =
        Imm(imm, stored.f).jump(*stored.network, x_t, at("t"), at("s"), {label}, guidance, {});
    report.relative(name("guided_f"), out, file.get(name("guided_f")), bound);
  }
  if (file.has("weight.pos_embed")) {
    report.relative(name("G, computed positions"), make("sincos2d").G(x_t, t, s, labels), expected,
                    kFixedPositions);
  }
  if (stored.config.second_time == "s" && stored.config.time_scale == 1000)
    check_embeddings(file, stored, report);
  stored.network->to(torch::kFloat);
  report.relative(name("G, float32"), stored.G(x_t, t, s, labels), expected,
                  bound32(stored.config));
}

}  // namespace

void run_dit_imm(const GoldenFile& file, Report& report) {
  for (const std::string& variant : file.prefixes("G")) {
    sub_case(report, [&] { check_variant(file, variant, report); });
  }
}

void run_dit_imm_loss(const GoldenFile& file, Report& report) {
  const Json& options = file.options();
  const GoldenFile weights(file.path().parent_path() /
                           text(options, "weights_file", file.path().filename().string()));
  const ImmConfig imm_config = make_imm_config(options);
  const Preconditioner f = make_preconditioner(options);
  const int64_t M = imm_config.group_size;
  const Tensor t = file.get("t");
  const Tensor r = file.get("r");
  const Tensor s = file.get("s");
  GeneratorBatch batch{file.get("x"), file.has("labels") ? file.get("labels") : Tensor()};
  Draws draws;
  draws.t = t.repeat_interleave(M);
  draws.r = r.repeat_interleave(M);
  draws.s = s.repeat_interleave(M);
  draws.eps = file.get("eps");
  draws.student_labels = file.has("labels_student") ? file.get("labels_student") : batch.labels;

  const NetworkConfig config =
      network_config(options, weights.has("weight.pos_embed") ? "learned" : "sincos2d");
  const auto network = make_network(config, sample_shape(batch.data), weights);
  Recorder student(*network);
  Recorder target(*network);
  const Output out = Imm(imm_config, f).loss(student, target, batch, draws, Context{});
  out.losses.at("imm").backward();
  const ImmParts parts =
      imm_parts(imm_config, f, batch.data, draws.eps, t, r, s, student.G.detach(), target.G);
  check_imm_parts(file, imm_config, parts, out, report);
  check_parameter_gradients(file, *network, report);

  const double G_max =
      std::max(student.G.abs().max().item<double>(), target.G.abs().max().item<double>());
  network->zero_grad();
  network->to(torch::kFloat);
  const Output narrow = Imm(imm_config, f).loss(*network, *network, batch, draws, Context{});
  // |dm| <= 4 kappa (|dy| + |dz|), |dy| <= |c_out| |dG|, kappa |c_out| = kernel_scale / D, and z
  // moves less than y.
  const auto D = static_cast<double>(batch.data[0].numel());
  const double similarity = 8 * imm_config.kernel_scale * bound32(config) * G_max / std::sqrt(D);
  report.absolute("per_group, float32", narrow.value, out.value, parts.weight * similarity + 1e-12);
}

void run_transformer(const GoldenFile& file, Report& report) {
  const Json& options = file.options();
  const Tensor x = file.get("x").requires_grad_();
  const Tensor t = file.get("t");
  const Tensor labels = file.has("labels") ? file.get("labels") : Tensor();
  const bool table = file.has("weight.pos_embed");
  const NetworkConfig config = network_config(options, table ? "learned" : "sincos2d");
  const auto network = make_network(config, sample_shape(x), file);
  const auto forward = [&](DiffusionTransformer& net, const Tensor& input, const Tensor& label) {
    return net.forward(input, t, t, {label}, Context{}).value;
  };
  const Tensor expected = file.get("G");
  const Tensor G = forward(*network, x, labels);
  report.relative("G", G, expected, bound64(config));
  if (file.has("dy")) {
    (G * file.get("dy")).sum().backward();
    if (file.has("grad_x"))
      report.relative("grad_x", x.grad(), file.get("grad_x"), bound64(config));
    check_parameter_gradients(file, *network, report);
  }
  const torch::NoGradGuard no_grad;
  if (file.has("guided_first3") && config.num_classes > 0) {
    // Their guidance acts on three channels; ours, on all, is the same arithmetic.
    const std::string note = text(options, "guided_first3", "");
    const size_t at = note.find("scale ");
    const double scale = at == std::string::npos ? number(options, "guidance_scale", 1)
                                                 : std::stod(note.substr(at + 6));
    const Tensor known = labels.clamp_max(config.num_classes - 1);
    const Tensor conditional = forward(*network, x, known);
    const Tensor null = forward(*network, x, torch::full_like(labels, config.num_classes));
    Tensor guided = conditional.clone();
    guided.narrow(1, 0, 3).copy_((null + scale * (conditional - null)).narrow(1, 0, 3));
    report.relative("guided_first3", guided, file.get("guided_first3"), bound64(config));
  }
  if (table) {
    const auto computed = make_network(network_config(options, "sincos2d"), sample_shape(x), file);
    report.relative("G, computed positions", forward(*computed, x, labels), expected,
                    kFixedPositions);
  }
  network->to(torch::kFloat);
  report.relative("G, float32", forward(*network, x.to(torch::kFloat), labels), expected,
                  bound32(config));
}

void run_flow_matching(const GoldenFile& file, Report& report) {
  const Json& options = file.options();
  const Preconditioner f = make_preconditioner(options);
  const Tensor x = file.get("x");
  const NetworkConfig config =
      network_config(options, file.has("weight.pos_embed") ? "learned" : "sincos2d");
  const auto network = make_network(config, sample_shape(x), file);
  Recorder recorder(*network);
  GeneratorBatch batch{x, file.has("labels") ? file.get("labels") : Tensor()};
  Draws draws;
  draws.t = file.get("t");
  draws.s = draws.t;
  draws.eps = file.get("eps");
  draws.student_labels = file.has("labels_student") ? file.get("labels_student") : batch.labels;
  const Output out = FlowMatching({}, f).loss(recorder, recorder, batch, draws, Context{});
  const Tensor loss = out.losses.at("flow_matching");
  loss.backward();

  const double bound = bound64(config);
  const auto check = [&](const char* name, const Tensor& actual) {
    if (file.has(name))
      report.relative(name, actual.view(file.get(name).sizes()), file.get(name), bound);
  };
  check("x_t", f.path().interpolate(x, draws.eps, draws.t));
  check("net_input", recorder.input);
  check("G", recorder.G);
  check("per_sample", out.value);
  check("loss", loss);
  check("grad_G", recorder.G.grad());
  if (file.has("published_loss")) {
    // SiT's velocity is -sd G on the linear path, -(pi/2) sd G on the cosine path.
    const double factor = f.path().sigma_data() * (f.path().kind() == "vp_cosine" ? M_PI / 2 : 1);
    check("published_loss", factor * factor * loss);
  }
  check_parameter_gradients(file, *network, report);

  network->zero_grad();
  network->to(torch::kFloat);
  const Output narrow = FlowMatching({}, f).loss(*network, *network, batch, draws, Context{});
  if (file.has("per_sample"))
    report.relative("per_sample, float32", narrow.value, file.get("per_sample"),
                    4 * bound32(config));
}

}  // namespace sigma::golden
