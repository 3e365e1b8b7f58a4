#include "sigma/io/safetensors.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include "sigma/base/error.h"
#include "sigma/io/files.h"
#include "tests/testing/scratch.h"

namespace sigma {
namespace {

const std::vector<torch::ScalarType> kAllTypes = {
    torch::kBool,
    torch::kByte,
    torch::kChar,
    torch::kFloat8_e5m2,
    torch::kFloat8_e4m3fn,
    torch::kFloat8_e8m0fnu,
    torch::kFloat8_e4m3fnuz,
    torch::kFloat8_e5m2fnuz,
    torch::kShort,
    torch::kUInt16,
    torch::kHalf,
    torch::kBFloat16,
    torch::kInt,
    torch::kUInt32,
    torch::kFloat,
    torch::kComplexFloat,
    torch::kDouble,
    torch::kLong,
    torch::kUInt64,
};

/// Arbitrary bits, NaNs included; 0 and 1 for bools.
torch::Tensor arbitrary(torch::ScalarType type, std::vector<int64_t> shape, uint32_t seed) {
  torch::Tensor tensor = torch::empty(shape, torch::TensorOptions(type));
  auto* bytes = static_cast<uint8_t*>(tensor.mutable_data_ptr());
  for (size_t i = 0; i < tensor.nbytes(); ++i) {
    seed = seed * 1664525 + 1013904223;
    bytes[i] = static_cast<uint8_t>(type == torch::kBool ? seed >> 31 : seed >> 24);
  }
  return tensor;
}

bool same_bytes(const torch::Tensor& a, const torch::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         (a.nbytes() == 0 || std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0);
}

ErrorKind write_error(const NamedTensors& tensors) {
  const Scratch scratch;
  try {
    write_safetensors(scratch.path("a"), tensors);
  } catch (const Error& error) {
    EXPECT_FALSE(std::filesystem::exists(scratch.path("a")));
    return error.kind();
  }
  return ErrorKind::kFailure;
}

TEST(Safetensors, GoldenBytes) {
  const Scratch scratch;
  const auto path = scratch.path("a.safetensors");
  write_safetensors(path, {});
  EXPECT_EQ(read_file(path), std::string("\x08\0\0\0\0\0\0\0{}      ", 16));
  const std::string one =
      write_safetensors(path, {{"attn.0", torch::arange(6, torch::kFloat).view({1, 2, 3})}});
  EXPECT_EQ(one, "2a86d7550f9791d6a7447c66874e5c86d824e292e17226b389a53341d4987f0d");
  EXPECT_EQ(sha256_file(path), one);
  EXPECT_EQ(std::filesystem::file_size(path), 96u);
  for (const bool in_place : {false, true}) {
    const std::string three = write_safetensors(path,
                                                {{"i", torch::tensor(int64_t{7})},
                                                 {"w", torch::tensor({1.0f, -2.0f})},
                                                 {"e", torch::empty({0}, torch::kByte)}},
                                                {{"a", "1"}, {"b", "2"}}, in_place);
    EXPECT_EQ(three, "15fbffbac0baee9284e806b3422bdce8f47c82fced4b24ef2dad8d7e3b08b2fd");
    EXPECT_EQ(std::filesystem::file_size(path), 224u);
  }
}

TEST(Safetensors, WriteReadWriteGivesTheSameBytes) {
  const Scratch scratch;
  const std::vector<std::vector<int64_t>> shapes = {{}, {3}, {2, 0, 4}, {5, 7, 3}, {1, 1}};
  NamedTensors tensors;
  for (const torch::ScalarType type : kAllTypes)
    for (size_t i = 0; i < shapes.size(); ++i)
      tensors.emplace_back(fmt::format("{}.{}", torch::toString(type), i),
                           arbitrary(type, shapes[i], static_cast<uint32_t>(tensors.size())));
  tensors.emplace_back("large", arbitrary(torch::kFloat, {1000, 777}, 1));
  const std::string first = write_safetensors(scratch.path("a"), tensors, {{"k", "v"}});
  const SafetensorsFile file(scratch.path("a"));
  EXPECT_EQ(file.entries().size(), tensors.size());
  NamedTensors again;
  for (const auto& [name, tensor] : tensors) {
    again.emplace_back(name, file.load(name));
    EXPECT_TRUE(same_bytes(again.back().second, tensor)) << name;
  }
  std::reverse(again.begin(), again.end());
  EXPECT_EQ(write_safetensors(scratch.path("b"), again, file.metadata()), first);
}

TEST(Safetensors, ViewsAreCopied) {
  const Scratch scratch;
  const torch::Tensor base = torch::arange(24, torch::kFloat).view({4, 6});
  const torch::Tensor conjugate = torch::complex(torch::ones({2}), torch::ones({2})).conj();
  torch::Tensor grown = torch::arange(3, torch::kFloat).set_requires_grad(true);
  write_safetensors(
      scratch.path("a"),
      {{"t", base.t()}, {"e", torch::ones({1, 3}).expand({2, 3})}, {"c", conjugate}, {"g", grown}});
  const SafetensorsFile file(scratch.path("a"));
  EXPECT_TRUE(torch::equal(file.load("t"), base.t().contiguous()));
  EXPECT_TRUE(torch::equal(file.load("e"), torch::ones({2, 3})));
  EXPECT_TRUE(torch::equal(file.load("c"), conjugate.resolve_conj()));
  EXPECT_TRUE(torch::equal(file.load("g"), grown.detach()));
}

TEST(Safetensors, RefusesWhatTheFormatHasNot) {
  const torch::Tensor a = torch::ones({4});
  EXPECT_EQ(write_error({{"a", a}, {"b", a}}), ErrorKind::kUsage);
  EXPECT_EQ(write_error({{"a", a.slice(0, 0, 2)}, {"b", a.slice(0, 2, 4)}}), ErrorKind::kUsage);
  EXPECT_EQ(write_error({{"a", a}, {"a", a.clone()}}), ErrorKind::kUsage);
  EXPECT_EQ(write_error({{"a", a.to_sparse()}}), ErrorKind::kUsage);
  EXPECT_EQ(write_error({{"a", torch::quantize_per_tensor(a, 0.1, 0, torch::kQInt8)}}),
            ErrorKind::kUsage);
  EXPECT_EQ(write_error({{"a", torch::ones({1}, torch::kComplexDouble)}}), ErrorKind::kUsage);
  EXPECT_EQ(write_error({{"a", torch::empty({1}, torch::kMeta)}}), ErrorKind::kUsage);
  EXPECT_EQ(write_error({{"a", torch::Tensor()}}), ErrorKind::kUsage);
}

TEST(Safetensors, ReaderNamesFileRuleAndTensor) {
  const Scratch scratch;
  const auto path = scratch.path("a.safetensors");
  write_safetensors(path, {{"weight", torch::ones({4})}});
  const SafetensorsFile open(path);
  try {
    open.load("weigth");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData);
    EXPECT_EQ(error.hint(), "did you mean \"weight\"?");
  }
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  try {
    const SafetensorsFile file(path);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData);
    EXPECT_TRUE(std::string(error.what()).starts_with("MetadataIncompleteBuffer: "));
    EXPECT_NE(std::string(error.what()).find(path.string()), std::string::npos);
  }
  EXPECT_THROW(open.load("weight"), Error);  // truncated since: an error, not a SIGBUS
  EXPECT_THROW(SafetensorsFile(scratch.path("none")), Error);
  EXPECT_THROW(SafetensorsFile(scratch.path()), Error);
}

