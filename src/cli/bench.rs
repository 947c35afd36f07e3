//! `wgllama bench`: prompts and generation in tokens per second, with what that is of the
//! ceilings that the same run measured on the same adapter.

mod kernels;
mod measure;
mod report;
mod roofline;

use std::path::PathBuf;

use wgllama::model::Config;
use wgllama::{Context, Error, Model, ModelFiles, Result};

use super::ceilings::Ceilings;
use super::options::{self, CacheArgs, DeviceArgs, LoadArgs, default_model};
use super::{Outcome, tell};
use measure::Row;
use report::Report;

#[derive(clap::Args)]
pub struct Args {
    /// Hugging Face folder or GGUF file [default: the model of `make demo`]
    #[arg(conflicts_with = "synthetic")]
    model: Option<PathBuf>,
    /// Random weights instead of a file: a preset and a format, as in llama-2-7b:q4_0
    #[arg(long, value_name = "NAME:FORMAT")]
    synthetic: Option<String>,
    /// Run only so many layers of a synthetic model, where the whole would not fit, and scale
    /// the figures to all of them
    #[arg(long, value_name = "N", requires = "synthetic")]
    layers: Option<usize>,
    /// Lengths of prompts; 0 for none
    #[arg(short = 'p', long, value_name = "TOKENS", value_delimiter = ',', default_value = "128,512")]
    prompts: Vec<usize>,
    /// Numbers of tokens to generate; 0 for none
    #[arg(short = 'n', long, value_name = "TOKENS", value_delimiter = ',', default_value = "64")]
    generate: Vec<usize>,
    /// Tokens in the context before each test
    #[arg(short = 'd', long, value_name = "TOKENS", value_delimiter = ',', default_value = "0")]
    depths: Vec<usize>,
    /// Sequences that generate together, in one step for all
    #[arg(short = 'b', long, value_name = "SEQUENCES", value_delimiter = ',', default_value = "1")]
    batch: Vec<usize>,
    /// Runs of each test, after one to warm up
    #[arg(short = 'r', long, value_name = "N", default_value_t = 3)]
    repeat: usize,
    /// How to print
    #[arg(short = 'o', long, value_name = "FORMAT", default_value = "md", value_parser = ["md", "csv", "json", "jsonl"])]
    output: String,
    /// Add a table of the kernels of a step, timed on the device
    #[arg(long)]
    profile: bool,
    /// Draw those kernels below the adapter's roofline
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Args {
    /// Whether steps are timed kernel by kernel.
    fn profiles(&self) -> bool {
        self.profile || self.plot.is_some()
    }

    /// Refuses what makes no sense before anything is loaded.
    fn check(&self) -> Result<()> {
        self.cache.session()?;
        if self.repeat == 0 {
            return Err(Error::option("repeat", "expected 1 or more, found 0"));
        }
        if self.batch.contains(&0) {
            return Err(Error::option("batch", "expected 1 or more sequences, found 0"));
        }
        if let Some(path) = &self.plot {
            std::fs::write(path, "").map_err(|e| Error::io(path, e))?;
        }
        Ok(())
    }

    /// Refuses what the device can't do.
    fn check_device(&self, context: &Context) -> Result<()> {
        if self.profiles() && !context.caps().timestamps {
            return Err(Error::option("profile", "the adapter has no timestamps, or was opened without"));
        }
        Ok(())
    }
}

pub fn run(args: &Args) -> Outcome {
    args.check()?;
    let report = match &args.synthetic {
        Some(name) => random(args, name)?,
        None => {
            let files = ModelFiles::open(&args.model.clone().map_or_else(default_model, Ok)?)?;
            let context = args.device.open()?;
            args.check_device(&context)?;
            let (model, _) = args.load.load(&context, &files)?;
            let name = files.path().display().to_string();
            report(&context, name, model.config().num_hidden_layers, None, measure::all(args, &model)?)?
        }
    };
    report.print(&args.output)?;
    match &args.plot {
        Some(path) => Ok(roofline::draw(path, &report)?),
        None => Ok(()),
    }
}

/// Measures a model of random weights, or a slice of it.
fn random(args: &Args, name: &str) -> Result<Report> {
    let (whole, format) = options::synthetic(name)?;
    let layers = whole.num_hidden_layers;
    let run = args.layers.unwrap_or(layers);
    if run == 0 || run > layers {
        return Err(Error::option("layers", format!("expected 1 to {layers}, found {run}")));
    }
    let context = args.device.open()?;
    args.check_device(&context)?;
    let measure = |layers: usize| {
        let config = Config { num_hidden_layers: layers, ..whole.clone() };
        measure::all(args, &Model::synthetic(&context, &config, format)?)
    };
    let mut rows = measure(run)?;
    if run < layers {
        // Without layers: what the embedding, the logits and the step itself cost.
        tell(format_args!("the same without layers"));
        let factor = layers as f64 / run as f64;
        rows = rows.into_iter().zip(measure(0)?).map(|(row, rest)| row.scaled(&rest, factor)).collect();
    }
    report(&context, name.to_string(), layers, (run < layers).then_some(run), rows)
}

/// The rows beside the ceilings, which come last: measured first they slow what follows on
/// software adapters.
fn report(
    context: &Context,
    model: String,
    layers: usize,
    scaled_from: Option<usize>,
    rows: Vec<Row>,
) -> Result<Report> {
    tell(format_args!("measuring the ceilings"));
    let ceilings = Ceilings::measure(context)?;
    Ok(Report { model, adapter: context.adapter().clone(), layers, scaled_from, ceilings, rows })
}
