// What gradient.rs needs of libtorch's autograd and tch does not offer: a node of the graph whose backward pass is a
// function of the Rust side, gradients for a given gradient of the output, and a convolution's gradient for its input
// alone.
//
// Functions that can fail return null, or a message to be freed with `free`; no exception passes to Rust.

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <c10/core/GradMode.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

namespace {

// Writes one owned tensor for each input, or null; returns null, or why it failed.
using Backward = char* (*)(const void* closure, const at::Tensor* gradient, at::Tensor** results);
using Drop = void (*)(void* closure);

struct Closure : torch::autograd::Node {
  void* closure;
  Backward backward;
  Drop drop;

  Closure(void* closure, Backward backward, Drop drop) : closure(closure), backward(backward), drop(drop) {}
  ~Closure() override { release_variables(); }

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    torch::autograd::variable_list all(num_outputs());
    if (!gradients[0].defined()) return all;
    TORCH_CHECK(!c10::GradMode::is_enabled(), "a backward pass of seedpo's own has no second derivative");
    TORCH_CHECK(closure, "backward through a graph that was freed after its first backward pass");
    std::vector<at::Tensor*> results(num_outputs(), nullptr);
    char* failure = backward(closure, &gradients[0], results.data());
    for (size_t i = 0; i < all.size(); ++i) {
      if (!results[i]) continue;
      all[i] = std::move(*results[i]);
      delete results[i];
    }
    if (failure) {
      std::string why(failure);
      free(failure);
      TORCH_CHECK(false, why);
    }
    return all;
  }

  void release_variables() override {
    if (closure) drop(closure);
    closure = nullptr;
  }
};

template <typename Body>
char* caught(Body body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an unknown exception");
  }
}

std::vector<at::Tensor> list(const at::Tensor* const* tensors, size_t count) {
  std::vector<at::Tensor> all;
  for (size_t i = 0; i < count; ++i) all.push_back(*tensors[i]);
  return all;
}

}  // namespace

extern "C" bool seedpo_records() { return c10::GradMode::is_enabled(); }

extern "C" char* seedpo_attach(const at::Tensor* output, const at::Tensor* const* inputs, size_t count, void* closure,
                               Backward backward, Drop drop, at::Tensor** result) {
  // Freed with the node, whatever happens.
  std::shared_ptr<Closure> node(new Closure(closure, backward, drop), torch::autograd::deleteNode);
  return caught([&] {
    torch::autograd::edge_list edges;
    for (const auto& input : list(inputs, count)) {
      edges.push_back(input.requires_grad() ? torch::autograd::impl::gradient_edge(input) : torch::autograd::Edge());
    }
    node->set_next_edges(std::move(edges));
    at::Tensor joined = output->detach();
    torch::autograd::set_history(joined, node);
    *result = new at::Tensor(std::move(joined));
  });
}

extern "C" char* seedpo_gradients(const at::Tensor* output, const at::Tensor* gradient, const at::Tensor* const* inputs,
                                  size_t count, at::Tensor** results) {
  return caught([&] {
    auto all = torch::autograd::grad({*output}, list(inputs, count), {*gradient}, /*retain_graph=*/false,
                                     /*create_graph=*/false, /*allow_unused=*/true);
    for (size_t i = 0; i < count; ++i) results[i] = all[i].defined() ? new at::Tensor(std::move(all[i])) : nullptr;
  });
}

extern "C" char* seedpo_backward(const at::Tensor* output, const at::Tensor* gradient) {
  return caught([&] { torch::autograd::backward({*output}, {*gradient}); });
}

extern "C" char* seedpo_convolution_input_gradient(const at::Tensor* gradient, const at::Tensor* weight,
                                                   const int64_t* input_size, int64_t stride, int64_t padding,
                                                   at::Tensor** result) {
  return caught([&] {
    // Its values are not read where the weight's gradient is not asked for.
    auto input = at::empty(at::IntArrayRef(input_size, 4), gradient->options());
    auto all = at::convolution_backward(*gradient, input, *weight, c10::nullopt, {stride, stride}, {padding, padding},
                                        {1, 1}, false, {0, 0}, 1, {true, false, false});
    *result = new at::Tensor(std::move(std::get<0>(all)));
  });
}
