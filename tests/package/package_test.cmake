# Installs the build under a scratch prefix, builds an example out of the tree with find_package(Sigma), runs it and the
# installed program.
cmake_minimum_required(VERSION 3.25)
set(scratch "${BUILD}/package_test")
file(REMOVE_RECURSE "${scratch}")

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE code OUTPUT_VARIABLE out ERROR_VARIABLE out)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${ARGN}\nexit ${code}\n${out}")
  endif()
  set(out "${out}" PARENT_SCOPE)
endfunction()

run(${CMAKE_COMMAND} --install "${BUILD}" --prefix "${scratch}/prefix")
# The installed files must do without the tree: an example is copied away from it.
file(COPY "${SOURCE}/examples" DESTINATION "${scratch}")
find_program(ccache ccache)
if(NOT ccache)
  set(ccache "")
endif()
run(${CMAKE_COMMAND} -G Ninja -S "${scratch}/examples" -B "${scratch}/build" "-DCMAKE_CXX_COMPILER=${COMPILER}"
  "-DCMAKE_CXX_COMPILER_LAUNCHER=${ccache}" "-DCMAKE_PREFIX_PATH=${scratch}/prefix")
run(${CMAKE_COMMAND} --build "${scratch}/build" --target use_op)
run("${scratch}/build/use_op")
if(NOT out MATCHES "max .out - dense. [0-9.]+e-")
  message(FATAL_ERROR "use_op: ${out}")
endif()
run("${scratch}/prefix/bin/sigma" version --json)
if(NOT out MATCHES "\"ok\":true")
  message(FATAL_ERROR "sigma version: ${out}")
endif()
file(REMOVE_RECURSE "${scratch}")
