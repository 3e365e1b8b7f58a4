#!/usr/bin/env python3
"""The peer of bench/imm_step_{cpu,gpu}: the same transformer and IMM loss in PyTorch, eager or compiled.

Prints `median_seconds X`. Needs a full torch wheel; started by the C++ program, or by hand (--help).
"""
import argparse
import math
import time

import torch
import torch.nn.functional as F
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
parser.add_argument("--device", default="cpu")
parser.add_argument("--dtype", default="float32")
parser.add_argument("--batch", type=int, default=128)
parser.add_argument("--shape", default="1,28,28")
parser.add_argument("--patch", type=int, default=7)
parser.add_argument("--hidden", type=int, default=128)
parser.add_argument("--depth", type=int, default=4)
parser.add_argument("--heads", type=int, default=4)
parser.add_argument("--ratio", type=int, default=4)
parser.add_argument("--classes", type=int, default=10)
parser.add_argument("--activation", default="silu")
parser.add_argument("--preconditioner", default="simple_edm")
parser.add_argument("--warmup", type=int, default=5)
parser.add_argument("--steps", type=int, default=25)
parser.add_argument("--threads", type=int, default=0)
args = parser.parse_args()
if args.threads:
    torch.set_num_threads(args.threads)
torch.manual_seed(0)
C, H, W = map(int, args.shape.split(","))
P, D = args.patch, args.hidden
device = torch.device(args.device)
SD, T_MAX, T_MIN, K, A, B_SHIFT, M = 0.5, 0.994, 0.006 if C == 1 else 0.0, 12, 1.0, 4.0, 4
GAP_TR, GAP_TS = (1e-4 if args.dtype == "bfloat16" else 0.0), 1e-4


def activation(x):
    return F.silu(x) if args.activation == "silu" else F.gelu(x, approximate="tanh")


