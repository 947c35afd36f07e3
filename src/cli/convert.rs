//! `wgllama convert`

use std::path::PathBuf;

use super::Outcome;
use super::quantize::{Formats, write};

#[derive(clap::Args)]
pub struct Args {
    /// Hugging Face folder
    folder: PathBuf,
    /// The file to write
    output_file: PathBuf,
    /// Format of most matrices [default: as they are stored] [example: q8_0]
    #[arg(long, value_name = "FORMAT", value_parser = super::options::formats())]
    format: Option<String>,
    #[command(flatten)]
    formats: Formats,
}

pub fn run(args: &Args) -> Outcome {
    write(&args.folder, &args.output_file, args.formats.with(args.format.as_deref())?)
}
