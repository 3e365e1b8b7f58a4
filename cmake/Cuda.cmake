# Kernels: torch-free .cu files, compiled by nvcc for Hopper with PTX for later chips.
enable_language(CUDA)
file(GLOB_RECURSE kernels CONFIGURE_DEPENDS sigma/*.cu)
add_library(sigma_kernels OBJECT ${kernels})
set_target_properties(sigma_kernels PROPERTIES POSITION_INDEPENDENT_CODE ON CUDA_STANDARD 17 CUDA_ARCHITECTURES OFF)
target_include_directories(sigma_kernels PRIVATE ${CMAKE_SOURCE_DIR})
target_compile_options(sigma_kernels PRIVATE -O3 -fmad=false -gencode arch=compute_90,code=[sm_90,compute_90])
target_link_libraries(sigma PRIVATE $<TARGET_OBJECTS:sigma_kernels> CUDA::cudart)
