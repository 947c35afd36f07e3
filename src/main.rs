//! The binary: hands over to `cli` and turns its answer into an exit code.

#[path = "cli/mod.rs"]
mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
