# Nothing here has to be built to use the headers: copy them. This is for the demo and the tests.

CFLAGS = -O2 -g
WARNINGS = @tests/support/warnings
WARNINGS_C = @tests/support/warnings_c
SANITIZE = -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
FUZZER = $(SANITIZE) -fsanitize=fuzzer-no-link -DFUZZER
SANITIZE_THREADS = -O1 -g -fsanitize=thread -fno-omit-frame-pointer
CLANG = clang
CLANGXX = clang++
KERNELS = 6.12 6.1
PREFIX = /usr/local
JOBS = $(shell nproc)

# musl-gcc leaves the headers of the kernel out.
MUSL_LINUX = -idirafter /usr/include -idirafter /usr/include/x86_64-linux-gnu

HEADERS = $(wildcard vhost*.h)
INCLUDES = -I. -Itests/support -Iexamples/common
TALLY = tests/support/tally.sh
# A program names what it needs in comments, each on a line of its own: "vm-modules: vhost_net tun"
# are kernel modules, "vm-programs: vdpa" are programs beside it in the virtual machine,
# "vm-kernels: 6.12" are the kernels it runs on (all, if it does not say), and "backends: blk net"
# are real vhost-user back-ends.
named = $(shell sed -n 's/.*$(1): *\([a-z0-9_. -]*[a-z0-9_]\).*/\1/p' $(2))
modules = $(call named,vm-modules,$(1))
vm = tests/support/vm.sh -p "$(call named,vm-programs,$(2))" $(1) "$(call modules,$(2))"
kernels = $(or $(call named,vm-kernels,$(1)),$(KERNELS))
# Those of the programs $(3), in folder $(2), that run on kernel $(1).
on = $(foreach p,$(3),$(if $(filter $(1),$(call kernels,$(2)/$(p).c)),$(p)))
backends = $(call named,backends,$(1))
have = $(shell command -v $(1))

# ---- for people --------------------------------------------------------------------------------

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' Makefile | awk -F ': ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

.PHONY: demo
demo: build/examples/vhost_net build/examples/vhost_user_net ## run the network examples (needs only a C compiler)
	@build/examples/vhost_net
	@echo
	@build/examples/vhost_user_net

.PHONY: demo-migrate
demo-migrate: build/examples/migrate ## a guest moves to another process while its devices work
	@build/examples/migrate

# One after the other, as they are read. Told "kernel", an example may not fall back to anything.
.PHONY: demo-vm
demo-vm: ## run the kernel examples (net, vsock, scsi, vdpa) on real Linux kernels, in virtual machines
	@tests/support/setup.sh vm vdpa backends
	@$(MAKE) --no-print-directory $(KERNELS:%=demo-vm-%)

define demo_vm
.PHONY: demo-vm-$(1)
demo-vm-$(1): $(patsubst %,build/examples/%,$(call on,$(1),examples,$(EXAMPLES_VM)))
	$(foreach e,$(call on,$(1),examples,$(EXAMPLES_VM)),
	@printf '\n---- $(e) on Linux $(1) ----\n\n'
	@$$(call vm,$(1),examples/$(e).c) build/examples/$(e) kernel)
endef

.PHONY: demo-guest
demo-guest: ## a hypervisor of our own boots Debian's kernel, with all kinds of devices
	@tests/support/setup.sh vm backends || [ $$? -eq 77 ]
	@$(MAKE) --no-print-directory $(DEMO_GUEST)
	@tests/support/demo_guest.sh

.PHONY: test
test: ## all tests; installs what they need when it can (root on Debian)
	@tests/support/setup.sh greatest c++ clang valgrind analysis platforms vm vdpa backends || [ $$? -eq 77 ]
	@$(call run,build-unit build hygiene unit fuzz coverage platforms examples real bench)

.PHONY: test-unit
test-unit: ## the unit tests alone (needs a C compiler and greatest.h)
	@tests/support/setup.sh greatest || [ $$? -eq 77 ]
	@$(call run,build-unit unit)

