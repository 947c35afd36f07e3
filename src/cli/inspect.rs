//! `wgllama inspect`

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use wgllama::graph::Graph;
use wgllama::model::kv::{bytes_per_token, cache_bytes};
use wgllama::model::{Config, architecture};
use wgllama::{Caps, KvFormat, ModelFiles, Result, SessionOptions, WeightFormat, quant};

use super::Outcome;
use super::kernels::{layouts, plans_of};
use super::options::{CacheArgs, default_model};

#[derive(clap::Args)]
pub struct Args {
    /// Hugging Face folder or GGUF file [default: the model of `make demo`]
    model: Option<PathBuf>,
    /// A known configuration instead of a file, as llama-2-70b
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    preset: Option<String>,
    /// Format of the preset's matrices
    #[arg(long, value_name = "FORMAT", default_value = "f16", requires = "preset", value_parser = super::options::formats())]
    format: String,
    #[command(flatten)]
    cache: CacheArgs,
}

/// What is described.
struct Subject<'a> {
    config: &'a Config,
    graph: &'a Graph,
    /// Format and number of values of each stored tensor.
    tensors: Vec<(WeightFormat, usize)>,
    /// Formats of the parts of each matrix.
    formats: Vec<Vec<WeightFormat>>,
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

pub fn run(args: &Args) -> Outcome {
    let lines = match &args.preset {
        Some(name) => preset(name, args)?,
        None => file(&args.model.clone().map_or_else(default_model, Ok)?, args)?,
    };
    writeln!(std::io::stdout().lock(), "{}", lines.join("\n"))?;
    Ok(())
}

fn preset(name: &str, args: &Args) -> Result<Vec<String>> {
    let (config, format) = (Config::preset(name)?, args.format.parse()?);
    let graph = (architecture(&config.model_type)?.graph)(&config)?;
    let formats: Vec<_> =
        graph.weights.iter().map(|w| vec![quant::fitting(format, w.cols); w.parts.len()]).collect();
    let matrices = graph.weights.iter().zip(&formats);
    let matrices = matrices.flat_map(|(w, f)| w.parts.iter().zip(f).map(|(p, f)| (*f, p.rows * w.cols)));
    let vectors = graph.vectors.iter().flat_map(|v| v.parts.iter().map(|p| (WeightFormat::F32, p.rows)));
    let tensors = matrices.chain(vectors).collect();
    let mut lines = vec![format!("preset           {name}")];
    lines.extend(describe(&Subject { config: &config, graph: &graph, tensors, formats }, args)?);
    Ok(lines)
}

fn file(path: &Path, args: &Args) -> Result<Vec<String>> {
    let files = ModelFiles::open(path)?;
    let container = match files.gguf() {
        Some(gguf) => format!("GGUF version {}", gguf.version()),
        None => "safetensors".to_string(),
    };
    let mut lines =
        vec![format!("model            {}", files.path().display()), format!("container        {container}")];
    let tensors = files.tensors().into_iter().map(|(_, f, shape)| (f, shape.iter().product())).collect();
    let formats = files.graph().weights.iter().map(|w| files.formats(w)).collect::<Result<_>>()?;
    let subject = Subject { config: files.config(), graph: files.graph(), tensors, formats };
    lines.extend(describe(&subject, args)?);
    lines.push(match files.tokenizer() {
        Ok(tokenizer) => {
            let template = if tokenizer.has_chat_template() { "with" } else { "no" };
            let (kind, tokens) = (tokenizer.kind(), tokenizer.vocab_size());
            format!("tokenizer        {kind}, {tokens} tokens, {template} chat template")
        }
        Err(error) => format!("tokenizer        none: {error}"),
    });
    Ok(lines)
}

fn describe(subject: &Subject<'_>, args: &Args) -> Result<Vec<String>> {
    let Subject { config, graph, tensors, .. } = subject;
    let mut lines = Vec::new();
    let groups = config.num_attention_heads / config.num_key_value_heads;
    let attention = match (groups, config.num_key_value_heads) {
        (1, _) => "multi-head".to_string(),
        (_, 1) => "multi-query".to_string(),
        _ => format!("grouped-query, {groups} to 1"),
    };
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
    lines.push(format!("norm epsilon     {}", config.norm_eps));
    lines.push(format!("embeddings       {}", if config.tie_word_embeddings { "tied" } else { "untied" }));

    let mut formats: BTreeMap<WeightFormat, (usize, u64)> = BTreeMap::new();
    let mut values = 0usize;
    for (format, len) in tensors {
        let entry = formats.entry(*format).or_default();
        entry.0 += 1;
        entry.1 += quant::row_bytes(*format, *len).unwrap_or(0) as u64;
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

    let session = args.cache.session()?;
    let ctx = session.context_for(config)?;
    let slack = session.slack(&Caps::nvidia(), ctx);
    for kv in KvFormat::ALL {
        let per_token = bytes_per_token(&graph.caches, kv);
        let all = megabytes(cache_bytes(graph, kv, 1, ctx, slack));
        lines.push(format!(
            "{:<17}{per_token} bytes a token, {all} for {ctx} tokens",
            format!("cache in {kv}")
        ));
    }

    lines.extend(
        planned(subject, &session, ctx)
            .unwrap_or_else(|e| vec![format!("on a card        not as it is: {e}")]),
    );
    Ok(lines)
}

/// What a session takes, planned and checked for a card, whose limits hardly show in it.
fn planned(subject: &Subject<'_>, session: &SessionOptions, ctx: usize) -> Result<Vec<String>> {
    let Subject { config, graph, formats, .. } = subject;
    let caps = Caps::nvidia();
    let mut next = formats.iter();
    let layouts = layouts(graph, &caps, |_| Ok(next.next().cloned().unwrap_or_default()))?;
    let plans = plans_of(config, graph, &layouts, &caps, session)?;
    let weights: usize = layouts.iter().flat_map(|l| &l.shards).map(|s| s.planes.bytes()).sum();
    let cache = cache_bytes(graph, session.kv, 1, ctx, session.slack(&caps, ctx));
    let scratch: usize = plans.iter().map(|(_, plan)| plan.slot_bytes()).sum();
    let all = cache.saturating_add((weights + scratch) as u64);
    let steps: Vec<_> = plans.iter().map(|(phase, p)| format!("{} for {phase}", p.launches.len())).collect();
    Ok(vec![
        format!(
            "on a card        {}: weights {}, cache in {} {}, scratch buffers {}",
            megabytes(all),
            megabytes(weights as u64),
            session.kv,
            megabytes(cache),
            megabytes(scratch as u64)
        ),
        format!("launches         {}", steps.join(", ")),
    ])
}
