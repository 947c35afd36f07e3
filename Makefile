.PHONY: help demo test golden build windows isa portability deny

help:
	@echo 'make demo         set up what is missing (Debian, Ubuntu), build, and generate text'
	@echo 'make test         everything CI checks, on the software adapter'
	@echo 'make golden       the golden tests, SmolLM2 included, on four more software adapters (hours)'
	@echo 'make build        target/release/wgllama'
	@echo 'make windows      wgllama.exe, built on Debian and tested under Wine'
	@echo 'make isa          docs/ISA.md: what a GPU compiler makes of the kernels (needs Mesa, no GPU)'
	@echo 'make deny         licences, duplicates, sources and advisories of all crates (needs cargo-deny)'
	@echo 'make portability  what two compilers other than naga say of the kernels (needs no GPU)'

demo:
	@scripts/demo.sh

test:
	@scripts/test.sh

golden:
	@scripts/golden.sh

build:
	cargo build --release

windows:
	@scripts/windows.sh

isa:
	REQUIRE_RADV=1 cargo test --test isa report -- --ignored

portability:
	@scripts/portability.sh

deny:
	cargo deny check licenses bans sources
	cargo deny check advisories
