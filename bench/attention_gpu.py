#!/usr/bin/env python3
"""The peers of bench/attention_gpu: FlexAttention and published kernels on the same lists.

    attention_gpu.py CASE.json [--peers DIR] [--sides dense,flex,peers]

CASE.json names the shape and a file of int32 lists [G,R,n] (-1: none); bench/attention_gpu writes both. A JSON line a
side: milliseconds, bytes on top of inputs, relative errors of one key/value head against float64 on the GPU. Needs a
full torch wheel.

DIR may hold checkouts, fetched by whoever runs this; those that import are measured:
    FastVideo, Scalable-Flash-Native-Sparse-Attention, native-sparse-attention-triton, Flash-Sparse-Attention
"""
import argparse
import json
import pathlib
import sys
import time
import types

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

parser = argparse.ArgumentParser()
parser.add_argument("case")
parser.add_argument("--peers", type=pathlib.Path)
parser.add_argument("--sides", default="flex,peers")
args = parser.parse_args()
case = types.SimpleNamespace(**json.loads(pathlib.Path(args.case).read_text()))
H, G, N, D, S = case.H, case.G, case.N, case.D, case.block
M, W = H // G, N // S
cuda = torch.device("cuda")
lists = torch.frombuffer(bytearray(pathlib.Path(case.lists).read_bytes()), dtype=torch.int32)
lists = lists.view(G, W if case.tiles else N, case.n).to(cuda)
torch.manual_seed(0)


def normal(heads):
    return torch.randn(1, heads, N, D, device=cuda, dtype=torch.bfloat16)


q, k, v, grad = normal(H).requires_grad_(), normal(G).requires_grad_(), normal(G).requires_grad_(), normal(H)
counts = (lists >= 0).sum(-1, dtype=torch.int32)