TEST(Safetensors, ListsWhatItCannotLoad) {
  const Scratch scratch;
  std::vector<SafetensorsEntry> entries = {{"f4", "F4", {2}}, {"bool", "BOOL", {1}}};
  const std::string header = build_safetensors_header(entries, {});
  write_file_synced(scratch.path("a"), header + "\x02\x02");
  const SafetensorsFile file(scratch.path("a"));
  EXPECT_EQ(file.info("f4").shape, (std::vector<uint64_t>{2}));
  const auto kind = [&](const char* name) {
    try {
      file.load(name);
    } catch (const Error& error) {
      return error.kind();
    }
    return ErrorKind::kFailure;
  };
  EXPECT_EQ(kind("f4"), ErrorKind::kUsage);
  EXPECT_EQ(kind("bool"), ErrorKind::kData);
}

TEST(Safetensors, UnalignedDataAndStridesBesideZero) {
  const Scratch scratch;
  const std::string json =
      R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
      R"("f":{"dtype":"F32","shape":[2],"data_offsets":[1,9]},)"
      R"("z":{"dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[9,9]}})";
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(json.size());
  const float values[] = {1.5f, -2.5f};
  bytes += json + "\x07" + std::string(reinterpret_cast<const char*>(values), 8);
  write_file_synced(scratch.path("a"), bytes);
  SafetensorsFile file(scratch.path("a"));
  EXPECT_TRUE(torch::equal(file.load("f"), torch::tensor({1.5f, -2.5f})));
  EXPECT_THROW(file.load("z"), Error);
  const SafetensorsFile moved(std::move(file));
  EXPECT_EQ(moved.load("b").item<int>(), 7);
}

}  // namespace
}  // namespace sigma
