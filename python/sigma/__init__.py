"""Sigma's operators in PyTorch: ``import sigma`` loads libsigma.so and makes ``torch.ops.sigma.*``.

    block_sparse_attention   attention over lists of blocks        sigma/attention/block_sparse.h
    multi_token_attention    scores that see their neighbours      sigma/attention/multi_token_op.h
    short_attention          full attention of packed qkv          sigma/attention/short_attention.h
    experts                  networks of a mixture of experts      sigma/moe/experts.h
    gated_norm               gated residual, norm, modulation      sigma/nn/gated_norm.h
    grouped_mmd              IMM's loss within groups              sigma/generator/grouped_mmd.h
    select_blocks            which blocks a row attends (no grad)  sigma/attention/selection.h
    nearest_codes            codes of a codebook (no grad)         sigma/tokenizer/vector_quantizer.h

Shapes and errors stand in those headers; errors arrive as RuntimeError. All work under FakeTensor and
torch.compile. The library is taken from SIGMA_LIBRARY, else from build/ or build-cuda/ of the source
tree. It must have been built with the version of torch that imports it.
"""
import os
import pathlib

import torch

_TORCH = "2.11."


def _find_library():
    if named := os.environ.get("SIGMA_LIBRARY"):
        return named
    root = pathlib.Path(__file__).resolve().parents[2]
    for folder in ("build", "build-cuda"):
        path = root / folder / "libsigma.so"
        if path.exists():
            return str(path)
    raise ImportError(f"sigma: no libsigma.so in {root}/build; run ./test.sh build, or set SIGMA_LIBRARY")


# Differentiable operators, and those of their outputs that have no gradient.
_DIFFERENTIABLE = {
    "block_sparse_attention": (1,),
    "multi_token_attention": (),
    "experts": (),
    "gated_norm": (),
    "short_attention": (),
    "grouped_mmd": (1, 2, 3),
}


def _is_tensor(x):
    return isinstance(x, torch.Tensor)


def _register_gradient(name, without_gradient):
    backward_op = getattr(torch.ops.sigma, name + "_backward")

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*filter(_is_tensor, inputs))
        ctx.arguments = [_is_tensor(x) or (x,) for x in inputs]  # True, or a value of another kind
        ctx.mark_non_differentiable(*(output[i] for i in without_gradient))

    def backward(ctx, *grads):
        tensors = iter(ctx.saved_tensors)
        arguments = [next(tensors) if x is True else x[0] for x in ctx.arguments]
        found = iter(backward_op(grads, *arguments))
        return tuple(next(found) if _is_tensor(x) and x.is_floating_point() else None for x in arguments)

    torch.library.register_autograd(f"sigma::{name}", backward, setup_context=setup_context)


if not torch.__version__.startswith(_TORCH):
    raise ImportError(f"sigma: expected torch {_TORCH}x, which libsigma.so is built with, got {torch.__version__}")
torch.ops.load_library(_find_library())
for _name, _outputs in _DIFFERENTIABLE.items():
    _register_gradient(_name, _outputs)
