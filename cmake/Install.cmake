# `cmake --install build --prefix P`: the program, the library, its headers, the assets, and the package that
# find_package(Sigma) reads. LibTorch stays where it is: in the torch wheel.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package "${CMAKE_INSTALL_LIBDIR}/cmake/Sigma")

# The OpenMP library of this compiler: programs that use Sigma link the same one, or they would start two thread pools.
set(openmp omp)
if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  set(openmp gomp)
endif()
execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=lib${openmp}.so
  OUTPUT_VARIABLE SIGMA_OPENMP OUTPUT_STRIP_TRAILING_WHITESPACE)
get_filename_component(SIGMA_OPENMP "${SIGMA_OPENMP}" REALPATH)

set_target_properties(sigma PROPERTIES INSTALL_RPATH "${torch_dir}/lib")
set_target_properties(sigma_program PROPERTIES INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR};${torch_dir}/lib")
install(TARGETS sigma LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS sigma_program RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY sigma/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/sigma FILES_MATCHING PATTERN "*.h")
install(DIRECTORY assets/ DESTINATION ${CMAKE_INSTALL_DATADIR}/sigma/assets)

configure_package_config_file(cmake/SigmaConfig.cmake.in ${CMAKE_BINARY_DIR}/generated/SigmaConfig.cmake
  INSTALL_DESTINATION ${package} PATH_VARS CMAKE_INSTALL_LIBDIR CMAKE_INSTALL_INCLUDEDIR)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/generated/SigmaConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/generated/SigmaConfig.cmake ${CMAKE_BINARY_DIR}/generated/SigmaConfigVersion.cmake
  cmake/TorchWheel.cmake DESTINATION ${package})