.PHONY: test-real
test-real: ## the tests on real Linux kernels and with real vhost-user back-ends alone
	@tests/support/setup.sh greatest vm vdpa backends || [ $$? -eq 77 ]
	@$(call run,build real)

.PHONY: test-mutants
test-mutants: ## break the headers in many places, one at a time: the tests must notice
	@tests/support/setup.sh greatest clang || [ $$? -eq 77 ]
	@tests/support/mutants.sh

FUZZ_SECONDS = 60
.PHONY: fuzz fuzz-merge coverage
fuzz: ## look for what breaks it, FUZZ_SECONDS (60) in each of the fuzz targets (needs clang)
	@tests/support/setup.sh greatest clang
	@GREATEST_DIR=$$(tests/support/greatest.sh) $(MAKE) -s -j$(JOBS) \
	    $(FUZZ:%=build/fuzzer/%)
	@tests/fuzz/run.sh $(FUZZ_SECONDS) $(FUZZ)

coverage: ## how much of the headers the unit tests and the fuzz corpora reach (needs clang, llvm)
	@tests/support/setup.sh greatest clang
	@$(call run,coverage)

fuzz-merge: $(FUZZ:%=build/fuzzer/%)
	@tests/fuzz/run.sh merge $(FUZZ)

# What runs beside it would share its caches: alone, and in one process.
BENCH_MIGRATIONS = 'testpmd, on this host=build/examples/migrate loop precopy' \
    'storage daemon, on this host=build/examples/migrate disk precopy' \
    $(foreach k,$(firstword $(KERNELS)),'all kinds, emulated VM, Linux $(k)=$(call \
    vm,$(k),examples/migrate.c) build/examples/migrate kernel')

.PHONY: bench
bench: ## one table: how fast it is, beside what others do, and beside what can be done
	@tests/support/setup.sh vm vdpa backends || [ $$? -eq 77 ]
	@$(MAKE) --no-print-directory build/bench/bench build/examples/migrate
	@build/bench/bench migration $(BENCH_MIGRATIONS)

.PHONY: bench-quick
bench-quick: ## the same in less than a minute: small logs, fake back-ends
	@$(MAKE) --no-print-directory build/bench/bench
	@build/bench/bench quick

.PHONY: install
install: ## copy the headers and vhost.pc to PREFIX (/usr/local)
	install -d $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/share/pkgconfig
	install -m 644 $(HEADERS) $(DESTDIR)$(PREFIX)/include
	@printf '%s\n' 'prefix=$(PREFIX)' '' 'Name: vhost' \
	    "Description: the hypervisor's half of vhost, as header files" \
	    'Version: $(shell sed -n 's/^.define VHOST_VERSION_STRING "\(.*\)"/\1/p' vhost.h)' \
	    'Cflags: -I$${prefix}/include' >$(DESTDIR)$(PREFIX)/share/pkgconfig/vhost.pc

.PHONY: format
format: ## lay out all C files with clang-format
	find vhost*.h examples tests -name '*.[ch]' | xargs clang-format -i

.PHONY: clean
clean: ## remove build/, with what was fetched into it
	rm -rf build

# ---- lanes -------------------------------------------------------------------------------------
# A lane never stops make: it leaves its counts with tally.sh, and the sum at the end decides. The
# builds are lanes as well: what does not compile is a failure, also where an old program is left.

define run
$(TALLY) begin; \
GREATEST_DIR=$$(tests/support/greatest.sh 2>/dev/null); export GREATEST_DIR; \
for lane in $(1); do \
    $(MAKE) -s --no-print-directory -k -j$(JOBS) lane-$$lane || $(TALLY) program "make $$lane" false; \
done; \
$(TALLY) sum
endef