def median_ms(f, prepare=lambda: None):
    """CUDA events around each f(prepare()), without prepare; after calls that warm up."""
    def run(repeats):
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, end in events:
            x = prepare()
            start.record()
            f(x)
            end.record()
            del x
        torch.cuda.synchronize()
        return sorted(start.elapsed_time(end) for start, end in events)[repeats // 2]

    begin = time.perf_counter()
    run(3)
    return run(max(5, min(50, int(3 / (time.perf_counter() - begin)))))


def extra_bytes(f):
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = f()
    torch.cuda.synchronize()
    del kept
    return torch.cuda.max_memory_allocated() - before


# ---- errors ----


def exact(g):
    """Outputs and gradients of key/value head g in float64: [M,N,D], [M,N,D], [N,D], [N,D]."""
    Q, K, V, dO = (t.detach()[0, h].double() for t, h in
                   ((q, slice(g * M, g * M + M)), (k, g), (v, g), (grad, slice(g * M, g * M + M))))
    out, dQ, dK, dV = torch.empty_like(Q), torch.empty_like(Q), torch.zeros_like(K), torch.zeros_like(V)
    keys = torch.arange(N, device=cuda)
    strip = max(128, 2048 // M)
    for first in range(0, N, strip):
        rows = slice(first, min(first + strip, N))
        queries = keys[rows]
        chosen = lists[g, queries // S if case.tiles else queries].long()
        blocks = torch.zeros(len(queries), W + 1, dtype=torch.bool, device=cuda)
        blocks.scatter_(1, chosen.where(chosen >= 0, W), True)
        visible = blocks[:, keys // S]
        if case.causal:
            visible &= keys <= queries[:, None]
        scores = (Q[:, rows] @ K.T * D**-0.5).masked_fill_(~visible, -torch.inf)
        P = scores.softmax(-1)
        out[:, rows] = P @ V
        dV += (P.transpose(1, 2) @ dO[:, rows]).sum(0)
        delta = (out[:, rows] * dO[:, rows]).sum(-1, keepdim=True)
        dS = P.mul_(dO[:, rows] @ V.T - delta).mul_(D**-0.5)
        dQ[:, rows] = dS @ K
        dK += (dS.transpose(1, 2) @ Q[:, rows]).sum(0)
    return out, dQ, dK, dV


_exact = []


def errors(out, grads):
    """Worst of |x - exact| / |exact| for output and gradients of the last key/value head."""
    if not _exact:
        _exact.extend(exact(G - 1))
    found = [out[0, -M:], grads[0][0, -M:], grads[1][0, -1], grads[2][0, -1]]
    return [((x.double() - e).norm() / e.norm()).item() for x, e in zip(found, _exact)]


def poison(*shapes):
    """Freed memory that new tensors of these shapes get holds NaN."""
    kept = [torch.full_like(t, torch.nan) for t in shapes]
    del kept


def measure(side, f, leaves=None, upstream=None, to_ours=lambda t: t, checked=True):
    """f() -> output; leaves: q, k, v in the side's own layout; to_ours turns one into [1,heads,N,D]."""
    leaves, upstream = leaves or (q, k, v), grad if upstream is None else upstream
    line = {"case": case.name, "side": side}
    try:
        poison(upstream, *leaves)
        out = f()
        grads = torch.autograd.grad(out, leaves, upstream)
        if checked:
            line["errors"] = errors(to_ours(out.detach()), [to_ours(t) for t in grads])
        del out, grads
        # A graph of its own for each backward: what it makes for itself is not kept from the last.
        line["backward_ms"] = median_ms(lambda out: torch.autograd.grad(out, leaves, upstream), f)
        line["memory"] = extra_bytes(lambda: torch.autograd.grad(f(), leaves, upstream))
        with torch.no_grad():
            line["forward_ms"] = median_ms(lambda _: f())
    except Exception as error:  # a peer that fails is a row that says so
        text = str(error).strip().splitlines() or [""]
        line["failed"] = f"{type(error).__name__}: " + " ... ".join(dict.fromkeys([text[0], text[-1]]))[:300]
    print(json.dumps(line), flush=True)


# ---- sides ----


def dense():
    K, V = (t.detach().repeat_interleave(M, 1).requires_grad_() for t in (k, v))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        measure("dense causal, cuDNN" if case.causal else "dense, cuDNN",
                lambda: F.scaled_dot_product_attention(q, K, V, is_causal=case.causal), (q, K, V), checked=False)


def ordered(chosen):
    """bool [heads,rows,columns] -> counts, and the columns chosen first."""
    return chosen.sum(-1, dtype=torch.int32)[None], chosen.int().argsort(dim=-1, descending=True, stable=True).int()[None]


def table(side):
    """bool [G, N / side, W]: blocks that queries choose, any of `side` neighbours."""
    chosen = torch.zeros(G, lists.size(1), W + 1, dtype=torch.bool, device=cuda)
    for g in range(G):
        chosen[g].scatter_(1, lists[g].long().where(lists[g] >= 0, W), True)
    rows = side // S if case.tiles else side
    return chosen[..., :W].unflatten(1, (-1, rows)).any(2)


def flex():
    compiled = torch.compile(flex_attention, dynamic=False)
    if case.tiles:
        size = (S, S)
        mask = BlockMask.from_kv_blocks(torch.zeros(1, H, W, dtype=torch.int32, device=cuda),
                                        torch.zeros(1, H, W, W, dtype=torch.int32, device=cuda),
                                        *ordered(table(S)), BLOCK_SIZE=size)
        small = {f"{side}BLOCK_{x}": S for side, xs in (("fwd_", "MN"), ("bwd_", ("M1", "N1", "M2", "N2"))) for x in xs}
        measure("flex_attention, same lists", lambda: compiled(q, k, v, block_mask=mask, kernel_options=small))
        # As much work in the blocks it likes best: lists of its own, half as long.
        half = torch.rand(H, W // 2, W // 2, device=cuda)
        half = half >= half.kthvalue(W // 2 - case.n // 2 + 1, -1, keepdim=True).values
        wide = BlockMask.from_kv_blocks(torch.zeros(1, H, W // 2, dtype=torch.int32, device=cuda),
                                        torch.zeros(1, H, W // 2, W // 2, dtype=torch.int32, device=cuda),
                                        *ordered(half), BLOCK_SIZE=(128, 128))
        measure("flex_attention, 128-blocks, lists of its own", lambda: compiled(q, k, v, block_mask=wide), checked=False)
    else:
        chosen = table(1)
        union = table(128).unflatten(2, (-1, 128 // S)).any(3).repeat_interleave(M, 0)

        def may_see(b, h, i, j):
            return chosen[h // M, i, j // S] & (i >= j)

        mask = BlockMask.from_kv_blocks(*ordered(union), BLOCK_SIZE=(128, 128), mask_mod=may_see)
        measure("flex_attention, same lists", lambda: compiled(q, k, v, block_mask=mask, enable_gqa=M > 1))


def without_init(root, *names):
    """Packages whose __init__ does not run: it would import what this bench does not need."""
    for name in names:
        module = types.ModuleType(name)
        module.__path__ = [str(root / name.replace(".", "/"))]
        sys.modules[name] = module


def fastvideo(root):
    without_init(root / "fastvideo-kernel/python", "fastvideo_kernel", "fastvideo_kernel.triton_kernels")
    from fastvideo_kernel.block_sparse_attn import _get_sm90_ops, block_sparse_attn_from_indices
    name = "FastVideo " + ("Triton" if _get_sm90_ops()[0] is None else "ThunderKittens")
    full = torch.full((W,), S, dtype=torch.int32, device=cuda)
    measure(name, lambda: block_sparse_attn_from_indices(q, k, v, lists[None], counts[None], full)[0])


def token_rows(name, attend, padding):
    """Peers that take q [N,H,D] and lists [G,N,n]."""
    turned = [t.detach()[0].transpose(0, 1).contiguous() for t in (q, k, v, grad)]
    leaves, index = [t.requires_grad_() for t in turned[:3]], lists.masked_fill(lists < 0, padding)
    measure(name, lambda: attend(*leaves, index), leaves, turned[3], lambda t: t.transpose(0, 1)[None])


def flash_nsa(root):
    if "pkg_resources" not in sys.modules:
        version = types.ModuleType("pkg_resources")
        version.parse_version = lambda text: [int(x) for x in text.split("+")[0].split(".")[:2]]
        sys.modules["pkg_resources"] = version
    without_init(root, "flash_nsa", "flash_nsa.ops")
    from flash_nsa.ops.select_attn import select_attn
    from flash_nsa.utils import NSAHelper
    NSAHelper.set_hyperparameters(block_size=S, top_n=case.n)
    NSAHelper.init_cu_seqlens(torch.tensor([0, N], dtype=torch.int32, device=cuda))
    token_rows("flash_nsa", select_attn, 999999)  # it reads min(n, own block + 1) entries


def xunhao_lai(root):
    without_init(root, "native_sparse_attention", "native_sparse_attention.ops", "native_sparse_attention.ops.triton")
    from native_sparse_attention.ops.triton.topk_sparse_attention import topk_sparse_attention
    ends = torch.tensor([0, N], dtype=torch.int32, device=cuda)
    token_rows("XunhaoLai", lambda *x: topk_sparse_attention(*x, S, ends), -1)


def fsa(root):
    without_init(root, "fsa", "fsa.ops", "nsa_ref", "nsa_ref.ops")
    from fsa.ops.FSA_topk_sparse_attention import FSA_topk_sparse_attention
    ends = torch.tensor([0, N], dtype=torch.int32, device=cuda)
    token_rows("FSA", lambda *x: FSA_topk_sparse_attention(*x, S, ends), -1)


def peers():
    checkouts = {"FastVideo": fastvideo} if case.tiles else {
        "Scalable-Flash-Native-Sparse-Attention": flash_nsa, "native-sparse-attention-triton": xunhao_lai,
        "Flash-Sparse-Attention": fsa}
    for folder, adaptor in checkouts.items():
        root = args.peers / folder if args.peers else None
        if not root or not root.exists():
            continue
        sys.path.insert(0, str(root))
        try:
            adaptor(root)
        except ImportError as error:
            print(json.dumps({"case": case.name, "side": folder, "failed": str(error)}), flush=True)


for name in args.sides.split(","):
    {"dense": dense, "flex": flex, "peers": peers}[name]()
