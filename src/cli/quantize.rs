//! `wgllama quantize`

use std::path::{Path, PathBuf};

use wgllama::files::Gguf;
use wgllama::model::Quantize;
use wgllama::{ModelFiles, Result, WeightFormat};

use super::options::{formats, progress_bar};
use super::output::Output;
use super::{Outcome, tell};

#[derive(clap::Args)]
pub struct Args {
    /// GGUF file or Hugging Face folder in f32, f16 or bf16
    input: PathBuf,
    /// The file to write
    output_file: PathBuf,
    /// Format of most matrices [example: q4_k]
    #[arg(long, value_name = "FORMAT", value_parser = formats())]
    format: String,
    #[command(flatten)]
    formats: Formats,
    /// Quantise tensors that are quantised already
    #[arg(long)]
    requantize: bool,
}

/// The formats of what is not like most.
#[derive(clap::Args)]
pub struct Formats {
    /// Format of the embedding [default: that of --format, or of --output where it makes the logits, too]
    #[arg(long, value_name = "FORMAT", value_parser = formats())]
    embedding: Option<String>,
    /// Format of the matrix that makes the logits [default: q6_k if --format is smaller]
    #[arg(long, value_name = "FORMAT", value_parser = formats())]
    output: Option<String>,
}

impl Formats {
    /// These, and `format` for all the others.
    pub fn with(&self, format: Option<&str>) -> Result<Quantize> {
        let parse = |text: Option<&str>| -> Result<Option<WeightFormat>> { text.map(str::parse).transpose() };
        Ok(Quantize {
            format: parse(format)?,
            embedding: parse(self.embedding.as_deref())?,
            output: parse(self.output.as_deref())?,
            requantize: false,
        })
    }
}

pub fn run(args: &Args) -> Outcome {
    let formats = args.formats.with(Some(&args.format))?;
    write(&args.input, &args.output_file, Quantize { requantize: args.requantize, ..formats })
}

/// Writes `input`, a file or a folder, to `output_file` as `quantize` says.
pub fn write(input: &Path, output_file: &Path, quantize: Quantize) -> Outcome {
    // Opened first: what can't be read leaves no trace of an output.
    let (folder, file) = if input.is_dir() {
        (Some(ModelFiles::open(input)?), None)
    } else {
        (None, Some(Gguf::open(input)?))
    };
    let mut out = Output::create(output_file)?;
    let path = out.path().to_path_buf();
    let bar = progress_bar("writing {wide_bar} {pos}/{len} tensors");
    let progress = |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    };
    let mut left = Vec::new();
    if let Some(folder) = &folder {
        left = quantize.convert(folder, &mut out.file, &path, progress)?;
    } else if let Some(file) = &file {
        quantize.write(file, &mut out.file, &path, progress)?;
    }
    bar.finish_and_clear();
    // On Windows nothing takes the name of a file that is mapped, and the output's may be the input's.
    drop((folder, file));
    out.finish()?;
    if !left.is_empty() {
        tell(format_args!("not written, since the model has no place for them: {}", left.join(", ")));
    }
    let size = std::fs::metadata(&path).map_or(0, |m| m.len());
    tell(format_args!("{:.1} MB in {}", size as f64 / 1e6, path.display()));
    Ok(())
}
