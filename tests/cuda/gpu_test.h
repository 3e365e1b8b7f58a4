// What tests on an NVIDIA GPU begin with.
#pragma once

#include <ATen/Context.h>
#include <gtest/gtest.h>
#include <torch/cuda.h>

namespace sigma {

/// Skipped without a GPU.
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!torch::cuda::is_available()) GTEST_SKIP() << "no NVIDIA GPU";
  }
};

/// And torch::empty is full of NaN and of numbers that name nothing.
class PoisonedGpuTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
    at::globalContext().setDeterministicFillUninitializedMemory(true);
  }
  void TearDown() override {
    at::globalContext().setDeterministicAlgorithms(false, /*warn_only=*/true);
  }
};

}  // namespace sigma
