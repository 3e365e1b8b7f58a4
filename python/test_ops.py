"""Every operator of torch.ops.sigma: opcheck, torch.compile, values and gradients against plain PyTorch.

Run by scripts/test_python.sh.
"""
import math
import unittest

import sigma  # noqa: F401  (registers the operators)
import torch
import torch.nn.functional as F

ops = torch.ops.sigma


def numbers(*shape, seed=0, grad=True):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).requires_grad_(grad)


# ---- the same in plain PyTorch ----


def block_sparse_plain(q, k, v, index, kv_start, rank=None):
    listed = torch.zeros(*index.shape[:3], len(kv_start), dtype=torch.bool)
    listed.scatter_(3, index.long().masked_fill(index < 0, len(kv_start) - 1), True)
    block_of = torch.repeat_interleave(kv_start.diff())
    mask = listed[..., block_of].repeat_interleave(q.shape[1] // k.shape[1], 1)
    if rank is not None:
        mask = mask & (rank[:, None] >= rank[None, :])
    heads = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(q, k.repeat_interleave(heads, 1), v.repeat_interleave(heads, 1), mask)


def multi_token_plain(q, k, v, kernel):
    """A causal sequence; kernel [H, past queries, centred keys] before the softmax."""
    H, N = q.shape[1], q.shape[2]
    future = torch.ones(N, N, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[3])).masked_fill(future, 0)
    side = kernel.shape[2] // 2
    scores = F.conv2d(F.pad(scores, (side, side, kernel.shape[1] - 1, 0)), kernel.flip(1, 2)[:, None], groups=H)
    return torch.softmax(scores.masked_fill(future, -math.inf), -1) @ v


def experts_plain(x, w_in, w_out, b_in, b_out, token, expert, weight):
    y = torch.zeros_like(x)
    for e in range(len(w_in)):
        rows = (expert == e).nonzero()[:, 0]
        a, b = F.linear(x[token[rows]], w_in[e], None if b_in is None else b_in[e]).chunk(2, -1)
        out = F.linear(F.silu(a) * b, w_out[e], None if b_out is None else b_out[e])
        y = y.index_add(0, token[rows], out * weight[rows, None])
    return y


def gated_norm_plain(x, a, gate, shift, scale):
    h = x + gate[:, None] * a
    return h, F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def short_attention_plain(qkv, num_heads):
    q, k, v = qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def grouped_mmd_plain(y, z, kappa):
    def mean(p, q):
        square = (p[:, :, None] - q[:, None]).square().sum(-1).double()
        distance = square.clamp_min(1e-12).sqrt()
        return torch.exp(-kappa[:, None, None] * distance).mean((1, 2))

    return mean(y, y) + mean(z, z) - 2 * mean(y, z)


# ---- what is tested: name -> operator, arguments, plain function or None ----


def lists(rows, blocks, n):
    index = torch.stack([torch.randperm(blocks, generator=torch.Generator().manual_seed(r))[:n] for r in range(rows)])
    index[0, -1] = -1
    return index.int()[None, None].expand(2, 2, rows, n).contiguous()


def cases():
    start = torch.arange(0, 49, 8)
    q, k, v = numbers(2, 4, 48, 16), numbers(2, 2, 48, 16, seed=1), numbers(2, 2, 48, 12, seed=2)
    rank = torch.arange(48)
    first = lambda op: lambda *a, **b: op(*a, **b)[0]
    yield "block_sparse", first(ops.block_sparse_attention), block_sparse_plain, (q, k, v, lists(48, 6, 3), start)
    yield ("block_sparse_causal_tiles",
           lambda q, k, v, i, s, r: ops.block_sparse_attention(q, k, v, i, s, s, r, r)[0],
           lambda q, k, v, i, s, r: block_sparse_plain(q, k, v, i.repeat_interleave(8, 2), s, r),
           (q, k, v, lists(6, 6, 6).sort(3, descending=True).values.contiguous(), start, rank))
    kernel = numbers(2, 3, 5, seed=3)
    q, k, v = numbers(2, 2, 20, 16), numbers(2, 2, 20, 16, seed=1), numbers(2, 2, 20, 16, seed=2)
    yield ("multi_token",
           lambda q, k, v, w: ops.multi_token_attention(q, k, v, [20], w, [3], [5], query_side="past", pattern="causal"),
           multi_token_plain, (q, k, v, kernel))
    token, expert = torch.arange(12).repeat_interleave(2), torch.arange(24) % 3
    x, w_in, w_out = numbers(12, 8), numbers(4, 12, 8, seed=1), numbers(4, 8, 6, seed=2)
    b_in, b_out, weight = numbers(4, 12, seed=3), numbers(4, 8, seed=4), numbers(24, seed=5)
    yield "experts", ops.experts, experts_plain, (x, w_in, w_out, b_in, b_out, token, expert, weight)
    yield "experts_no_bias", ops.experts, experts_plain, (x, w_in, w_out, None, None, token, expert, weight)
    rows = [numbers(2, 16, seed=s) for s in range(3)]
    yield "gated_norm", ops.gated_norm, gated_norm_plain, (numbers(2, 5, 16), numbers(2, 5, 16, seed=1), *rows)
    yield "short_attention", ops.short_attention, short_attention_plain, (numbers(2, 10, 96), 4)
    yield "long_attention", ops.short_attention, short_attention_plain, (numbers(2, 80, 96), 4)
    yield ("grouped_mmd", first(ops.grouped_mmd), grouped_mmd_plain,
           (numbers(3, 4, 10), numbers(3, 4, 10, seed=1), torch.rand(3, dtype=torch.float64) + 0.1))


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)


