# SPDX-License-Identifier: GPL-2.0
#
# The commands of the project; Kbuild, beside this file, says what is in the modules.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Which kernel: release, checking, uml, or native, for benchmarks (scripts/config/), or one of a
# distribution: stock:NAME (scripts/config/stock.list). A colon is no part of a folder's name.
all := $(if $(KERNEL),,all)
KERNEL ?= $(if $(filter demo demo-stack vm,$(MAKECMDGOALS)),stock,release)
stock := $(shell awk '!/^\#/ && NF { print $$1; exit }' scripts/config/stock.list)
override KERNEL := $(patsubst stock:%,stock-%,$(patsubst stock,stock:$(stock),$(KERNEL)))
# What building for it takes. For a given KDIR that may be compilers.
build := $(if $(filter stock-%,$(KERNEL)),$(if $(KDIR),build,stock),build)
# Tests whose name matches.
T ?=
# Which implementation the tests are about: c, or ours.
PEER ?=
# Which benchmarks; none: all.
B ?=
# How long to fuzz what, from where, and a program to run once more.
N ?= 100000
WHAT ?= qos
SEED ?=
PROGRAM ?=
# How long to soak, and how many rounds; none: any number.
HOURS ?= 1
ROUNDS ?= 0
export KDIR KSRC V

# $(call tools,GROUPS): the environment that scripts/tools.sh finds or installs.
tools = set -aeo pipefail; tools=$$(scripts/tools.sh $(1)); eval "$$tools"; set +a

.PHONY: help demo demo-stack check fuzz soak check-deb bench report modules kernel vm lint install in-tree deb clean \
	print-KDIR

help: ## this list
	@echo 'Ferrule: memory and storage virtualisation for Linux, in Rust. Commands:'
	@sed -n 's/^\([a-zA-Z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14 | sed 's/^/  make /'
	@echo
	@echo 'Variables: KERNEL=stock[:NAME] (a distribution'"'"'s kernel: demo, check and vm without it),'
	@echo 'release (built here: all others without it), checking or uml; T=PATTERN and PEER=c (check), B=NAME (bench),'
	@echo 'N=OPERATIONS, SEED=, WHAT=qos or selector, PROGRAM=FILE (fuzz), HOURS=, ROUNDS=, SEED= (soak),'
	@echo 'KDIR=a built kernel of your own, or the headers of one, KSRC=a kernel source tree of your own,'
	@echo 'RUSTC, LLVM (such as -22), BINDGEN, V=1, FERRULE_CACHE (source, kernels, tools; ~/.cache/ferrule),'
	@echo 'FERRULE_MIRROR (of Debian). The names of stock kernels: scripts/config/stock.list'

demo: ## from a fresh machine to all three modules at work, with a table of what was measured
	@$(call tools,$(build) vm); kdir=$$(scripts/kernel.sh "$(KERNEL)"); \
	scripts/modules.sh "$$kdir" "out/modules/$(KERNEL)"; \
	"$$VENV/bin/python3" scripts/demo.py --kernel "$(KERNEL)" --kdir "$$kdir"

demo-stack: ## a database over qos, multipath, iSCSI and a thin pool, while links are cut and more
	@$(call tools,$(build) vm); kdir=$$(scripts/kernel.sh "$(KERNEL)"); \
	scripts/modules.sh "$$kdir" "out/modules/$(KERNEL)"; \
	"$$VENV/bin/python3" scripts/demo_stack.py --kernel "$(KERNEL)" --kdir "$$kdir"

check: ## all tests, or those that match T=PATTERN; KERNEL=: those for that kernel; PEER=c: of the C drivers
	@$(call tools,$(build) $(if $(all),build stock) vm test); export V; \
	"$$VENV/bin/python3" scripts/check.py $(if $(all),,--kernel "$(KERNEL)") --match "$(T)" \
		$(if $(PEER),--peer "$(PEER)")

