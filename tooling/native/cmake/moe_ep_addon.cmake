# moe_ep_addon(<name> SOURCES <files>...): a Node-API addon <name>.node with the settings that every package shares.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

function(moe_ep_addon name)
  cmake_parse_arguments(ARG "" "" "SOURCES" ${ARGN})
  find_package(Threads REQUIRED)
  add_library(${name} MODULE ${ARG_SOURCES})
  set_target_properties(${name} PROPERTIES
    PREFIX "" SUFFIX ".node"
    LIBRARY_OUTPUT_DIRECTORY "${MOE_EP_OUTPUT_DIR}")
  # All C++ exceptions become JavaScript errors. While a worker is terminated no error can be thrown any more: it is dropped
  # then, and does not end the whole process.
  target_compile_definitions(${name} PRIVATE NAPI_VERSION=9
    NODE_ADDON_API_CPP_EXCEPTIONS NODE_ADDON_API_CPP_EXCEPTIONS_ALL NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS)
  target_include_directories(${name} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR}/include ${MOE_EP_INCLUDE_DIRS})
  target_include_directories(${name} SYSTEM PRIVATE ${MOE_EP_NODE_API_HEADERS_DIR} ${MOE_EP_NODE_ADDON_API_DIR})
  # Results are defined as single IEEE operations in a fixed order: no contraction, no fast-math.
  target_compile_options(${name} PRIVATE -Wall -Wextra -Wno-unused-parameter -O3 -ffp-contract=off)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    # What is built here runs on any machine of the last decade; hot loops add run-time dispatch (moe_ep/isa.h).
    target_compile_options(${name} PRIVATE -march=x86-64-v2)
  endif()
  target_link_libraries(${name} PRIVATE Threads::Threads)
  if(APPLE)
    target_link_options(${name} PRIVATE -undefined dynamic_lookup)
  else()
    target_link_options(${name} PRIVATE -static-libstdc++ -static-libgcc -Wl,--gc-sections)
  endif()
  if(CMAKE_BUILD_TYPE STREQUAL "Release" AND NOT APPLE)
    target_link_options(${name} PRIVATE -s)
  endif()
endfunction()
