# The torch-free parsers and the kernels of attention and experts with AddressSanitizer and UndefinedBehaviorSanitizer:
# tests/parsers runs them over hostile input, tests/fuzz searches for more of it.
find_package(fmt REQUIRED)
find_package(PNG REQUIRED)
find_package(JPEG REQUIRED)
find_package(ZLIB REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_package(GTest REQUIRED)

add_library(parsers STATIC
  sigma/base/error.cpp sigma/base/config.cpp sigma/base/config_file.cpp sigma/base/config_list.cpp sigma/base/config_text.cpp
  sigma/base/sha256.cpp
  sigma/io/safetensors_header.cpp sigma/io/safetensors_json.cpp sigma/io/images.cpp sigma/io/png.cpp sigma/io/jpeg.cpp
  sigma/io/image_ops.cpp sigma/io/image_draw.cpp sigma/io/image_record.cpp sigma/io/event_file.cpp sigma/io/files.cpp sigma/data/idx_format.cpp sigma/attention/kernels/block_sparse.cpp
  sigma/attention/kernels/block_sparse_work.cpp sigma/attention/kernels/score_maps.cpp
  sigma/attention/kernels/multi_token.cpp sigma/attention/kernels/multi_token_strip.cpp sigma/moe/kernels/panels.cpp)
target_include_directories(parsers PUBLIC ${CMAKE_SOURCE_DIR})
target_link_libraries(parsers PUBLIC sigma::options fmt::fmt-header-only PNG::PNG JPEG::JPEG ZLIB::ZLIB OpenSSL::Crypto)
target_compile_options(parsers PUBLIC -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all)
target_link_options(parsers PUBLIC -fsanitize=address,undefined)

enable_testing()
file(GLOB parser_tests CONFIGURE_DEPENDS tests/parsers/*_test.cpp)
add_executable(parsers_test ${parser_tests})
target_compile_definitions(parsers_test PRIVATE SIGMA_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
target_link_libraries(parsers_test PRIVATE parsers GTest::gtest GTest::gtest_main)
add_test(NAME parsers COMMAND parsers_test)
add_subdirectory(tests/fuzz)
