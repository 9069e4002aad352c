# speechverse: everything a stranger needs is a target here. `make` alone lists them.
# Settings: CARGO, CARGO_TARGET_DIR, SPEECHVERSE_CACHE (downloads; default .cache), SPEECHVERSE_OFFLINE (a folder that
# holds the files of scripts/downloads.lock), MODELS (which models `make test` gets).

CARGO ?= cargo
CARGO_TARGET_DIR ?= target
MODELS ?= whisper-base whisper-tiny.en smollm2-135m-instruct silero-vad

# On a busy machine, threads that spin while they wait make everything many times slower.
OMP_WAIT_POLICY ?= PASSIVE
GOMP_SPINCOUNT ?= 0
export OMP_WAIT_POLICY GOMP_SPINCOUNT CARGO MODELS

BINARY = $(CARGO_TARGET_DIR)/release/speechverse

.DEFAULT_GOAL := help
.PHONY: help tools setup build models demo test faults lint fmt doc deny bench bench-serve bench-delivery fuzz clean

help: ## this list
	@echo "make demo    first of all: sets everything up and shows the pipeline at work"
	@echo "make test    sets everything up and passes all tests"
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1	\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

tools:
	@scripts/check-tools.sh

setup: tools ## libtorch into .libtorch (0.54 GB once; nothing when it is there)
	@scripts/setup-libtorch.sh

build: setup ## the program, optimised: target/release/speechverse
	$(CARGO) build --release --locked -p speechverse-pipelines

models: build ## the models of the demonstration into models/ (0.24 GB once)
	$(BINARY) models fetch

demo: build models ## recorded speech through the whole pipeline: answers, latencies, scores; then a training cycle on a new task
	@SPEECHVERSE_BINARY=$(BINARY) scripts/demo.sh

test: tools ## all checks and tests; what could not run here is listed by name at the end
	@scripts/run-tests.sh

faults: setup ## whole processes with everything going wrong: FAULT_REQUESTS (10000), FAULT_OUTAGE seconds (60), FAULT_SEED (1)
	SPEECHVERSE_FAULTS_APACHE=1 SPEECHVERSE_FAULTS_REQUESTS=$(or $(FAULT_REQUESTS),10000) \
	SPEECHVERSE_FAULTS_OUTAGE_S=$(or $(FAULT_OUTAGE),60) SPEECHVERSE_FAULTS_SEED=$(or $(FAULT_SEED),1) \
	$(CARGO) test --locked -p speechverse-pipelines --test faults -- --nocapture

lint: setup ## formatting and clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

fmt: ## formats the code
	$(CARGO) fmt --all

doc: setup ## the reference pages: target/doc/speechverse
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

deny: ## licences, advisories and sources of the dependencies (needs cargo-deny)
	@$(CARGO) deny --version >/dev/null 2>&1 || { echo "cargo-deny is missing: $(CARGO) install --locked cargo-deny" >&2; exit 1; }
	$(CARGO) deny check

bench: setup ## micro-benchmarks of the CPU kernels and the engine; wants a quiet machine
	$(CARGO) bench --locked -p speechverse --benches

bench-serve: build models ## the service under load: latency, throughput, overhead; BENCH_SERVE_ARGUMENTS for more
	$(BINARY) bench serve --references tests/fixtures/speech/transcripts.jsonl $(BENCH_SERVE_ARGUMENTS)

bench-delivery: setup ## what exactly once costs in throughput, optimised; on the Apache Kafka that SPEECHVERSE_SYSTEM_KAFKA names, else embedded
	$(CARGO) test --release --locked -p speechverse --test system -- --ignored --exact --nocapture delivery::what_exactly_once_costs

fuzz: setup ## every parser with libFuzzer, FUZZ_SECONDS each (60)
	@set -e; for target in $$(scripts/fuzz.sh); do scripts/fuzz.sh $$target $(or $(FUZZ_SECONDS),60); done

clean: ## removes what was built; downloads and models stay
	$(CARGO) clean
