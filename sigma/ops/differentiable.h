// Gradients of registered operators, one way for all: NAME_backward(Tensor[] grads, arguments of
// NAME) -> Tensor[] runs NAME again with a graph and differentiates it. Nothing but the arguments is
// kept from the forward, as in activation checkpointing; a training step in Python pays one forward
// more than in C++.
//
// The gradients are those of the floating arguments, in their order. python/sigma/__init__.py makes
// them PyTorch's, so that FakeTensor and torch.compile see two plain operators.
#pragma once

#include <torch/library.h>

#include <string>

namespace sigma {

/// Defines "NAME(arguments) -> returns" and "NAME_backward".
void define_differentiable(torch::Library& library, const std::string& name,
                           const std::string& arguments, const std::string& returns);
/// The kernels of NAME_backward, on devices and on Meta tensors.
void implement_backward(torch::Library& library, const std::string& name);
void implement_backward_meta(torch::Library& library, const std::string& name);

}  // namespace sigma
