//! `wgllama inspect`

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use wgllama::model::kv::bytes_per_token;
use wgllama::{KvFormat, ModelFiles, Result, WeightFormat, quant};

use super::Outcome;
use super::options::default_model;

#[derive(clap::Args)]
pub struct Args {
    /// Hugging Face folder or GGUF file [default: the model of `make demo`]
    model: Option<PathBuf>,
    /// Tokens that the context holds [default: what the model was trained for, at most 4096]
    #[arg(long, value_name = "TOKENS")]
    ctx: Option<usize>,
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

pub fn run(args: &Args) -> Outcome {
    let path = args.model.clone().map_or_else(default_model, Ok)?;
    let files = ModelFiles::open(&path)?;
    let mut out = std::io::stdout().lock();
    write!(out, "{}", describe(&files, args.ctx)?)?;
    Ok(())
}

fn describe(files: &ModelFiles, ctx: Option<usize>) -> Result<String> {
    let config = files.config();
    let mut lines = vec![format!("model            {}", files.path().display())];
    let container = match files.gguf() {
        Some(gguf) => format!("GGUF version {}", gguf.version()),
        None => "safetensors".to_string(),
    };
    let groups = config.num_attention_heads / config.num_key_value_heads;
    let attention = match (groups, config.num_key_value_heads) {
        (1, _) => "multi-head".to_string(),
        (_, 1) => "multi-query".to_string(),
        _ => format!("grouped-query, {groups} to 1"),
    };
    lines.push(format!("container        {container}"));
    lines.push(format!("architecture     {}", config.model_type));
    lines.push(format!("layers           {}", config.num_hidden_layers));
    lines.push(format!("hidden size      {}", config.hidden_size));
    lines.push(format!("feed-forward     {}", config.intermediate_size));
    lines.push(format!(
        "heads            {} of {}, {} for keys and values ({attention})",
        config.num_attention_heads, config.head_dim, config.num_key_value_heads
    ));
    lines.push(format!("vocabulary       {}", config.vocab_size));
    lines.push(format!("trained context  {}", config.max_position_embeddings));
    lines.push(format!(
        "rope             theta {}, {} of {} turn{}",
        config.rope.theta, config.rope.rotated, config.head_dim, config.rope.scaling
    ));
    lines.push(format!("norm epsilon     {}", config.rms_norm_eps));
    lines.push(format!("embeddings       {}", if config.tie_word_embeddings { "tied" } else { "untied" }));

    let mut formats: BTreeMap<WeightFormat, (usize, u64)> = BTreeMap::new();
    let mut values = 0usize;
    for (_, format, shape) in files.tensors() {
        let len = shape.iter().product::<usize>();
        let entry = formats.entry(format).or_default();
        entry.0 += 1;
        entry.1 += quant::row_bytes(format, len).unwrap_or(0) as u64;
        values += len;
    }
    let bytes: u64 = formats.values().map(|f| f.1).sum();
    lines.push(format!("weights          {:.1} M in {}", values as f64 / 1e6, megabytes(bytes)));
    for (format, (count, bytes)) in formats {
        lines.push(format!(
            "  {:<15}{count} tensors, {}",
            format.to_string().to_uppercase(),
            megabytes(bytes)
        ));
    }

    let ctx = ctx.unwrap_or(config.max_position_embeddings.min(4096));
    for kv in KvFormat::ALL {
        let per_token = bytes_per_token(&files.graph().caches, kv);
        let all = megabytes(per_token.saturating_mul(ctx as u64));
        lines.push(format!(
            "{:<17}{per_token} bytes a token, {all} for {ctx} tokens",
            format!("cache in {kv}")
        ));
    }
    lines.push(match files.tokenizer() {
        Ok(tokenizer) => {
            let template = if tokenizer.has_chat_template() { "with" } else { "no" };
            format!(
                "tokenizer        {}, {} tokens, {template} chat template",
                tokenizer.kind(),
                tokenizer.vocab_size()
            )
        }
        Err(error) => format!("tokenizer        none: {error}"),
    });
    Ok(lines.join("\n") + "\n")
}
