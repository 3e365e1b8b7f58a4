// Which runner a file has: the longest registered prefix of its case or stem.
#include <fmt/format.h>

#include <map>
#include <variant>

#include "sigma/base/error.h"
#include "tests/golden_runners/golden.h"

namespace sigma::golden {
namespace {

/// A runner, or the name of what is not built.
using Entry = std::variant<Runner, std::string>;

const std::map<std::string, Entry>& registry() {
  static const std::map<std::string, Entry> kRegistry = {
      // objectives
      {"path", run_path},
      {"preconditioner", run_preconditioner},
      {"imm-times", run_imm_times},
      {"imm-loss", run_imm_loss},
      {"imm-samplers", run_imm_samplers},
      {"grouped-mmd", run_grouped_mmd},
      {"dit-imm", run_dit_imm},
      {"dit-imm-loss", run_dit_imm_loss},
      {"dit-published", run_transformer},
      {"sit-published", run_transformer},
      {"fm-", run_flow_matching},
      {"optimizers", run_optimizers},
      {"ema", run_ema},
      {"metrics", run_metrics},
      {"heun", "sampler heun"},
      {"meanflow", "objective meanflow"},
      {"shortcut", "objective shortcut"},
      {"ect", "objective ect"},
      {"scm", "objective scm"},
      // attention
      {"rope_", run_rope},
      {"dense_", run_dense},
      {"mta_", run_multi_token},
      {"nsa_", run_sparse},
      {"vsa_", "attention sparse (preset vsa)"},
      {"vsa_lists_", run_sparse},
      {"vsa_tile_order", run_tile_order},
      {"select_", run_selection},
      // experts
      {"diffmoe", "moe expert choice over the batch"},
      {"ditmoe", run_moe},
      {"dsv3_", run_moe},
      {"ecdit", run_moe},
      {"formula_", run_moe},
      {"hf_", run_moe},
      {"promoe", "moe prototypes"},
      {"torchtitan", run_moe},
      // tokenizers
      {"diffaug", "tokenizer gan"},
      {"fsq", "tokenizer fsq"},
      {"gan-", "tokenizer gan"},
      {"hog-", run_hog},
      {"kl", run_kl},
      {"kl-model", run_tokenizer},
      {"lightningdit", "LightningDiT"},
      {"lpips", "tokenizer lpips"},
      {"mae", run_mae},
      {"maetok", run_tokenizer},
      {"maetok-train-step", run_train_step},
      {"mask-ratio", run_mask_ratio},
      {"movq", run_movq},
      {"rope2d-mixed", run_rope_mixed},
      {"rotation-trick", "tokenizer rotation"},
      {"semanticist", run_semanticist},
      {"sit-1d", "published latent generator"},
      {"sit-2d", "learned sigma"},
      {"softvq", "tokenizer softvq"},
      {"ssim-psnr", run_image_quality},
      {"titok", run_tokenizer},
      {"titok-legacy", "tokenizer titok legacy"},
      {"titok-pixel-decoder", "tokenizer titok pixel decoder"},
      {"titok-resblock", "tokenizer titok pixel decoder"},
      {"toy-", "published checkpoints"},
      {"vitok", run_tokenizer},
      {"vq-", run_vq},
      {"vq-cvq-restart", "tokenizer cvq restart"},
  };
  return kRegistry;
}

const Entry* find(const std::string& name) {
  const Entry* best = nullptr;
  size_t length = 0;
  for (const auto& [prefix, entry] : registry()) {
    if (name.starts_with(prefix) && prefix.size() > length) {
      best = &entry;
      length = prefix.size();
    }
  }
  return best;
}

}  // namespace

Report run_file(const std::filesystem::path& path) {
  Report report;
  try {
    const GoldenFile file(path);
    const Json name = file.meta("case");
    const Entry* entry = name.is_string() ? find(name.get<std::string>()) : nullptr;
    if (!entry) entry = find(path.stem().string());
    if (!entry) {
      report.is_true("no runner knows this file", false);
    } else if (const auto* option = std::get_if<std::string>(entry)) {
      report.skip(*option);
    } else {
      std::get<Runner> (*entry)(file, report);
    }
  } catch (const Skip& skip) {
    report.skip(skip.option);
  } catch (const Error& error) {
    report.is_true(error.what(), false);
  } catch (const std::exception& error) {
    std::string first = error.what();
    report.is_true(first.substr(0, first.find('\n')), false);
  }
  return report;
}

}  // namespace sigma::golden
