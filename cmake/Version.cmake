# sigma/base/version.h's values: the version and the commit, made again at each build so that they are never stale.
add_custom_target(sigma_version
  COMMAND ${CMAKE_COMMAND} -DSOURCE=${CMAKE_SOURCE_DIR} -DOUT=${CMAKE_BINARY_DIR}/generated/sigma_version.inc
    -DVERSION=${PROJECT_VERSION} -P ${CMAKE_SOURCE_DIR}/cmake/WriteVersion.cmake
  BYPRODUCTS ${CMAKE_BINARY_DIR}/generated/sigma_version.inc)
add_dependencies(sigma sigma_version)
