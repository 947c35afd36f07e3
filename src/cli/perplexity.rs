//! `wgllama perplexity`

use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use wgllama::generate::Windows;
use wgllama::{Error, ModelFiles, Result, SessionOptions, Specials};

use super::options::{CacheArgs, DeviceArgs, LoadArgs};
use super::{Outcome, tell};

#[derive(clap::Args)]
pub struct Args {
    /// Hugging Face folder or GGUF file
    model: PathBuf,
    /// The text
    #[arg(long, value_name = "TEXT", required_unless_present = "kl")]
    file: Option<PathBuf>,
    /// One window over the whole text, instead of windows of --ctx tokens whose second halves count
    #[arg(long, conflicts_with = "stride")]
    one_window: bool,
    /// Windows of --ctx tokens that move by so many; each token counts once
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Compare with logits that `wgllama logits` wrote: their ids are evaluated in one window
    #[arg(long, value_name = "REFERENCE.safetensors", conflicts_with_all = ["file", "one_window", "stride"])]
    kl: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Tokens of a window, unless told otherwise.
const WINDOW: usize = 512;

pub fn run(args: &Args) -> Outcome {
    let files = args.load.open(&args.model)?;
    match &args.kl {
        Some(path) => divergence(args, &files, path),
        None => perplexity(args, &files),
    }
}

fn perplexity(args: &Args, files: &ModelFiles) -> Outcome {
    let Some(path) = &args.file else { return Ok(()) };
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let text = String::from_utf8(text)
        .map_err(|e| Error::option("file", format!("{} is not UTF-8: {e}", path.display())))?;
    let tokenizer = files.tokenizer()?;
    let ids = tokenizer.encode(&text, Specials::Text)?;
    let first = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let size = args.cache.ctx.unwrap_or(WINDOW);
    let windows = match args.stride {
        Some(stride) => Windows::Sliding { size, stride },
        None if args.one_window => Windows::One,
        None => Windows::Halves(size),
    };
    let context = windows.context(ids.len() + usize::from(first.is_some()));
    let options = SessionOptions { context: Some(context), ..args.cache.session()? };
    options.context_for(files.config())?;
    let device = args.device.open()?;
    let (model, _) = args.load.load(&device, files)?;
    let mut session = model.session(&options)?;
    let found = session.perplexity(&ids, windows, first, |found| {
        let (done, all) = found.windows;
        tell(format_args!("{done} of {all} windows: {:.4} +- {:.4}", found.value(), found.error()));
    })?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let object = serde_json::json!({
            "perplexity": found.value(),
            "error": found.error(),
            "tokens": found.tokens,
            "windows": found.windows.1,
        });
        writeln!(out, "{object}")?;
    } else {
        writeln!(
            out,
            "perplexity {:.4} +- {:.4}, {} tokens in {} windows",
            found.value(),
            found.error(),
            found.tokens,
            found.windows.1
        )?;
    }
    Ok(())
}

fn divergence(args: &Args, files: &ModelFiles, path: &Path) -> Outcome {
    let (ids, reference) = reference(path)?;
    let context = Some(args.cache.ctx.unwrap_or(ids.len().max(1)));
    let options = SessionOptions { context, ..args.cache.session()? };
    options.context_for(files.config())?;
    let device = args.device.open()?;
    let (model, _) = args.load.load(&device, files)?;
    let found = model.session(&options)?.divergence(&ids, &reference)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let object = serde_json::json!({
            "kl": found.mean(),
            "agreement": found.agreement(),
            "largest": found.largest,
            "rms": found.rms(),
            "positions": found.positions,
        });
        writeln!(out, "{object}")?;
    } else {
        writeln!(
            out,
            "mean KL divergence {:.3e}, the likeliest token agrees at {:.2} %, logits off by at most {:.3e} (rms {:.3e}), {} positions",
            found.mean(),
            100.0 * found.agreement(),
            found.largest,
            found.rms(),
            found.positions
        )?;
    }
    Ok(())
}

/// `input_ids` and `logits` of a file.
fn reference(path: &Path) -> Result<(Vec<u32>, Vec<f32>)> {
    let bad = |message: String| Error::option("kl", format!("{}: {message}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(format!("no safetensors file: {e}")))?;
    let words = |name: &str, dtype: Dtype| -> Result<Vec<u32>> {
        let tensor = file.tensor(name).map_err(|_| bad(format!("it has no tensor '{name}'")))?;
        if tensor.dtype() != dtype {
            return Err(bad(format!("expected '{name}' in {dtype:?}, found {:?}", tensor.dtype())));
        }
        Ok(tensor.data().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    };
    let logits = words("logits", Dtype::F32)?.into_iter().map(f32::from_bits).collect();
    Ok((words("input_ids", Dtype::I32)?, logits))
}