def run(function, arguments):
    """Outputs, and gradients of a fixed random combination of them."""
    inputs = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
    outputs = as_tuple(function(*arguments))
    loss = sum((o * numbers(*o.shape, seed=9, grad=False)).sum() for o in outputs)
    return [*outputs, *torch.autograd.grad(loss, inputs)]


class Operators(unittest.TestCase):
    def same(self, actual, expected, name):
        self.assertEqual(len(actual), len(expected))
        for a, b in zip(actual, expected):
            # float32 sums of at most a hundred products of numbers near 1, twice in a gradient.
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=lambda m: f"{name}: {m}")

    def test_equals_plain_pytorch(self):
        for name, op, plain, arguments in cases():
            with self.subTest(name):
                self.same(run(op, arguments), run(plain, arguments), name)

    def test_compiles_in_one_graph(self):
        for name, op, plain, arguments in cases():
            with self.subTest(name):
                torch._dynamo.reset()
                self.same(run(torch.compile(op, fullgraph=True), arguments), run(op, arguments), name)

    def test_opcheck(self):
        start = torch.arange(0, 49, 8)
        q, k, v = numbers(2, 4, 48, 16), numbers(2, 2, 48, 16, seed=1), numbers(2, 2, 48, 12, seed=2)
        kernel, mix = numbers(2, 9, 9, seed=3), numbers(1, 2, 2, seed=4)
        token, expert = torch.arange(12).repeat_interleave(2), torch.arange(24) % 3
        scores = numbers(2, 2, 6, 6, grad=False)
        checked = {
            "block_sparse_attention": [(q, k, v, lists(48, 6, 3), start),
                                       (q, k, v, lists(6, 6, 3), start, start, torch.arange(48), torch.arange(48), 9,
                                        torch.ones(2, 48, dtype=torch.bool))],
            "multi_token_attention": [(q[:, :2, :16], k[:, :, :16], v[:, :, :16], [4, 4], kernel, [3, 3], [3, 3], mix,
                                       kernel, [3, 3], [3, 3], mix)],
            "experts": [(numbers(12, 8), numbers(4, 12, 8), numbers(4, 8, 6), numbers(4, 12), None, token, expert,
                         numbers(24))],
            "gated_norm": [(numbers(2, 5, 16), numbers(2, 5, 16, seed=1), *(numbers(2, 16, seed=s) for s in range(3)))],
            "short_attention": [(numbers(2, 10, 96), 4), (numbers(2, 80, 96).double(), 4)],
            "grouped_mmd": [(numbers(3, 4, 10), numbers(3, 4, 10, seed=1), torch.rand(3, dtype=torch.float64))],
            "nearest_codes": [(numbers(20, 4, grad=False), numbers(7, 4, grad=False))],
            "select_blocks": [(scores, None, [48], [8], 3),
                              (scores, numbers(2, 2, 6, 16, grad=False), [48], [8], 3, "max_min")],
        }
        for name, samples in checked.items():
            for arguments in samples:
                with self.subTest(name):
                    torch.library.opcheck(getattr(ops, name), arguments)
        # The gradients are operators of their own.
        for name, samples in checked.items():
            if hasattr(ops, name + "_backward"):
                arguments = [x.detach() if isinstance(x, torch.Tensor) else x for x in samples[0]]
                outputs = as_tuple(getattr(ops, name)(*arguments))
                with self.subTest(name + "_backward"):
                    torch.library.opcheck(getattr(ops, name + "_backward"), ([torch.ones_like(o) for o in outputs], *arguments))
        registered = {n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("sigma::")}
        self.assertEqual(registered, set(checked) | {n + "_backward" for n in sigma._DIFFERENTIABLE})

    def test_refuses_what_does_not_fit(self):
        with self.assertRaisesRegex(RuntimeError, "expected heads divisible by key/value heads"):
            ops.block_sparse_attention(numbers(1, 3, 8, 16), numbers(1, 2, 8, 16), numbers(1, 2, 8, 16),
                                       torch.zeros(1, 2, 8, 1, dtype=torch.int32), torch.tensor([0, 8]))


if __name__ == "__main__":
    unittest.main()
