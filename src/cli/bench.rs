//! `wgllama bench`: prompts and generation in tokens per second, with what that is of the
//! ceilings that the same run measured on the same adapter.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};
use wgllama::graph::Op;
use wgllama::model::{Config, kv, presets};
use wgllama::{
    Error, KvFormat, Model, ModelFiles, Phase, Result, Sampling, Session, SessionOptions, WeightFormat,
};

use super::ceilings::Ceilings;
use super::options::{CacheArgs, DeviceArgs, default_model, load};
use super::{Outcome, tell};

#[derive(clap::Args)]
pub struct Args {
    /// Hugging Face folder or GGUF file [default: the model of `make demo`]
    #[arg(conflicts_with = "synthetic")]
    model: Option<PathBuf>,
    /// Random weights instead of a file: a preset and a format, as in llama-2-7b:q4_0
    #[arg(long, value_name = "NAME:FORMAT")]
    synthetic: Option<String>,
    /// Only so many layers of a synthetic model, where the whole would not fit
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
    /// Runs of each test, after one to warm up
    #[arg(short = 'r', long, value_name = "N", default_value_t = 3)]
    repeat: usize,
    /// How to print
    #[arg(short = 'o', long, value_name = "FORMAT", default_value = "md", value_parser = ["md", "csv", "json", "jsonl"])]
    output: String,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// One line of the result.
struct Row {
    test: String,
    /// Tokens per second: mean and standard deviation.
    rate: (f64, f64),
    /// Bytes of weights and cache that were read, per second.
    bytes: f64,
    /// f32 operations of the matrix products, per second.
    flops: f64,
    /// Launches for a step.
    launches: usize,
    /// Seconds to the first token.
    first: f64,
}

pub fn run(args: &Args) -> Outcome {
    let kv = args.cache.kv()?;
    if args.repeat == 0 {
        return Err(Error::option("repeat", "expected 1 or more, found 0").into());
    }
    let files = match &args.synthetic {
        Some(_) => None,
        None => Some(ModelFiles::open(&args.model.clone().map_or_else(default_model, Ok)?)?),
    };
    let synthetic = args.synthetic.as_deref().map(|s| config(s, args.layers)).transpose()?;
    let context = args.device.open()?;
    let (model, name) = match (&files, &synthetic) {
        (Some(files), _) => (load(&context, files)?.0, files.path().display().to_string()),
        (None, Some((config, format))) => {
            let name = args.synthetic.clone().unwrap_or_default();
            (Model::synthetic(&context, config, *format)?, name)
        }
        (None, None) => return Ok(()),
    };
    let deepest = args.depths.iter().max().unwrap_or(&0);
    let longest = args.prompts.iter().chain(&args.generate).max().unwrap_or(&0);
    let options = SessionOptions {
        context: Some(args.cache.ctx.unwrap_or(deepest + longest + 1)),
        kv,
        ..Default::default()
    };
    let mut session = model.session(&options)?;
    let mut rows = Vec::new();
    for &depth in &args.depths {
        for &tokens in args.prompts.iter().filter(|n| **n > 0) {
            tell(format_args!("prompt of {tokens} at {depth}"));
            rows.push(prompt(&mut session, tokens, depth, args.repeat)?);
        }
        for &tokens in args.generate.iter().filter(|n| **n > 0) {
            tell(format_args!("generation of {tokens} at {depth}"));
            rows.push(generation(&mut session, tokens, depth, args.repeat, kv)?);
        }
    }
    tell(format_args!("measuring the ceilings"));
    let ceilings = Ceilings::measure(&context)?;
    print(args, &name, &model, &session, ceilings, &rows)
}

/// The preset and the format that `NAME:FORMAT` stands for.
fn config(text: &str, layers: Option<usize>) -> Result<(Config, WeightFormat)> {
    let Some((name, format)) = text.split_once(':') else {
        let message =
            format!("expected NAME:FORMAT with one of {}, found '{text}'", presets::names().join(", "));
        return Err(Error::option("synthetic", message));
    };
    let mut config = Config::preset(name)?;
    if let Some(layers) = layers {
        if layers == 0 || layers > config.num_hidden_layers {
            let message = format!("expected 1 to {}, found {layers}", config.num_hidden_layers);
            return Err(Error::option("layers", message));
        }
        config.num_hidden_layers = layers;
    }
    Ok((config, format.parse()?))
}

/// Ids that are no special tokens, and not all the same.
fn ids(session: &Session, n: usize) -> Vec<u32> {
    let vocab = session.model().config().vocab_size;
    (0..n).map(|i| (1000 + i * 7919) as u32 % vocab as u32).collect()
}

/// Operations of all matrix products for one token; of those before the last norm only, for
/// all but the last token of a prompt.
fn flops(session: &Session, with_logits: bool) -> f64 {
    let graph = session.model().graph();
    let products = graph.nodes.iter().filter_map(|n| match n.op {
        Op::Linear { weight, .. } if with_logits || n.name != "logits" => Some(&graph.weights[weight.0]),
        _ => None,
    });
    products.map(|w| 2.0 * (w.rows * w.cols) as f64).sum()
}

/// Mean and standard deviation.
fn spread(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (squares / (values.len() as f64 - 1.0).max(1.0)).sqrt())
}

/// A context of `depth` tokens.
fn fill(session: &mut Session, depth: usize) -> Result<()> {
    session.truncate(0);
    if depth > 0 {
        session.prefill(&ids(session, depth))?;
    }
    Ok(())
}

