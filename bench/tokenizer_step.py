#!/usr/bin/env python3
"""The peer of bench/tokenizer_step_{cpu,gpu}: the same tokenizer and losses in PyTorch.

Takes Sigma's own [tokenizer] table as JSON (settings that the benchmark uses). Prints
`parameters P` after the warm-up; then, for every line `N` on its standard input, N lines: seconds of a step.
"""
import argparse
import json
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=json.loads, required=True)
parser.add_argument("--optimizer", type=json.loads, required=True)
parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
parser.add_argument("--device", default="cpu")
parser.add_argument("--dtype", default="float32")
parser.add_argument("--batch", type=int, default=128)
parser.add_argument("--shape", default="1,28,28")
parser.add_argument("--warmup", type=int, default=5)
parser.add_argument("--threads", type=int, default=0)
args = parser.parse_args()
if args.threads:
    torch.set_num_threads(args.threads)
torch.manual_seed(0)
CONFIG = args.config
C, H, W = map(int, args.shape.split(","))
P, L, Z = CONFIG["patch_size"], CONFIG["encoder"]["queries"], CONFIG["bottleneck"]["dim"]
GH, GW = H // P, W // P
N = GH * GW
MASK, HOG = CONFIG["mask"], CONFIG["hog"]
device = torch.device(args.device)


def patchify(x):
    x = x.reshape(-1, C, GH, P, GW, P).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(-1, N, C * P * P)


def unpatchify(x):
    x = x.reshape(-1, GH, GW, P, P, C).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(-1, C, H, W)


def token(*shape):
    return nn.Parameter(0.02 * torch.randn(*shape))


