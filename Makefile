# SPDX-License-Identifier: GPL-2.0
#
# The commands of the project; Kbuild, beside this file, says what is in the modules.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Which kernel: release, checking, uml, or native, for benchmarks (scripts/config/).
KERNEL ?= release
# Tests whose name matches.
T ?=
# Which benchmarks; none: all.
B ?=
export KDIR KSRC V

# $(call tools,GROUPS): the environment that scripts/tools.sh finds or installs.
tools = set -aeo pipefail; tools=$$(scripts/tools.sh $(1)); eval "$$tools"; set +a

.PHONY: help demo demo-stack check bench report modules kernel vm lint install in-tree clean \
	print-KDIR

help: ## this list
	@echo 'Ferrule: memory and storage virtualisation for Linux, in Rust. Commands:'
	@sed -n 's/^\([a-zA-Z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14 | sed 's/^/  make /'
	@echo
	@echo 'Variables: KERNEL=release|checking|uml, T=PATTERN (check), B=NAME (bench),'
	@echo 'KDIR=a built kernel of your own, KSRC=a kernel source tree of your own, RUSTC,'
	@echo 'LLVM (such as -22), BINDGEN, V=1, FERRULE_CACHE (source, kernels and tools; ~/.cache/ferrule)'

demo: ## from a fresh machine to all three modules at work, with a table of what was measured
	@$(call tools,build vm); kdir=$$(scripts/kernel.sh release); \
	scripts/modules.sh "$$kdir" out/modules/release; \
	"$$VENV/bin/python3" scripts/demo.py --kdir "$$kdir"

demo-stack: ## a database over qos, multipath, iSCSI and a thin pool, while links are cut and more
	@$(call tools,build vm); kdir=$$(scripts/kernel.sh release); \
	scripts/modules.sh "$$kdir" out/modules/release; \
	"$$VENV/bin/python3" scripts/demo_stack.py --kdir "$$kdir"

check: ## all tests, or those that match T=PATTERN; KERNEL=checking: with lockdep and KASAN
	@$(call tools,build vm test); export V; \
	"$$VENV/bin/python3" scripts/check.py --kernel "$(KERNEL)" --match "$(T)"

bench: ## benchmarks against the C peers, and out/report.html; or only B=NAME
	@$(call tools,build vm test); kdir=$$(scripts/kernel.sh release); \
	scripts/modules.sh "$$kdir" out/modules/release; \
	"$$VENV/bin/python3" scripts/bench.py --kdir "$$kdir" $(B)

report: ## out/report.html again, from what lies in out/bench/
	@$(call tools,); "$$VENV/bin/python3" scripts/report.py

modules: ## the three .ko files, in out/modules/, against the cached kernel or KDIR=
	@$(call tools,build); kdir=$$(scripts/kernel.sh "$(KERNEL)"); \
	scripts/modules.sh "$$kdir" "out/modules/$(KERNEL)"; \
	find "out/modules/$(KERNEL)" -name '*.ko' -not -path '*/selftests/*'

kernel: ## the custom kernel (KERNEL= chooses)
	@$(call tools,build); scripts/kernel.sh "$(KERNEL)" >/dev/null

vm: ## a shell in a virtual machine, with the modules at hand
	@$(call tools,build vm); kdir=$$(scripts/kernel.sh "$(KERNEL)"); \
	scripts/modules.sh "$$kdir" "out/modules/$(KERNEL)"; \
	"$$VENV/bin/python3" scripts/vm.py shell --kernel "$(KERNEL)" --kdir "$$kdir"

lint: ## rustfmt, clippy, checkpatch, shellcheck, ruff
	@$(call tools,build lint); kdir=$$(scripts/kernel.sh release); scripts/lint.sh "$$kdir"

install: ## modules_install and depmod, for modprobe (INSTALL_MOD_PATH= elsewhere)
	@$(call tools,build); kdir=$$(scripts/kernel.sh "$(KERNEL)"); \
	scripts/modules.sh "$$kdir" out/install CONFIG_FERRULE_SELFTESTS= modules; \
	scripts/modules.sh "$$kdir" out/install CONFIG_FERRULE_SELFTESTS= modules_install

in-tree: ## add Ferrule to a kernel source tree, KSRC=DIR; UNDO=1 takes it out again
	@scripts/in-tree.sh "$(KSRC)" $(if $(UNDO),undo)

clean: ## remove what was built here (the cache stays)
	@rm -rf out

# For scripts: the build directory of the kernel.
print-KDIR:
	@$(call tools,build); scripts/kernel.sh "$(KERNEL)"
