.PHONY: help demo test build

help:
	@echo 'make demo    set up what is missing (Debian, Ubuntu), build, and generate text'
	@echo 'make test    everything CI checks, on the software adapter'
	@echo 'make build   target/release/wgllama'

demo:
	@scripts/demo.sh

test:
	@scripts/test.sh

build:
	cargo build --release