def rotate(x, cos, sin):
    """Pairs (2k, 2k+1) of the first tokens, the image's; the others stay."""
    n = cos.shape[-2]
    pairs = x[:, :, :n].float().unflatten(-1, (-1, 2))
    if args.mode == "compile":  # has no code of its own for complex numbers
        a, b = pairs.unbind(-1)
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    turned = turned.flatten(-2)
    return torch.cat((turned.to(x.dtype), x[:, :, n:]), 2)


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, rope):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    """Pre-norm; with `latents` channels of a condition, that modulates the last L rows (MAETok)."""

    def __init__(self, trunk, latents, offset):
        super().__init__()
        dim = trunk["hidden_size"]
        hidden = int(trunk["mlp_ratio"] * dim)
        self.offset = offset
        self.norm1 = nn.LayerNorm(dim, trunk["norm_eps"], elementwise_affine=not latents)
        self.norm2 = nn.LayerNorm(dim, trunk["norm_eps"], elementwise_affine=not latents)
        self.attn = Attention(dim, trunk["num_heads"])
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.act = {"silu": nn.SiLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh")}[trunk["mlp"]["activation"]]
        self.modulation = nn.Linear(latents, 4 * dim) if latents else None

    def modulate(self, x, shift, scale):
        n = x.shape[1] - L
        return torch.cat((x[:, :n], x[:, n:] * (self.offset + scale) + shift), 1)

    def forward(self, x, c, rope):
        if self.modulation is None:
            x = x + self.attn(self.norm1(x), rope)
            return x + self.fc2(self.act(self.fc1(self.norm2(x))))
        shift1, scale1, shift2, scale2 = self.modulation(c).chunk(4, 2)
        x = x + self.attn(self.modulate(self.norm1(x), shift1, scale1), rope)
        return x + self.fc2(self.act(self.fc1(self.modulate(self.norm2(x), shift2, scale2))))


class Trunk(nn.Module):
    def __init__(self, trunk, latents=0, offset=0.0):
        super().__init__()
        dim, depth, heads = trunk["hidden_size"], trunk["depth"], trunk["num_heads"]
        self.position = token(1, N, dim) if trunk["position"] == "learned" else None
        self.freqs = None
        if trunk["rope"]["kind"] == "mixed":
            radius = trunk["rope"]["theta"] ** (-torch.arange(0, dim // heads, 4) / (dim // heads))
            turn = 2 * math.pi * torch.rand(depth, heads, 1)
            axes = [torch.cat([radius * f(turn), radius * f(turn + math.pi / 2)], -1) for f in (torch.cos, torch.sin)]
            self.freqs = nn.Parameter(torch.stack(axes))
            self.register_buffer("column", torch.arange(N).remainder(GW).float()[:, None])
            self.register_buffer("row", torch.arange(N).div(GW, rounding_mode="floor").float()[:, None])
        self.blocks = nn.ModuleList(Block(trunk, latents, offset) for _ in range(depth))

    def forward(self, image, rest, condition=None):
        if self.position is not None:
            image = image + self.position
        x = torch.cat((image, rest), 1)
        c = None if condition is None else F.silu(condition)
        if self.freqs is not None:
            angle = self.column * self.freqs[0].unsqueeze(2) + self.row * self.freqs[1].unsqueeze(2)
            cos, sin = angle.cos(), angle.sin()  # [depth, heads, N, D/2]
        for i, block in enumerate(self.blocks):
            x = block(x, c, None if self.freqs is None else (cos[i], sin[i]))
        return x


class Encoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        dim = config["trunk"]["hidden_size"]
        self.embed = nn.Linear(C * P * P, dim)
        self.mask_token = token(dim) if MASK["policy"] == "replace" else None
        self.queries = token(L, dim)
        self.trunk = Trunk(config["trunk"])
        self.norm = nn.LayerNorm(dim, config["trunk"]["norm_eps"])

    def forward(self, patches, hidden):
        x = self.embed(patches)
        if hidden is not None:
            x = torch.where(hidden[:, :, None], self.mask_token, x)
        x = self.trunk(x, self.queries.expand(len(x), -1, -1))
        return self.norm(x[:, N:])


class Decoder(nn.Module):
    def __init__(self, config, trunk, outputs):
        super().__init__()
        dim = trunk["hidden_size"]
        modulated = config["condition"] == "latent_tokens"
        self.modulated = modulated
        self.up = nn.Linear(Z, dim)
        self.query = token(1, dim)
        self.latent_positions = token(L, dim)
        self.trunk = Trunk(trunk, Z if modulated else 0, config["scale_offset"])
        self.norm = nn.LayerNorm(dim, trunk["norm_eps"], elementwise_affine=not modulated)
        self.head = nn.Linear(dim, outputs)

    def forward(self, c):
        u = self.up(c) + self.latent_positions
        x = self.trunk(self.query.expand(len(c), N, -1), u, c if self.modulated else None)
        return self.head(self.norm(x[:, :N])).float()


class Tokenizer(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder(CONFIG["encoder"])
        self.down = nn.Linear(CONFIG["encoder"]["trunk"]["hidden_size"], Z)
        self.decoder = Decoder(CONFIG["decoder"], CONFIG["decoder"]["trunk"], C * P * P)
        if HOG["weight"]:
            trunk = CONFIG["decoder"]["trunk"] | {k: HOG[k] for k in ("hidden_size", "depth", "num_heads")}
            self.hog = Decoder(CONFIG["decoder"], trunk, C * HOG["bins"] * HOG["cells"] ** 2)

    def forward(self, images, hidden):
        c = self.down(self.encoder(patchify(images), hidden)).float()
        return unpatchify(self.decoder(c)), self.hog(c) if HOG["weight"] else None


class HogTargets(nn.Module):
    """Histograms of oriented gradients by patch and cell, normalised over bins (MaskFeat)."""

    def __init__(self):
        super().__init__()
        sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
        self.register_buffer("sobel", torch.stack([sobel, sobel.T])[:, None])
        g = torch.exp(-0.5 * ((torch.arange(P) - (P - 1) / 2) / (P / 2)) ** 2)
        window = g[:, None] * g
        self.register_buffer("window", (window / window.sum()).repeat(GH, GW))

    @torch.no_grad()
    def forward(self, images):
        b, bins, n = len(images), HOG["bins"], HOG["cells"]
        x = F.pad(images, (1, 1, 1, 1), mode="reflect").reshape(b * C, 1, H + 2, W + 2)
        gx, gy = F.conv2d(x, self.sobel).unbind(1)
        magnitude = torch.hypot(gx, gy) * self.window
        index = (torch.atan2(gx, gy) / math.pi * bins).floor().remainder(bins).long()
        h = torch.zeros(b * C, bins, H, W, device=x.device).scatter_(1, index[:, None], magnitude[:, None])
        h = h.view(b, C, bins, GH, n, P // n, GW, n, P // n).sum((5, 8))
        h = F.normalize(h, dim=2, eps=1e-12)
        return h.permute(0, 3, 5, 1, 2, 4, 6).reshape(b, N, C * bins * n * n)


def draw_mask():
    """The ratio from the lower half of a normal distribution at `high`, cut off at `low`; one a step."""
    if MASK["policy"] == "none":
        return None
    edge = 0.5 * (1 + math.erf((MASK["low"] - MASK["high"]) / MASK["scale"] / math.sqrt(2)))
    u = torch.rand(())
    ratio = MASK["high"] + MASK["scale"] * torch.special.ndtri(edge + u * (0.5 - edge))
    count = (ratio * N).ceil().clamp(1, N - 1).to(device)
    rank = torch.rand(args.batch, N, device=device).argsort(1).argsort(1)
    return rank < count


def mean_over(loss, hidden):
    return loss.mean() if hidden is None else (loss * hidden).sum() / hidden.sum()


def loss_of(images, hidden):
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.dtype == "bfloat16"):
        pixels, gradients = net(images, hidden)
    loss = F.mse_loss(pixels, images)
    if gradients is not None:
        error = (gradients - hog_targets(images)).square().mean(2)
        loss = loss + HOG["weight"] * mean_over(error, hidden if HOG["masked_only"] else None)
    return loss


net = Tokenizer().to(device)
hog_targets = HogTargets().to(device)
parameters = list(net.parameters())
average = [p.detach().clone() for p in parameters]
OPTIMIZER = args.optimizer
optimizer = torch.optim.AdamW(parameters, lr=OPTIMIZER["lr"], betas=(OPTIMIZER["beta1"], OPTIMIZER["beta2"]),
                              eps=OPTIMIZER["eps"], weight_decay=OPTIMIZER["weight_decay"], fused=True)
images = 0.5 * torch.randn(args.batch, C, H, W, device=device)
step_loss = torch.compile(loss_of) if args.mode == "compile" else loss_of


def step():
    optimizer.zero_grad(set_to_none=True)
    step_loss(images, draw_mask()).backward()
    if OPTIMIZER["grad_clip"]:
        nn.utils.clip_grad_norm_(parameters, OPTIMIZER["grad_clip"])
    optimizer.step()
    with torch.no_grad():
        torch._foreach_lerp_(average, parameters, 0.01)


def synchronize():
    if device.type == "cuda":
        torch.cuda.synchronize()


for _ in range(args.warmup):
    step()
print(f"parameters {sum(p.numel() for p in parameters)}", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        synchronize()
        start = time.perf_counter()
        step()
        synchronize()
        print(time.perf_counter() - start, flush=True)
