#include "sigma/base/sha256.h"

#include <openssl/evp.h>

#include "sigma/base/error.h"

namespace sigma {
namespace {

std::string to_hex(const std::array<uint8_t, 32>& digest) {
  std::string text;
  for (const uint8_t byte : digest) text += fmt::format("{:02x}", byte);
  return text;
}

}  // namespace

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  SIGMA_CHECK(kFailure,
              context_ != nullptr && EVP_DigestInit_ex(context_, EVP_sha256(), nullptr) == 1,
              "SHA-256: OpenSSL could not start a digest");
}

Sha256::~Sha256() { EVP_MD_CTX_free(context_); }

void Sha256::update(const void* data, size_t size) {
  SIGMA_CHECK(kFailure, EVP_DigestUpdate(context_, data, size) == 1, "SHA-256: OpenSSL failed");
}

std::array<uint8_t, 32> Sha256::digest() {
  std::array<uint8_t, 32> out{};
  SIGMA_CHECK(kFailure, EVP_DigestFinal_ex(context_, out.data(), nullptr) == 1,
              "SHA-256: OpenSSL failed");
  return out;
}

std::string Sha256::hex() { return to_hex(digest()); }

std::string sha256_hex(std::string_view bytes) {
  Sha256 hash;
  hash.update(bytes.data(), bytes.size());
  return hash.hex();
}

uint64_t sha256_u64(std::string_view bytes) {
  Sha256 hash;
  hash.update(bytes.data(), bytes.size());
  const auto digest = hash.digest();
  uint64_t value = 0;
  for (size_t i = 8; i-- > 0;) value = value << 8 | digest[i];
  return value;
}

}  // namespace sigma
