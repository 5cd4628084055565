#!/usr/bin/env bash
# Builds llama.cpp's llama-quantize for the tests, from the sources that llama-cpp-python carries on
# PyPI, into the folder given. Takes a C++ compiler and make; says why and fails where it cannot.
set -euo pipefail
version=0.3.36
folder=$(realpath -m "$1")
if [ -x "$folder/llama-quantize" ]; then exit 0; fi
for tool in c++ make; do
  if ! command -v "$tool" >/dev/null; then echo "building llama-quantize takes $tool" >&2; exit 1; fi
done
echo "building llama-quantize of llama-cpp-python $version (2 minutes)"
mkdir -p "$folder"
log=$folder/build.log
build=$(mktemp -d "$folder/build.XXXXXX")
trap 'rm -rf "$build"' EXIT
pip() { "$build/python/bin/pip" --quiet --disable-pip-version-check "$@" --no-deps >"$log" 2>&1; }

# Of its own, as the other is being installed into.
if ! python3 -m venv "$build/python" >"$log" 2>&1; then
  echo "building llama-quantize takes venv of python3, see $log" >&2; exit 1
fi
if ! pip download --no-binary llama-cpp-python --dest "$build" "llama-cpp-python==$version"; then
  echo "pip cannot download the sources of llama-quantize, see $log" >&2; exit 1
fi
cmake=cmake
if ! command -v cmake >/dev/null; then
  if ! pip install --target "$build/tools" cmake; then
    echo "building llama-quantize takes cmake, see $log" >&2; exit 1
  fi
  cmake=$build/tools/cmake/data/bin/cmake
fi
tar --extract --file "$build"/*.tar.gz --directory "$build" --strip-components 3 \
  "llama_cpp_python-$version/vendor/llama.cpp"
# A unity build reads the headers of 150 models a few times; one file redeclares a name of others.
echo 'set_source_files_properties(json.cpp PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)' \
  >>"$build/common/CMakeLists.txt"

# The quantizers are C, and get -O3. The C++ reads and writes files, and takes longer to optimize
# than it will ever run. Without a backend there is nothing that differs with the processor.
options=(
  -DCMAKE_UNITY_BUILD=ON -DCMAKE_UNITY_BUILD_BATCH_SIZE=16
  -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O0 -DCMAKE_EXE_LINKER_FLAGS=-s
  -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=OFF -DGGML_CPU=OFF -DGGML_OPENMP=OFF -DGGML_CCACHE=OFF
  -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
)
if ! { "$cmake" -S "$build" -B "$build/out" "${options[@]}" &&
  "$cmake" --build "$build/out" --target llama-quantize --parallel "$(nproc)"; } \
  >"$log" 2>&1; then
  echo "llama-quantize did not build, see $log" >&2; exit 1
fi
mv "$build/out/bin/llama-quantize" "$folder"
rm "$log"