fn prompt(session: &mut Session, tokens: usize, depth: usize, repeat: usize) -> Result<Row> {
    let ids = ids(session, tokens);
    let mut rates = Vec::new();
    let mut first = f64::INFINITY;
    fill(session, depth)?;
    for i in 0..=repeat {
        session.truncate(depth);
        let start = Instant::now();
        session.prefill(&ids)?;
        let seconds = start.elapsed().as_secs_f64();
        if i > 0 {
            rates.push(tokens as f64 / seconds);
            first = first.min(seconds);
        }
    }
    let rate = spread(&rates);
    let plan = session.plan(if tokens == 1 { Phase::Decode } else { Phase::Prefill })?;
    let chunk = plan.options.max_tokens.min(tokens).max(1);
    Ok(Row {
        test: name("pp", tokens, depth),
        rate,
        // Weights are read at least once for a chunk.
        bytes: plan.weight_bytes() as f64 * rate.0 / chunk as f64,
        flops: flops(session, false) * rate.0,
        launches: plan.launches.len(),
        first,
    })
}

fn generation(
    session: &mut Session,
    tokens: usize,
    depth: usize,
    repeat: usize,
    kv: KvFormat,
) -> Result<Row> {
    let mut rates = Vec::new();
    let mut first = f64::INFINITY;
    fill(session, depth)?;
    for i in 0..=repeat {
        session.truncate(depth);
        let start = Instant::now();
        let one = ids(session, 1);
        let mut stream = session.generate_ids(&one, &Sampling::default().max_tokens(tokens + 1))?;
        stream.next().transpose()?;
        first = first.min(start.elapsed().as_secs_f64());
        let start = Instant::now();
        for piece in stream {
            piece?;
        }
        if i > 0 {
            rates.push(tokens as f64 / start.elapsed().as_secs_f64());
        }
    }
    let rate = spread(&rates);
    let plan = session.plan(Phase::Decode)?;
    let cache = kv::bytes_per_token(&session.model().graph().caches, kv) as f64;
    let positions = depth as f64 + (tokens as f64 + 1.0) / 2.0;
    Ok(Row {
        test: name("tg", tokens, depth),
        rate,
        bytes: (plan.weight_bytes() as f64 + cache * positions) * rate.0,
        flops: flops(session, true) * rate.0,
        launches: plan.launches.len(),
        first,
    })
}

fn name(kind: &str, tokens: usize, depth: usize) -> String {
    if depth == 0 { format!("{kind}{tokens}") } else { format!("{kind}{tokens} @ {depth}") }
}

fn print(
    args: &Args,
    name: &str,
    model: &Model,
    session: &Session,
    ceilings: Ceilings,
    rows: &[Row],
) -> Outcome {
    let adapter = model.context().adapter();
    let mut out = std::io::stdout().lock();
    let device_bytes = model.weights().bytes() + session.cache_bytes();
    let object = |row: &Row| -> Value {
        json!({
            "model": name,
            "adapter": adapter.name,
            "driver": adapter.driver,
            "backend": adapter.backend,
            "layers": model.config().num_hidden_layers,
            "test": row.test,
            "tokens_per_second": row.rate.0,
            "deviation": row.rate.1,
            "bytes_per_second": row.bytes,
            "share_of_copy": row.bytes / ceilings.copy,
            "flops": row.flops,
            "share_of_fma": row.flops / ceilings.flops,
            "launches": row.launches,
            "first_token_seconds": row.first,
            "copy_bytes_per_second": ceilings.copy,
            "fma_flops": ceilings.flops,
            "device_bytes": device_bytes,
            "peak_host_bytes": wgllama::host::peak_memory(),
        })
    };
    match args.output.as_str() {
        "json" => writeln!(out, "{}", Value::Array(rows.iter().map(object).collect()))?,
        "jsonl" => {
            for row in rows {
                writeln!(out, "{}", object(row))?;
            }
        }
        "csv" => {
            writeln!(
                out,
                "test,tokens_per_second,deviation,gb_per_second,share_of_copy,gflops,share_of_fma,launches"
            )?;
            for row in rows {
                writeln!(
                    out,
                    "{},{:.3},{:.3},{:.3},{:.4},{:.3},{:.4},{}",
                    row.test,
                    row.rate.0,
                    row.rate.1,
                    row.bytes / 1e9,
                    row.bytes / ceilings.copy,
                    row.flops / 1e9,
                    row.flops / ceilings.flops,
                    row.launches
                )?;
            }
        }
        _ => {
            let layers = model.config().num_hidden_layers;
            writeln!(
                out,
                "{name}, {layers} layers, on {} ({}, {})",
                adapter.name, adapter.backend, adapter.driver
            )?;
            writeln!(
                out,
                "ceilings: copy {:.1} GB/s, multiply-adds {:.1} GFLOP/s; {:.0} MB on the device\n",
                ceilings.copy / 1e9,
                ceilings.flops / 1e9,
                device_bytes as f64 / 1e6
            )?;
            writeln!(out, "| test | tok/s | GB/s | of copy | GFLOP/s | of multiply-adds | launches |")?;
            writeln!(out, "|---|---|---|---|---|---|---|")?;
            for row in rows {
                writeln!(
                    out,
                    "| {} | {:.2} ± {:.2} | {:.2} | {:.0} % | {:.2} | {:.0} % | {} |",
                    row.test,
                    row.rate.0,
                    row.rate.1,
                    row.bytes / 1e9,
                    100.0 * row.bytes / ceilings.copy,
                    row.flops / 1e9,
                    100.0 * row.flops / ceilings.flops,
                    row.launches
                )?;
            }
        }
    }
    Ok(())
}
