# moe_ep_addon(<name> SOURCES <files>... [CUDA <files>...]): a Node-API addon <name>.node with the settings that every package
# shares. The CUDA files are built, and MOE_EP_CUDA is 1, where there is an nvcc; MOE_EP_CUDA_BUILD in the environment may be
# AUTO (default), ON (an error without nvcc) or OFF.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

# Architectures that device code is built for: Hopper with its own instructions, unless CUDAARCHS says otherwise ("90a-real;100a-real").
if(DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES "$ENV{CUDAARCHS}")
else()
  set(CMAKE_CUDA_ARCHITECTURES "90a-real")
endif()
# In the addon itself: no CUDA library is needed to load it, and without a driver its calls say so.
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(MOE_EP_CUDART CUDA::cudart_static)

# Enables CUDA if it may be and can be, and tells in MOE_EP_CUDA. A macro: languages belong to the caller's folder.
macro(moe_ep_enable_cuda)
  set(MOE_EP_CUDA 0)
  if(NOT "$ENV{MOE_EP_CUDA_BUILD}" STREQUAL "OFF")
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
      enable_language(CUDA)
      set(MOE_EP_CUDA 1)
      if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 knows nvcc up to C++17 only
        set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
        set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
      endif()
      set(CMAKE_CUDA_STANDARD 20)
    elseif("$ENV{MOE_EP_CUDA_BUILD}" STREQUAL "ON")
      message(FATAL_ERROR "MOE_EP_CUDA_BUILD is ON, but there is no nvcc: install the CUDA toolkit or set CUDACXX")
    endif()
  endif()
endmacro()

macro(moe_ep_addon name)
  cmake_parse_arguments(ARG "" "" "SOURCES;CUDA" ${ARGN})
  if(ARG_CUDA)
    moe_ep_enable_cuda()
  else()
    set(MOE_EP_CUDA 0)
  endif()
  if(MOE_EP_CUDA)
    moe_ep_add_addon(${name} ${ARG_SOURCES} ${ARG_CUDA})
  else()
    moe_ep_add_addon(${name} ${ARG_SOURCES})
  endif()
endmacro()

function(moe_ep_add_addon name)
  find_package(Threads REQUIRED)
  add_library(${name} MODULE ${ARGN})
  set_target_properties(${name} PROPERTIES
    PREFIX "" SUFFIX ".node"
    LIBRARY_OUTPUT_DIRECTORY "${MOE_EP_OUTPUT_DIR}")
  # All C++ exceptions become JavaScript errors. While a worker is terminated no error can be thrown any more: it is dropped
  # then, and does not end the whole process.
  target_compile_definitions(${name} PRIVATE NAPI_VERSION=9
    NODE_ADDON_API_CPP_EXCEPTIONS NODE_ADDON_API_CPP_EXCEPTIONS_ALL NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS
    MOE_EP_CUDA=${MOE_EP_CUDA})
  target_include_directories(${name} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR}/include ${MOE_EP_INCLUDE_DIRS})
  target_include_directories(${name} SYSTEM PRIVATE ${MOE_EP_NODE_API_HEADERS_DIR} ${MOE_EP_NODE_ADDON_API_DIR})
  # Results are defined as single IEEE operations in a fixed order: no contraction, no fast-math.
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-unused-parameter -O3 -ffp-contract=off>)
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-O3 --fmad=false --expt-relaxed-constexpr
    --extended-lambda -Xcompiler=-Wall,-ffp-contract=off -lineinfo>)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    # What is built here runs on any machine of the last decade; hot loops add run-time dispatch (moe_ep/isa.h).
    target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-march=x86-64-v2>)
  endif()
  target_link_libraries(${name} PRIVATE Threads::Threads)
  if(MOE_EP_CUDA)
    # For the C++ files that talk to the runtime; CUDA files find both by themselves.
    target_include_directories(${name} SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
    set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX)
    find_package(CUDAToolkit REQUIRED)
    target_link_libraries(${name} PRIVATE ${MOE_EP_CUDART})
  endif()
  if(APPLE)
    target_link_options(${name} PRIVATE -undefined dynamic_lookup)
  else()
    # nodelete: what a GPU is done with later is freed by code of the addon, also when the worker thread that loaded it is gone.
    target_link_options(${name} PRIVATE -static-libstdc++ -static-libgcc -Wl,--gc-sections -Wl,-z,nodelete)
  endif()
  if(CMAKE_BUILD_TYPE STREQUAL "Release" AND NOT APPLE AND NOT MOE_EP_KEEP_SYMBOLS)
    target_link_options(${name} PRIVATE -s)
  endif()
endfunction()