IMPLEMENTATION = tests/support/implementation
SUPPORT = $(filter-out $(IMPLEMENTATION),$(basename $(wildcard tests/support/*.c examples/common/*.c)))
UNIT = $(basename $(wildcard tests/unit/*.c))
FUZZ = $(patsubst tests/fuzz/%.txt,%,$(wildcard tests/fuzz/*.txt))
# Without greatest.h, whoever needs it is left out and skipped.
REAL = $(if $(GREATEST_DIR),$(notdir $(basename $(wildcard tests/real/*.c))))
REAL_VM = $(foreach r,$(REAL),$(if $(call modules,tests/real/$(r).c),$(r)))
REAL_HOST = $(foreach r,$(REAL),$(if $(call backends,tests/real/$(r).c),$(r)))
DEMO_GUEST = build/examples/kvm_vmm build/guest/vsock_echo
# The back-end in memory is no program of its own, it is linked to every example.
MEMORY_BACKEND = examples/memory_backend
EXAMPLES = $(notdir $(filter-out $(MEMORY_BACKEND),$(basename $(wildcard examples/*.c))))
EXAMPLES_VM = $(foreach e,$(EXAMPLES),$(if $(call modules,examples/$(e).c),$(e)))

.PHONY: lane-build
lane-build:
	@$(TALLY) program build $(MAKE) -k build-programs

.PHONY: build-programs
build-programs: $(EXAMPLES:%=build/examples/%) $(DEMO_GUEST) $(REAL:%=build/real/%)

.PHONY: lane-hygiene
lane-hygiene:
	@$(TALLY) suite hygiene tests/hygiene/run.sh
	@$(TALLY) program "rules and their tests" tests/support/check_rules.sh

# One way to build and run the unit tests: NAME, its compiler, TITLE, and arguments for greatest.
define unit_lane
.PHONY: unit-$(1)
lane-unit: unit-$(1)
ifeq ($$(call have,$(2)),)
unit-$(1):
	@$(TALLY) skip "unit tests, $(3)" "no $(2)"
else
build-unit: build/unit/$(1)
unit-$(1):
	@$(TALLY) suite "unit tests, $(3)" build/unit/$(1) -v $(4)
endif
endef

.PHONY: lane-build-unit build-unit lane-unit
ifneq ($(GREATEST_DIR),)
lane-build-unit:
	@$(TALLY) program "build unit tests" $(MAKE) -k build-unit
$(eval $(call unit_lane,cc,$(CC),C99))
$(eval $(call unit_lane,clang,$(CLANG),sanitizers))
$(eval $(call unit_lane,tsan,$(CLANG),threads under the sanitizer,-s threads_suite))
$(eval $(call unit_lane,g++,$(CXX),$(CXX) C++11))
$(eval $(call unit_lane,clang++,$(CLANGXX),$(CLANGXX) C++11))
lane-unit: unit-valgrind
unit-valgrind: build/unit/cc
else
lane-build-unit:
	@:
lane-unit:
	@$(TALLY) skip "unit tests" "no greatest.h"
endif

# Fewer of the random maps, as each takes thirty times as long.
.PHONY: unit-valgrind
unit-valgrind:
ifeq ($(call have,valgrind),)
	@$(TALLY) skip "unit tests, valgrind" "no valgrind"
else
	@$(TALLY) suite "unit tests, valgrind" env VHOST_MODEL_RUNS=1000 \
	    valgrind -q --error-exitcode=99 --leak-check=full --fair-sched=yes build/unit/cc
endif

# Other machines, by qemu-user, and another libc; and memory that was never written to. Of the random
# maps a few, as they are the same everywhere; what is used after it was freed is ASan's to find.
# platform: NAME, its compiler and options, TITLE, what runs it.
PLATFORM_SUPPORT = $(filter-out %_machine %/vduse_device %/real_backend %/request_queue %/packed_ring \
    examples/%,$(SUPPORT))
define platform
.PHONY: unit-$(1)
lane-platforms: unit-$(1)
ifeq ($$(call have,$(firstword $(2))),)
unit-$(1):
	@$$(TALLY) skip "unit tests, $(3)" "no $(firstword $(2))"
else
build/$(1)/%.o: %.c
	@mkdir -p $$(@D)
	$(2) -std=c99 -O1 -g -Wall -Wextra -Werror $$(COMPILE)
build/unit/$(1): LINK = $(2)
build/unit/$(1): $$(patsubst %,build/$(1)/%.o,$$(UNIT) $$(PLATFORM_SUPPORT) $$(IMPLEMENTATION))
build-platforms: build/unit/$(1)
unit-$(1): build-platforms
	@$$(TALLY) suite "unit tests, $(3)" env VHOST_MODEL_RUNS=1000 $(4) build/unit/$(1) -v
endif
endef

.PHONY: lane-platforms build-platforms
ifneq ($(GREATEST_DIR),)
build-platforms:
$(eval $(call platform,s390x,s390x-linux-gnu-gcc -static,s390x (big-endian),VHOST_EMULATED=1 qemu-s390x-static))
$(eval $(call platform,armhf,arm-linux-gnueabihf-gcc -static,armhf (32 bits),VHOST_EMULATED=1 qemu-arm-static))
$(eval $(call platform,aarch64,aarch64-linux-gnu-gcc -static,aarch64,VHOST_EMULATED=1 qemu-aarch64-static))
$(eval $(call platform,musl,musl-gcc -static $(MUSL_LINUX),musl))
$(eval $(call platform,msan,$(CLANG) -fsanitize=memory -fno-omit-frame-pointer,memory that was never written,MSAN_OPTIONS=poison_in_free=0))
endif

# Each corpus once, with the sanitizers.
.PHONY: lane-fuzz $(FUZZ:%=fuzz-%)
ifeq ($(call have,$(CLANG)),)
lane-fuzz:
	@$(TALLY) skip "fuzz corpora" "no $(CLANG)"
else ifneq ($(GREATEST_DIR),)
lane-fuzz: $(FUZZ:%=fuzz-%)
$(FUZZ:%=fuzz-%): fuzz-%: build/fuzz/%
	@$(TALLY) suite "fuzz corpus, $*" build/fuzz/$* replay tests/fuzz/$*.txt
endif

# How much of the headers the unit tests and the corpora reach.
.PHONY: lane-coverage
ifeq ($(and $(call have,$(CLANG)),$(call have,llvm-cov)),)
lane-coverage:
	@$(TALLY) skip coverage "no $(CLANG), or no llvm-cov"
else ifneq ($(GREATEST_DIR),)
COVERED = build/coverage/unit $(FUZZ:%=build/coverage/%)
lane-coverage: $(COVERED)
	@$(TALLY) program coverage tests/support/coverage.sh build/coverage/unit \
	    $(foreach f,$(FUZZ),"build/coverage/$f replay tests/fuzz/$f.txt")
	@grep ' of lines, ' build/results/coverage.log
endif

# These can do nothing without their device: they run in the virtual machines only.
EXAMPLES_HOST = $(filter-out vhost_vsock vhost_scsi vhost_vdpa kvm_vmm,$(EXAMPLES))
.PHONY: lane-examples $(EXAMPLES_HOST:%=example-%)
lane-examples: $(EXAMPLES_HOST:%=example-%)
$(EXAMPLES_HOST:%=example-%): example-%:
	@$(TALLY) program "example $*" build/examples/$* $(QUICK_$*)
QUICK_migrate = quick

# All kinds of migration that there are here, but those of the virtual machines.
MIGRATIONS = precopy postcopy
.PHONY: $(MIGRATIONS:%=migrate-%)
lane-real: $(MIGRATIONS:%=migrate-%)
$(MIGRATIONS:%=migrate-%): migrate-%:
	@$(TALLY) program "migrate, $*" build/examples/migrate $*

# A report: what is slow fails nothing, but a page that is lost or a call that fails does.
.PHONY: lane-bench
lane-bench: build/bench/bench
	@$(TALLY) program bench build/bench/bench quick
	@cat build/results/bench.log

# A hypervisor of our own. It is tried again only if it hangs.
.PHONY: demo-guest-lane
lane-real: demo-guest-lane
demo-guest-lane:
	@$(TALLY) program "guest of kvm_vmm" tests/support/demo_guest.sh

# What runs on one of the kernels: the tests made for it, and the examples that name modules. Told
# "kernel", an example may not fall back to a simulation.
define kernel_lane
REAL_$(1) := $(patsubst %,real-$(1)-%,$(call on,$(1),tests/real,$(REAL_VM)))
EXAMPLES_$(1) := $(patsubst %,example-$(1)-%,$(call on,$(1),examples,$(EXAMPLES_VM)))
.PHONY: $$(REAL_$(1)) $$(EXAMPLES_$(1))
lane-real: $$(REAL_$(1)) $$(EXAMPLES_$(1))
$$(REAL_$(1)): real-$(1)-%:
	@$(TALLY) suite "$$* on Linux $(1)" \
	    $$(call vm,$(1),tests/real/$$*.c) build/real/$$* -v
$$(EXAMPLES_$(1)): example-$(1)-%:
	@$(TALLY) program "example $$* on Linux $(1)" \
	    $$(call vm,$(1),examples/$$*.c) build/examples/$$* kernel
lane-real: migrate-postcopy-$(1)
.PHONY: migrate-postcopy-$(1)
migrate-postcopy-$(1):
	@$(TALLY) program "migrate, postcopy on Linux $(1)" \
	    $$(call vm,$(1),examples/migrate.c) build/examples/migrate kernel postcopy
endef
.PHONY: lane-real
lane-real:
ifeq ($(GREATEST_DIR),)
	@$(TALLY) skip "tests on real kernels, and with real back-ends" "no greatest.h"
endif
$(foreach kernel,$(KERNELS),$(eval $(call kernel_lane,$(kernel))))
$(foreach kernel,$(KERNELS),$(eval $(call demo_vm,$(kernel))))

.PHONY: $(REAL_HOST:%=real-host-%)
lane-real: $(REAL_HOST:%=real-host-%)
$(REAL_HOST:%=real-host-%): real-host-%:
	@$(TALLY) suite "$* with real back-ends" \
	    tests/support/real_backend.sh needs "$(call backends,tests/real/$*.c)" build/real/$* -v

# ---- programs ----------------------------------------------------------------------------------
# Objects stand in one folder per compiler, under the name of their source.

COMPILE = $(INCLUDES) $(GREATEST_DIR:%=-isystem %) -MMD -MP -c $< -o $@

build/cc/%.o: %.c
	@mkdir -p $(@D)
	$(CC) -std=c99 $(CFLAGS) $(WARNINGS_C) $(COMPILE)

build/clang/%.o: %.c
	@mkdir -p $(@D)
	$(CLANG) -std=c99 $(SANITIZE) $(WARNINGS_C) $(COMPILE)

build/tsan/%.o: %.c
	@mkdir -p $(@D)
	$(CLANG) -std=c99 $(SANITIZE_THREADS) $(WARNINGS_C) $(COMPILE)

build/g++/%.o: %.c
	@mkdir -p $(@D)
	$(CXX) -x c++ -std=c++11 $(CFLAGS) $(WARNINGS) $(COMPILE)

build/clang++/%.o: %.c
	@mkdir -p $(@D)
	$(CLANGXX) -x c++ -std=c++11 $(CFLAGS) $(WARNINGS) $(COMPILE)

build/unit/cc: $(patsubst %,build/cc/%.o,$(UNIT) $(SUPPORT) $(IMPLEMENTATION))
build/unit/clang: $(patsubst %,build/clang/%.o,$(UNIT) $(SUPPORT) $(IMPLEMENTATION))
build/unit/tsan: $(patsubst %,build/tsan/%.o,$(UNIT) $(SUPPORT) $(IMPLEMENTATION))
build/unit/g++: $(patsubst %,build/cc/%.o,$(UNIT) $(SUPPORT)) build/g++/$(IMPLEMENTATION).o
build/unit/clang++: $(patsubst %,build/cc/%.o,$(UNIT) $(SUPPORT)) build/clang++/$(IMPLEMENTATION).o

build/unit/cc: LINK = $(CC) $(CFLAGS)
build/unit/clang: LINK = $(CLANG) $(SANITIZE)
build/unit/tsan: LINK = $(CLANG) $(SANITIZE_THREADS)
build/unit/g++: LINK = $(CXX) $(CFLAGS)
build/unit/clang++: LINK = $(CLANGXX) $(CFLAGS)
build/unit/%:
	@mkdir -p $(@D)
	$(LINK) @tests/unit/system_calls.link -pthread $^ -o $@

build/fuzzer/%.o: %.c
	@mkdir -p $(@D)
	$(CLANG) -std=c99 $(FUZZER) $(WARNINGS_C) $(COMPILE)

# libFuzzer's main, or that of tests/fuzz/main.c, which runs a corpus once.
build/fuzzer/%: $(patsubst %,build/fuzzer/%.o,tests/fuzz/% tests/fuzz/main $(SUPPORT) $(IMPLEMENTATION))
	@mkdir -p $(@D)
	$(CLANG) $(FUZZER) -fsanitize=fuzzer -pthread $^ -o $@

build/fuzz/%: $(patsubst %,build/clang/%.o,tests/fuzz/% tests/fuzz/main $(SUPPORT) $(IMPLEMENTATION))
	@mkdir -p $(@D)
	$(CLANG) $(SANITIZE) -pthread $^ -o $@

COVERAGE = -O0 -g -fprofile-instr-generate -fcoverage-mapping -fprofile-update=atomic
build/coverage/%.o: %.c
	@mkdir -p $(@D)
	$(CLANG) -std=c99 $(COVERAGE) $(WARNINGS_C) $(COMPILE)
build/coverage/unit: $(patsubst %,build/cc/%.o,$(UNIT) $(SUPPORT)) build/coverage/$(IMPLEMENTATION).o
	$(CLANG) $(COVERAGE) @tests/unit/system_calls.link -pthread $^ -o $@
build/coverage/%: build/cc/tests/fuzz/%.o build/cc/tests/fuzz/main.o \
    $(SUPPORT:%=build/cc/%.o) build/coverage/$(IMPLEMENTATION).o
	$(CLANG) $(COVERAGE) -pthread $^ -o $@

EXAMPLES_SHARED = $(MEMORY_BACKEND) $(basename $(wildcard examples/common/*.c))
build/examples/vhost_user_net: build/cc/tests/support/user_backend.o
build/examples/migrate: $(patsubst %.c,build/cc/%.o,$(wildcard examples/migrate/*.c)) \
    build/cc/tests/support/user_backend.o build/cc/tests/support/real_backend.o
build/examples/kvm_vmm: $(patsubst %,build/cc/examples/kvm_vmm/%.o,acpi boot glue machine migrate virtio)
build/examples/%: build/cc/examples/%.o $(EXAMPLES_SHARED:%=build/cc/%.o)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -pthread $^ -o $@

# Alone in a guest, so nothing is loaded.
build/guest/vsock_echo: build/cc/examples/kvm_vmm/vsock_echo.o
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -static $^ -o $@

build/real/vhost_user_postcopy: $(patsubst %,build/cc/examples/migrate/%.o,guest_ram page_faults)
build/real/%: build/cc/tests/real/%.o $(patsubst %,build/cc/%.o,$(SUPPORT) $(IMPLEMENTATION))
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -pthread $^ -o $@

build/bench/bench: $(patsubst %.c,build/cc/%.o,$(wildcard tests/bench/*.c) \
    $(addprefix tests/support/,implementation.c user_backend.c real_backend.c))
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -pthread $^ -o $@

# To be preloaded into any front-end; its head says how.
build/shim/%.so: build/cc/tests/support/shim/%.o
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -shared $^ -o $@ -ldl -pthread
build/cc/tests/support/shim/%.o: CFLAGS += -fPIC
build/real/vhost_user_blk build/real/vhost_user_net: | build/shim/wire_shim.so

# Objects are kept, and made again when a header they include is newer.
.SECONDARY:
-include $(shell find build -name '*.d' 2>/dev/null)
