//! `wgllama logits`: the way to compare this engine with another one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use wgllama::{Error, ModelFiles, Result, SessionOptions, Specials};

use super::Outcome;
use super::options::{CacheArgs, DeviceArgs, load, prompt};

#[derive(clap::Args)]
pub struct Args {
    /// Hugging Face folder or GGUF file
    model: PathBuf,
    /// Token ids, separated by commas; needs no tokenizer
    #[arg(long, value_name = "IDS", value_delimiter = ',', required_unless_present = "prompt")]
    tokens: Vec<u32>,
    /// Text, or - for standard input; begins with the token that the model wants first
    #[arg(long, value_name = "TEXT", conflicts_with = "tokens")]
    prompt: Option<String>,
    /// Tokens in one step
    #[arg(long, value_name = "N", default_value_t = 128)]
    chunk: usize,
    /// Where to write: `logits` f32 [T, vocab] and `input_ids` i32 [T]
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args) -> Outcome {
    let files = ModelFiles::open(&args.model)?;
    let ids = match &args.prompt {
        Some(text) => files.tokenizer()?.encode_prompt(&prompt(text)?, Specials::Text)?,
        None => args.tokens.clone(),
    };
    let context = args.device.open()?;
    let (model, _) = load(&context, &files)?;
    let options = SessionOptions {
        context: Some(args.cache.ctx.unwrap_or(ids.len().max(1))),
        kv: args.cache.kv()?,
        chunk: Some(args.chunk),
    };
    let mut session = model.session(&options)?;
    let logits = session.prefill_all(&ids)?;
    write(&args.out, &ids, &logits, model.config().vocab_size)?;
    eprintln!("{} positions of {} logits in {}", ids.len(), model.config().vocab_size, args.out.display());
    Ok(())
}

/// Writes beside the final name first, so that a failure leaves nothing under it.
fn write(path: &Path, ids: &[u32], logits: &[f32], vocab: usize) -> Result<()> {
    let bad =
        |e: safetensors::SafeTensorError| Error::Safetensors { path: path.into(), message: e.to_string() };
    let mut tensors = HashMap::new();
    let shape = vec![ids.len(), vocab];
    tensors.insert("logits", TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(logits)).map_err(bad)?);
    tensors.insert(
        "input_ids",
        TensorView::new(Dtype::I32, vec![ids.len()], bytemuck::cast_slice(ids)).map_err(bad)?,
    );
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    let part = path.with_file_name(name);
    let result = safetensors::serialize_to_file(tensors, None, &part).map_err(bad);
    let result = result.and_then(|()| std::fs::rename(&part, path).map_err(|e| Error::io(path, e)));
    if result.is_err() {
        // It may not even be there.
        let _ = std::fs::remove_file(&part);
    }
    result
}
