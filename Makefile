# `make` lists what there is. Overridable: JOBS (parallel compile jobs), ONLY (rooms to test), OUT (folder of the demo), PYTHON (see Scripts/setup).
SHELL := /bin/bash
.DEFAULT_GOAL := help
# Rooms whose tests are built and run, e.g. ONLY=MartletMixers,MartletNN; all unless given.
ONLY ?=
ifneq ($(ONLY),)
export MARTLET_TESTS := $(ONLY)
endif
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
OUT ?= demo
SWIFT_SOURCES := Package.swift Sources Tests
REPRODUCE ?= s4 sgconv spt gla deltanet transnormer aaren lmuformer atlas selective-s4 nprf rala slab lolcats

.PHONY: help setup build demo test bench reproduce format lint docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## find or install libtorch and the system libraries
	@Scripts/setup

build: setup ## build the release binary; ./martlet does this by itself when needed
	swift build -c release --product martlet --jobs $(JOBS)
	@touch .build/release/martlet

demo: setup ## compare four sequence models on ListOps and on a text (under 10 minutes after the build); writes demo/*/report.html
	@mkdir -p $(OUT)
	./martlet compare --task 'listops?small' --mixers softmax,linear,gla,s4 --pretrain masked --budget 25s --params 100k \
	  --seeds 1 --lengths 256,1k,4k --out $(OUT)/listops
	@# The text: this repository's own Swift sources, one after another.
	@find Sources -name '*.swift' | LC_ALL=C sort | xargs cat > $(OUT)/sources.txt
	./martlet compare --task 'bytes:$(OUT)/sources.txt' --mixers softmax,linear,gla,s4 --budget 25s --params 100k \
	  --seeds 1 --lengths 256,1k,4k --out $(OUT)/text
	@echo "The reports: $(OUT)/listops/report.html and $(OUT)/text/report.html"

test: setup ## build and run all tests
	swift build --product MartletPackageTests --jobs $(JOBS)
	swift test --skip-build --disable-xctest

bench: setup ## measure against PyTorch side by side, long sequences too; writes Benchmarks/RESULTS.md (Python with torch: MARTLET_PEER_PYTHON)
	./martlet bench --heavy --markdown Benchmarks/RESULTS.md

reproduce: setup ## run the scaled-down experiments of the papers in REPRODUCE again
	./martlet reproduce $(REPRODUCE)

format: ## format the Swift sources in place
	swift format --in-place --recursive $(SWIFT_SOURCES)

lint: ## check the style of the Swift sources
	swift format lint --strict --recursive $(SWIFT_SOURCES)

docs: setup ## write the reference documentation to .build/documentation
	swift package dump-symbol-graph --skip-synthesized-members --minimum-access-level public
	rm -rf .build/documentation-graphs && mkdir -p .build/documentation-graphs
	cp .build/*/symbolgraph/Martlet*.symbols.json .build/documentation-graphs/
	docc convert --additional-symbol-graph-dir .build/documentation-graphs --fallback-display-name Martlet \
	  --fallback-bundle-identifier martlet --output-path .build/documentation
	@echo "To read it: python3 -m http.server --directory .build/documentation"

clean: ## remove what was built (libtorch and the downloads stay)
	rm -rf .build demo
