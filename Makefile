# Everything in one command each. On a fresh Debian 12 (root or sudo; git, make, a C++20 compiler and Python):
#   make build   the program, at build/bin/winnow         make test    the whole test suite
#   make demo    a question about a long document         make bench   winnow beside its peers, same model and threads
#   make format  clang-format over the sources            make tidy    clang-tidy over the sources
#   make asan    the tests under address and undefined-behaviour sanitizers; make tsan: thread sanitizer
#   make fuzz    each fuzz target for FUZZ_SECONDS        make aarch64 kernels' tests for NEON under emulation
#   make check   format, includes, file sizes             make clean   removes the build folders
#   make cuda    adds the CUDA device to the build folder, where nvcc is: for a GPU elsewhere (with one it is added anyway)
# Each installs, builds and fetches only what is missing.
.DEFAULT_GOAL := build
.PHONY: build test demo bench cuda format format-check tidy check asan tsan fuzz aarch64 setup setup-checks clean

JOBS ?= $(shell nproc)
TEST_JOBS ?= 2
FUZZ_SECONDS ?= 30
TEST_MODELS := smollm2-135m qwen2.5-coder-0.5b gemma3-270m
DEMO_MODEL := qwen2.5-coder-0.5b

setup:
	@scripts/setup

setup-checks: setup
	@scripts/setup checks

# CMake configures again by itself when its files change; only the first time is ours.
build/build.ninja: | setup
	@echo "build: configuring"
	@cmake --preset release --log-level=NOTICE

build: setup build/build.ninja
	@cmake --build build --parallel $(JOBS)

test: build
	@scripts/pull $(TEST_MODELS)
	@ctest --test-dir build --parallel $(TEST_JOBS) --output-on-failure --no-tests=error

demo: build
	@scripts/pull $(DEMO_MODEL)
	@demo/run

cuda: setup
	@scripts/build-cuda $(JOBS) '$(ARCHITECTURES)'

bench: build
	@bench/peers $(ARGS)

# TESTS=REGEX narrows to tests whose name matches; SANITIZE_SECONDS: what is under way then is given up, and told.
asan tsan: setup
	@CTEST_PARALLEL_LEVEL=$(TEST_JOBS) scripts/check-sanitized $@ --jobs $(JOBS) $(if $(TESTS),--tests '$(TESTS)') \
	  $(if $(SANITIZE_SECONDS),--seconds $(SANITIZE_SECONDS))

fuzz: setup-checks
	@test -f build-fuzz/build.ninja || cmake --preset fuzz --log-level=NOTICE
	@scripts/check-fuzz build-fuzz $(FUZZ_SECONDS)

aarch64: setup
	@scripts/check-aarch64

format: setup-checks
	@git -c safe.directory='*' ls-files -z '*.h' '*.cpp' | xargs -0 clang-format -i

format-check: setup-checks
	@git -c safe.directory='*' ls-files -z '*.h' '*.cpp' | xargs -0 clang-format --dry-run --Werror

tidy: setup-checks build/build.ninja
	@scripts/check-tidy build --jobs $(JOBS) $(if $(TIDY_SECONDS),--seconds $(TIDY_SECONDS))

check: format-check
	@scripts/check-includes

clean:
	rm -rf build build-*
