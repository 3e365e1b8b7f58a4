# The torch wheel as an imported target: sigma::torch. No find_package(Torch): it demands a CUDA toolkit and overwrites flags.
set(SIGMA_TORCH "" CACHE PATH "Folder of the torch package; empty: .venv in the source tree")
if(NOT SIGMA_TORCH)
  file(GLOB candidates "${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch")
  if(NOT candidates)
    message(FATAL_ERROR "No torch wheel in .venv: run scripts/setup.sh")
  endif()
  list(GET candidates 0 torch_dir)
else()
  set(torch_dir "${SIGMA_TORCH}")
endif()

add_library(sigma_torch INTERFACE)
add_library(sigma::torch ALIAS sigma_torch)
target_include_directories(sigma_torch SYSTEM INTERFACE
  "${torch_dir}/include" "${torch_dir}/include/torch/csrc/api/include")
target_link_libraries(sigma_torch INTERFACE
  "${torch_dir}/lib/libtorch_cpu.so" "${torch_dir}/lib/libc10.so")
target_link_options(sigma_torch INTERFACE "-Wl,-rpath,${torch_dir}/lib")

# The wheel's CUDA libraries register their kernels when loaded: keep them although no symbol asks for them.
option(SIGMA_CUDA "Build for NVIDIA GPUs (needs nvcc and the full torch wheel)" OFF)
if(SIGMA_CUDA)
  target_link_options(sigma_torch INTERFACE "-Wl,--no-as-needed")
  target_link_libraries(sigma_torch INTERFACE
    "${torch_dir}/lib/libtorch_cuda.so" "${torch_dir}/lib/libc10_cuda.so")
  target_compile_definitions(sigma_torch INTERFACE SIGMA_CUDA)
  find_package(CUDAToolkit REQUIRED)
  target_include_directories(sigma_torch SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS})
endif()