def sincos(h, w, d):
    def axis(p, width):
        omega = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) * 2 / width)
        angle = p[:, None] * omega
        return torch.cat([angle.sin(), angle.cos()], 1)

    row = torch.arange(h, dtype=torch.float64).repeat_interleave(w)
    column = torch.arange(w, dtype=torch.float64).repeat(h)
    return torch.cat([axis(column, d // 2), axis(row, d // 2)], 1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(D, eps=1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(D, eps=1e-6, elementwise_affine=False)
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.fc1, self.fc2 = nn.Linear(D, args.ratio * D), nn.Linear(args.ratio * D, D)
        self.ada = nn.Linear(D, 6 * D)

    def forward(self, x, c):
        with torch.autocast(device.type, enabled=False):
            h1, c1, g1, h2, c2, g2 = self.ada(c).chunk(6, 1)
        b, n, _ = x.shape
        h = self.norm1(x) * (1 + c1[:, None]) + h1[:, None]
        q, k, v = self.qkv(h).view(b, n, 3, args.heads, -1).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, D)
        x = x + g1[:, None] * self.proj(h)
        h = self.norm2(x) * (1 + c2[:, None]) + h2[:, None]
        return x + g2[:, None] * self.fc2(activation(self.fc1(h)))


class DiT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(C * P * P, D)
        self.t1, self.t2 = nn.Linear(256, D), nn.Linear(D, D)
        self.s1, self.s2 = nn.Linear(256, D), nn.Linear(D, D)
        self.labels = nn.Embedding(args.classes + 1, D)
        self.register_buffer("pos", sincos(H // P, W // P, D).float())
        self.blocks = nn.ModuleList(Block() for _ in range(args.depth))
        self.norm = nn.LayerNorm(D, eps=1e-6, elementwise_affine=False)
        self.ada, self.last = nn.Linear(D, 2 * D), nn.Linear(D, C * P**2)
        self.register_buffer("freq", torch.exp(-math.log(10000.0) * torch.arange(128, dtype=torch.float64) / 128))

    def time(self, v, a, b):
        angle = v[:, None] * 1000 * self.freq
        return b(F.silu(a(torch.cat([angle.cos(), angle.sin()], 1).float())))

    def forward(self, x, t, s, labels):
        with torch.autocast(device.type, enabled=False):
            c = F.silu(self.time(t, self.t1, self.t2) + self.time(s, self.s1, self.s2) + self.labels(labels))
        b, gh, gw = x.shape[0], H // P, W // P
        x = x.reshape(b, C, gh, P, gw, P).permute(0, 2, 4, 1, 3, 5).reshape(b, gh * gw, C * P * P)
        x = self.embed(x).float() + self.pos
        for block in self.blocks:
            x = block(x, c)
        with torch.autocast(device.type, enabled=False):
            shift, scale = self.ada(c).chunk(2, 1)
        x = self.last(self.norm(x) * (1 + scale[:, None]) + shift[:, None]).float()
        return x.reshape(b, gh, gw, P, P, C).permute(0, 5, 1, 3, 2, 4).reshape(b, C, H, W)


def each(v):
    return v.view(-1, 1, 1, 1)


def precondition(x, G, s, t):
    if args.preconditioner == "euler_fm":
        return x - each((t - s) * SD) * G
    a_s, a_t, n = 1 - s, 1 - t, (1 - t) ** 2 + t**2
    return each((a_s * a_t + s * t) / n) * x + each(-(a_s * t - a_t * s) * SD / n.sqrt()) * G


def c_out(s, t):
    if args.preconditioner == "euler_fm":
        return (t - s) * SD
    return ((1 - s) * t - (1 - t) * s) * SD / ((1 - t) ** 2 + t**2).sqrt()


def c_in(t):
    return 1 / (SD * ((1 - t) ** 2 + t**2).sqrt())


def kernel(p, q, kappa):
    d2 = (p[:, :, None] - q[:, None]).square().sum(-1).clamp_min(1e-8)
    return torch.expm1(-kappa.view(-1, 1, 1) * d2.sqrt()).mean((1, 2))


def loss_of(net, x, eps, t, r, s, student_labels, labels):
    x_t = each(1 - t) * x + each(t) * eps
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.dtype == "bfloat16")
    with autocast:
        G = net((each(c_in(t)) * x_t).float(), t, s, student_labels)
    y = precondition(x_t, G, s, t)
    with torch.no_grad():
        x_r = each(1 - r) * x + each(r) * eps
        with autocast:
            G = net((each(c_in(r)) * x_r).float(), r, s, labels)
        z = precondition(x_r, G, s, r)
    y, z = y.reshape(-1, M, C * H * W), z.reshape(-1, M, C * H * W)
    tg, sg = t[::M], s[::M]
    kappa = 1 / (c_out(sg, tg).abs() * C * H * W)
    mmd = kernel(y, y, kappa) + kernel(z, z, kappa) - 2 * kernel(y, z, kappa)
    alpha = 1 - tg
    weight = tg * alpha ** (A - 1) / ((tg**2 + math.exp(-B_SHIFT) * alpha**2) * (alpha**2 + tg**2))
    return (weight * mmd).mean()


net = DiT().to(device)
parameters = list(net.parameters())
average = [p.detach().clone() for p in parameters]
optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
data = 0.5 * torch.randn(args.batch, C, H, W, device=device)
labels = torch.arange(args.batch, device=device) % args.classes
step_loss = torch.compile(loss_of) if args.mode == "compile" else loss_of


def eta(t):
    return t / (1 - t)


def step():
    eps = SD * torch.randn_like(data)
    v1, v2 = torch.rand(2, args.batch // M, dtype=torch.float64, device=device)
    t = T_MIN + GAP_TS + v1 * (T_MAX - T_MIN - GAP_TS)
    s = T_MIN + v2 * (t - GAP_TS - T_MIN)
    u = (eta(T_MAX) - eta(T_MIN)) / 2**K
    e = (eta(t) - u).clamp_min(eta(T_MIN))
    r = e / (1 + e)
    if GAP_TR:
        r = torch.minimum(r, (t - GAP_TR).clamp_min(T_MIN))
    r = torch.maximum(r, s).clamp_min(T_MIN)
    t, r, s = (v.repeat_interleave(M) for v in (t, r, s))
    dropped = torch.where(torch.rand(args.batch, device=device) < 0.1, args.classes, labels)
    optimizer.zero_grad(set_to_none=True)
    step_loss(net, data, eps, t, r, s, dropped, labels).backward()
    torch._foreach_norm([p.grad for p in parameters])
    optimizer.step()
    with torch.no_grad():
        torch._foreach_lerp_(average, parameters, 0.001)


def synchronize():
    if device.type == "cuda":
        torch.cuda.synchronize()


for _ in range(args.warmup):
    step()
seconds = []
for _ in range(args.steps):
    synchronize()
    start = time.perf_counter()
    step()
    synchronize()
    seconds.append(time.perf_counter() - start)
seconds.sort()
print(f"median_seconds {seconds[len(seconds) // 2]}")
