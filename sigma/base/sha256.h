// SHA-256 (FIPS 180-4) of bytes, by OpenSSL. Torch-free.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

struct evp_md_ctx_st;

namespace sigma {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(const void* data, size_t size);
  std::array<uint8_t, 32> digest();  // once
  std::string hex();                 // once

 private:
  evp_md_ctx_st* context_;
};

std::string sha256_hex(std::string_view bytes);
/// The first 8 bytes of the digest, little-endian: the key of a parameter's initial numbers.
uint64_t sha256_u64(std::string_view bytes);

}  // namespace sigma
