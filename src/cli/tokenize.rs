//! `wgllama tokenize`

use std::io::Write;
use std::path::PathBuf;

use wgllama::{ModelFiles, Specials, Tokenizer};

use super::Outcome;
use super::options::prompt;

#[derive(clap::Args)]
pub struct Args {
    /// Hugging Face folder or GGUF file; a folder with just a tokenizer.json will do
    model: PathBuf,
    /// The text, or - for standard input
    text: String,
    /// Special tokens written in the text become their ids instead of staying text
    #[arg(long)]
    special: bool,
    /// Put the token in front that begins a text, if the model wants one
    #[arg(long)]
    bos: bool,
    /// Print only the ids, separated by commas, as `logits --tokens` takes them
    #[arg(long)]
    ids: bool,
}

pub fn run(args: &Args) -> Outcome {
    let tokenizer = match ModelFiles::open(&args.model) {
        Ok(files) => files.tokenizer()?,
        Err(_) if args.model.join("tokenizer.json").exists() => Tokenizer::from_folder(&args.model)?,
        Err(error) => return Err(error.into()),
    };
    let text = prompt(&args.text)?;
    let specials = if args.special { Specials::Parse } else { Specials::Text };
    let ids = if args.bos {
        tokenizer.encode_prompt(&text, specials)?
    } else {
        tokenizer.encode(&text, specials)?
    };
    let mut out = std::io::stdout().lock();
    if args.ids {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        writeln!(out, "{}", ids.join(","))?;
        return Ok(());
    }
    for id in &ids {
        writeln!(out, "{id:>8}  {:?}", tokenizer.token_text(*id).unwrap_or_default())?;
    }
    writeln!(out, "{} tokens", ids.len())?;
    Ok(())
}