fuzz: ## say anything to device mapper, N= times, from SEED=, about WHAT= (qos, selector)
	@$(call tools,build vm test); export V; \
	"$$VENV/bin/python3" scripts/fuzz.py --operations "$(N)" --what "$(WHAT)" \
		$(if $(SEED),--seed "$(SEED)") $(if $(PROGRAM),--program "$(PROGRAM)")

soak: ## everything that tests do by chance, for HOURS=, on KERNEL=uml or stock, from SEED=, ROUNDS=
	@$(call tools,build $(if $(filter stock-%,$(KERNEL)),stock) vm test); export V; \
	"$$VENV/bin/python3" scripts/soak.py --kernel "$(if $(all),uml,$(KERNEL))" --hours "$(HOURS)" \
		--rounds "$(ROUNDS)" $(if $(SEED),--seed "$(SEED)")

bench: ## benchmarks against the C peers, and out/report.html; or only B=NAME; on KERNEL=
	@$(call tools,$(sort build $(build)) vm test); kdir=$$(scripts/kernel.sh "$(KERNEL)"); \
	scripts/modules.sh "$$kdir" "out/modules/$(KERNEL)"; \
	FERRULE_HOST_KERNEL="$(KERNEL)" "$$VENV/bin/python3" scripts/bench.py --kdir "$$kdir" $(B)

report: ## out/report.html again, from what lies in out/bench/
	@$(call tools,); "$$VENV/bin/python3" scripts/report.py

modules: ## the three .ko files, in out/modules/, against KERNEL= or KDIR=, which may be headers
	@$(call tools,$(build)); kdir=$$(scripts/kernel.sh "$(KERNEL)"); \
	scripts/modules.sh "$$kdir" "out/modules/$(KERNEL)"; \
	find "out/modules/$(KERNEL)" -name '*.ko' -not -path '*/selftests/*'

kernel: ## the custom kernel, or what KERNEL= says
	@$(call tools,$(build)); scripts/kernel.sh "$(KERNEL)" >/dev/null

vm: ## a shell in a virtual machine, with the modules at hand
	@$(call tools,$(build) vm); kdir=$$(scripts/kernel.sh "$(KERNEL)"); \
	scripts/modules.sh "$$kdir" "out/modules/$(KERNEL)"; \
	"$$VENV/bin/python3" scripts/vm.py shell --kernel "$(KERNEL)" --kdir "$$kdir"

lint: ## rustfmt, clippy, checkpatch, shellcheck, ruff, docutils
	@$(call tools,build lint); kdir=$$(scripts/kernel.sh release prepare); scripts/lint.sh "$$kdir"

install: ## modules_install and depmod, for modprobe (INSTALL_MOD_PATH= elsewhere)
	@$(call tools,$(build)); kdir=$$(scripts/kernel.sh "$(KERNEL)"); \
	scripts/modules.sh "$$kdir" out/install CONFIG_FERRULE_SELFTESTS= modules; \
	scripts/modules.sh "$$kdir" out/install CONFIG_FERRULE_SELFTESTS= modules_install

deb: ## Debian packages of the modules (DKMS) and of the tools, in out/deb/
	@scripts/deb.sh out/deb

check-deb: deb ## install, boot, upgrade and remove them on a Debian 13 in a virtual machine (half an hour)
	@$(call tools,stock vm); "$$VENV/bin/python3" -m pytest -q -p no:cacheprovider \
		selftests/host/test_package.py $(if $(T),-k "$(T)")

in-tree: ## add Ferrule to a kernel source tree, KSRC=DIR; UNDO=1 takes it out again
	@scripts/in-tree.sh "$(KSRC)" $(if $(UNDO),undo)

clean: ## remove what was built here (the cache stays)
	@rm -rf out

# For scripts: the build directory of the kernel.
print-KDIR:
	@$(call tools,$(build)); scripts/kernel.sh "$(KERNEL)"
