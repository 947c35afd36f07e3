//! `wgllama logits`: the way to compare this engine with another one.

use std::path::PathBuf;

use wgllama::{Result, Session, SessionOptions, Specials};

use super::options::{CacheArgs, DeviceArgs, LoadArgs, prompt};
use super::output::Output;
use super::{Outcome, tell};

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
    load: LoadArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args) -> Outcome {
    let files = args.load.open(&args.model)?;
    let ids = match &args.prompt {
        Some(text) => files.tokenizer()?.encode_prompt(&prompt(text)?, Specials::Text)?,
        None => args.tokens.clone(),
    };
    let options = SessionOptions {
        context: Some(args.cache.ctx.unwrap_or(ids.len().max(1))),
        chunk: Some(args.chunk),
        ..args.cache.session()?
    };
    options.context_for(files.config())?;
    let out = Output::create(&args.out)?;
    let context = args.device.open()?;
    let (model, _) = args.load.load(&context, &files)?;
    let mut session = model.session(&options)?;
    write(out, &ids, &mut session)?;
    let vocab = model.config().vocab_size;
    tell(format_args!("{} positions of {vocab} logits in {}", ids.len(), args.out.display()));
    Ok(())
}

/// Writes a safetensors file, logits as they are computed.
fn write(mut out: Output, ids: &[u32], session: &mut Session) -> Result<()> {
    let vocab = session.model().config().vocab_size;
    let (id_bytes, bytes) = (ids.len() * 4, ids.len() * vocab * 4);
    let header = serde_json::json!({
        "input_ids": { "dtype": "I32", "shape": [ids.len()], "data_offsets": [0, id_bytes] },
        "logits": { "dtype": "F32", "shape": [ids.len(), vocab], "data_offsets": [id_bytes, id_bytes + bytes] },
    });
    // The format wants the data aligned to eight bytes; spaces are allowed after the header.
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write(&(header.len() as u64).to_le_bytes())?;
    out.write(&header)?;
    out.write(bytemuck::cast_slice(ids))?;
    session.prefill_with(ids, |logits| out.write(bytemuck::cast_slice(logits)))?;
    out.finish()
}
