//! `wgllama quantize`

use std::path::PathBuf;

use wgllama::files::Gguf;
use wgllama::model::Quantize;
use wgllama::{Result, WeightFormat};

use super::options::progress_bar;
use super::output::Output;
use super::{Outcome, tell};

#[derive(clap::Args)]
pub struct Args {
    /// GGUF file in f32, f16 or bf16
    input: PathBuf,
    /// The file to write
    output_file: PathBuf,
    /// Format of most matrices [example: q4_k]
    #[arg(long, value_name = "FORMAT", value_parser = WeightFormat::ALL.map(WeightFormat::name))]
    format: String,
    /// Format of the embedding [default: that of --format, or of --output where it makes the logits, too]
    #[arg(long, value_name = "FORMAT", value_parser = WeightFormat::ALL.map(WeightFormat::name))]
    embedding: Option<String>,
    /// Format of the matrix that makes the logits [default: q6_k if --format is smaller]
    #[arg(long, value_name = "FORMAT", value_parser = WeightFormat::ALL.map(WeightFormat::name))]
    output: Option<String>,
    /// Quantise tensors that are quantised already
    #[arg(long)]
    requantize: bool,
}

pub fn run(args: &Args) -> Outcome {
    let parse = |text: &Option<String>| -> Result<Option<WeightFormat>> {
        text.as_deref().map(str::parse).transpose()
    };
    let quantize = Quantize {
        format: args.format.parse()?,
        embedding: parse(&args.embedding)?,
        output: parse(&args.output)?,
        requantize: args.requantize,
    };
    let from = Gguf::open(&args.input)?;
    let mut out = Output::create(&args.output_file)?;
    let bar = progress_bar("quantising {wide_bar} {pos}/{len} tensors");
    let path = out.path().to_path_buf();
    quantize.write(&from, &mut out.file, &path, |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    out.finish()?;
    let size = std::fs::metadata(&path).map_or(0, |m| m.len());
    tell(format_args!("{:.1} MB in {}", size as f64 / 1e6, path.display()));
    Ok(())
}
