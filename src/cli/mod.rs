//! The command line: one file a command. Owns options and what is printed; all work is the
//! library's.

mod bench;
mod ceilings;
mod convert;
mod devices;
mod doctor;
mod inspect;
mod kernels;
mod logits;
mod options;
mod output;
mod perplexity;
mod quantize;
mod run;
mod tokenize;

use std::error::Error as _;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use wgllama::Error;

/// Runs LLaMA-family models on any Vulkan, Metal or DX12 GPU.
#[derive(Parser)]
#[command(name = "wgllama", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Generate text
    Run(run::Args),
    /// List the adapters and which one is picked
    Devices(devices::Args),
    /// Compare every kernel on the adapter with the CPU, and report it
    Doctor(doctor::Args),
    /// Describe a model; needs no GPU
    Inspect(inspect::Args),
    /// List the kernels that plans use, and write their WGSL; needs no GPU
    Kernels(kernels::Args),
    /// Measure speed, as a share of what the adapter could do
    Bench(bench::Args),
    /// Write the logits of all positions to a safetensors file
    Logits(logits::Args),
    /// Say how well a model predicts a text, or how near its logits are to others
    Perplexity(perplexity::Args),
    /// Write a GGUF file with a Hugging Face folder's model and tokenizer; needs no GPU
    Convert(convert::Args),
    /// Write a GGUF file with its weights in another format; needs no GPU
    Quantize(quantize::Args),
    /// Print a text's tokens; needs no GPU
    Tokenize(tokenize::Args),
}

/// What ends a command early.
enum Stop {
    /// Told to the user.
    Error(Error),
    /// The reader of our output has gone, which is no failure of ours.
    ClosedPipe,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        // Windows has several words for it, of which `BrokenPipe` stands for all but one.
        let not_connected = cfg!(windows) && error.raw_os_error() == Some(233);
        if error.kind() == ErrorKind::BrokenPipe || not_connected {
            return Self::ClosedPipe;
        }
        Self::Error(Error::io("standard output", error))
    }
}

/// Tells the user something beside the output. A closed stderr leaves nobody to tell.
fn tell(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

type Outcome = Result<(), Stop>;

/// Parses the command line and runs it. Exit codes: 0, 1 for a failure, 2 for wrong usage.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = env_logger::Env::default()
        .default_filter_or("warn,wgpu_hal=off,wgpu_core=off,naga=off,gpu_allocator=off");
    env_logger::Builder::from_env(level).format_timestamp(None).init();
    let outcome = match &cli.command {
        Command::Run(args) => run::run(args),
        Command::Devices(args) => devices::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Kernels(args) => kernels::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Logits(args) => logits::run(args),
        Command::Perplexity(args) => perplexity::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Quantize(args) => quantize::run(args),
        Command::Tokenize(args) => tokenize::run(args),
    };
    match outcome {
        Ok(()) | Err(Stop::ClosedPipe) => ExitCode::SUCCESS,
        Err(Stop::Error(error)) => {
            let mut text = format!("error: {error}");
            let mut cause = error.source();
            while let Some(inner) = cause {
                let inner_text = inner.to_string();
                if !text.ends_with(&inner_text) {
                    text = format!("{text}: {inner_text}");
                }
                cause = inner.source();
            }
            tell(format_args!("{text}"));
            ExitCode::FAILURE
        }
    }
}
