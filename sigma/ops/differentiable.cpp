#include "sigma/ops/differentiable.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <vector>

namespace sigma {
namespace {

using c10::IValue;
using torch::Tensor;
using torch::jit::Stack;

constexpr std::string_view kSuffix = "_backward";

bool is_floating(const IValue& value) {
  return value.isTensor() && value.toTensor().defined() && value.toTensor().is_floating_point();
}

// Takes the arguments of `op` off the stack.
std::vector<IValue> taken(const c10::OperatorHandle& op, Stack* stack) {
  const size_t count = op.schema().arguments().size();
  std::vector<IValue> out(stack->end() - static_cast<std::ptrdiff_t>(count), stack->end());
  stack->resize(stack->size() - count);
  return out;
}

void backward(const c10::OperatorHandle& op, Stack* stack) {
  std::vector<IValue> arguments = taken(op, stack);
  const std::vector<Tensor> grads = arguments.front().toTensorVector();
  const std::string name = op.schema().name().substr(0, op.schema().name().size() - kSuffix.size());
  const auto forward = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");

  Stack call(arguments.begin() + 1, arguments.end());
  std::vector<Tensor> inputs;
  for (IValue& value : call) {
    if (!is_floating(value)) continue;
    inputs.push_back(value.toTensor().detach().requires_grad_());
    value = inputs.back();
  }
  std::vector<Tensor> outputs, output_grads;
  {
    // Operators are called below autograd; what they are made of is recorded here.
    const auto local = c10::impl::tls_local_dispatch_key_set();
    const c10::impl::ForceDispatchKeyGuard with_autograd(
        local.included_, local.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView);
    const at::AutoGradMode enabled(true);
    forward.redispatchBoxed(c10::DispatchKeySet(inputs.front().is_cuda() ? c10::DispatchKey::CUDA
                                                                         : c10::DispatchKey::CPU),
                            &call);
    for (size_t i = 0; i < call.size(); ++i) {
      if (!call[i].toTensor().requires_grad()) continue;  // no function of the inputs, or no grad
      outputs.push_back(call[i].toTensor());
      output_grads.push_back(grads.at(i));
    }
    auto found = torch::autograd::grad(outputs, inputs, output_grads, /*retain_graph=*/false,
                                       /*create_graph=*/false, /*allow_unused=*/true);
    for (size_t i = 0; i < inputs.size(); ++i)
      inputs[i] = found[i].defined() ? found[i].contiguous() : torch::zeros_like(inputs[i]);
  }
  for (Tensor& grad : inputs) grad = grad.detach();
  stack->emplace_back(c10::List<Tensor>(inputs));
}

void backward_meta(const c10::OperatorHandle& op, Stack* stack) {
  c10::List<Tensor> out;
  for (const IValue& value : taken(op, stack))
    if (is_floating(value))
      out.push_back(torch::empty_like(value.toTensor(), torch::MemoryFormat::Contiguous));
  stack->emplace_back(std::move(out));
}

}  // namespace

void define_differentiable(torch::Library& library, const std::string& name,
                           const std::string& arguments, const std::string& returns) {
  library.def(fmt::format("{}({}) -> {}", name, arguments, returns).c_str());
  library.def(
      fmt::format("{}{}(Tensor[] grads, {}) -> Tensor[]", name, kSuffix, arguments).c_str());
}

void implement_backward(torch::Library& library, const std::string& name) {
  library.impl((name + std::string(kSuffix)).c_str(),
               torch::CppFunction::makeFromBoxedFunction<&backward>());
}

void implement_backward_meta(torch::Library& library, const std::string& name) {
  library.impl((name + std::string(kSuffix)).c_str(),
               torch::CppFunction::makeFromBoxedFunction<&backward_meta>());
}

}  // namespace sigma
