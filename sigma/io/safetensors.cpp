#include "sigma/io/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <limits>
#include <optional>
#include <system_error>
#include <unordered_map>

#include "sigma/base/config.h"
#include "sigma/base/error.h"
#include "sigma/io/files.h"

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

namespace sigma {
namespace {

constexpr std::pair<std::string_view, torch::ScalarType> kTypes[] = {
    {"BOOL", torch::kBool},
    {"U8", torch::kByte},
    {"I8", torch::kChar},
    {"F8_E5M2", torch::kFloat8_e5m2},
    {"F8_E4M3", torch::kFloat8_e4m3fn},
    {"F8_E8M0", torch::kFloat8_e8m0fnu},
    {"F8_E4M3FNUZ", torch::kFloat8_e4m3fnuz},
    {"F8_E5M2FNUZ", torch::kFloat8_e5m2fnuz},
    {"I16", torch::kShort},
    {"U16", torch::kUInt16},
    {"F16", torch::kHalf},
    {"BF16", torch::kBFloat16},
    {"I32", torch::kInt},
    {"U32", torch::kUInt32},
    {"F32", torch::kFloat},
    {"C64", torch::kComplexFloat},
    {"F64", torch::kDouble},
    {"I64", torch::kLong},
    {"U64", torch::kUInt64},
};

std::optional<torch::ScalarType> torch_type(std::string_view dtype) {
  for (const auto& [name, type] : kTypes)
    if (name == dtype) return type;
  return std::nullopt;
}

SafetensorsEntry entry_of(const std::string& name, const torch::Tensor& tensor) {
  SIGMA_CHECK(kUsage, tensor.defined(), "safetensors: tensor \"{}\": undefined", name);
  SIGMA_CHECK(kUsage, tensor.layout() == torch::kStrided && !tensor.is_quantized(),
              "safetensors: tensor \"{}\": expected a dense tensor, got a sparse or quantised one",
              name);
  SIGMA_CHECK(kUsage, !tensor.is_meta(), "safetensors: tensor \"{}\": has no data", name);
  for (const auto& [dtype, type] : kTypes)
    if (type == tensor.scalar_type())
      return {name, std::string(dtype), {tensor.sizes().begin(), tensor.sizes().end()}};
  fail(ErrorKind::kUsage, "safetensors: tensor \"{}\": no dtype for {}", name,
       torch::toString(tensor.scalar_type()));
}

torch::Tensor on_host(const torch::Tensor& tensor) {
  return tensor.detach().resolve_conj().resolve_neg().to(torch::kCPU).contiguous();
}

}  // namespace

std::string write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                              const Metadata& metadata, bool in_place) {
  std::vector<SafetensorsEntry> entries;
  std::unordered_map<std::string, const torch::Tensor*> by_name;
  std::unordered_map<const void*, std::string> storages;
  for (const auto& [name, tensor] : tensors) {
    entries.push_back(entry_of(name, tensor));
    by_name[name] = &tensor;
  }
  std::string header = build_safetensors_header(entries, metadata);  // finds duplicate names
  for (const auto& [name, tensor] : tensors) {
    if (tensor.numel() == 0) continue;
    const auto [other, fresh] = storages.emplace(tensor.storage().unsafeGetStorageImpl(), name);
    if (!fresh)
      throw Error(ErrorKind::kUsage,
                  fmt::format("safetensors: tensors \"{}\" and \"{}\" share one storage",
                              other->second, name),
                  "write one of them, or a clone()");
  }
  FileWriter file(path, in_place ? FileWriter::Mode::kInPlace : FileWriter::Mode::kAtomic);
  file.write(header.data(), header.size());
  for (const SafetensorsEntry& e : entries) {
    const torch::Tensor tensor = on_host(*by_name.at(e.name));
    if (e.end > e.begin) file.write(tensor.const_data_ptr(), e.end - e.begin);
  }
  return file.finish();
}

SafetensorsFile::SafetensorsFile(std::filesystem::path path) : path_(std::move(path)) {
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  SIGMA_CHECK(kIo, descriptor_ >= 0, "{}: cannot open: {}", path_.string(),
              std::generic_category().message(errno));
  try {
    struct stat status{};
    SIGMA_CHECK(kIo, ::fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode),
                "{}: expected a regular file", path_.string());
    const uint64_t size = static_cast<uint64_t>(status.st_size);
    char prefix[8];
    const size_t got = read_at(descriptor_, prefix, sizeof prefix, 0, path_);
    std::string json(safetensors_header_length({prefix, got}, size), '\0');
    json.resize(read_at(descriptor_, json.data(), json.size(), sizeof prefix, path_));
    header_ = parse_safetensors_header(json, size);
  } catch (const Error& error) {
    ::close(descriptor_);
    if (error.kind() != ErrorKind::kData) throw;
    fail(ErrorKind::kData, "{} ({})", error.what(), path_.string());
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

SafetensorsFile::~SafetensorsFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : path_(std::move(other.path_)),
      header_(std::move(other.header_)),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

bool SafetensorsFile::contains(const std::string& name) const {
  return std::any_of(entries().begin(), entries().end(),
                     [&](const SafetensorsEntry& e) { return e.name == name; });
}

const SafetensorsEntry& SafetensorsFile::info(const std::string& name) const {
  for (const SafetensorsEntry& e : entries())
    if (e.name == name) return e;
  std::vector<std::string> names;
  for (const SafetensorsEntry& e : entries()) names.push_back(e.name);
  const std::string near = did_you_mean(name, names);
  throw Error(ErrorKind::kData, fmt::format("{}: no tensor \"{}\"", path_.string(), name),
              near.empty() ? "" : fmt::format("did you mean \"{}\"?", near));
}

torch::Tensor SafetensorsFile::load(const std::string& name, torch::Device device) const {
  const SafetensorsEntry& e = info(name);
  const std::optional<torch::ScalarType> type = torch_type(e.dtype);
  SIGMA_CHECK(kUsage, type.has_value(), "{}: tensor \"{}\": torch has no dtype {}", path_.string(),
              name, e.dtype);
  // Beside a size 0, the others may be anything; their strides must still fit.
  int64_t volume = 1;
  bool overflow = false;
  for (const uint64_t size : e.shape)
    overflow |=
        __builtin_mul_overflow(volume, static_cast<int64_t>(std::max<uint64_t>(size, 1)), &volume);
  SIGMA_CHECK(kUsage, !overflow, "{}: tensor \"{}\": torch cannot hold [{}]", path_.string(), name,
              fmt::join(e.shape, ", "));
  const std::vector<int64_t> shape(e.shape.begin(), e.shape.end());
  torch::Tensor tensor = torch::empty(shape, torch::TensorOptions(*type));
  const size_t size = e.end - e.begin;
  if (size > 0) {
    auto* bytes = static_cast<uint8_t*>(tensor.mutable_data_ptr());
    const size_t got = read_at(descriptor_, bytes, size, header_.data_start + e.begin, path_);
    SIGMA_CHECK(kData, got == size,
                "{}: tensor \"{}\": expected {} bytes, got {}: the file was "
                "truncated while it was open",
                path_.string(), name, size, got);
    // Any other byte in a bool is undefined behaviour.
    SIGMA_CHECK(
        kData,
        *type != torch::kBool || std::all_of(bytes, bytes + size, [](uint8_t b) { return b <= 1; }),
        "{}: tensor \"{}\": BOOL: expected bytes 0 and 1", path_.string(), name);
  }
  return tensor.to(device);
}

}  // namespace sigma
