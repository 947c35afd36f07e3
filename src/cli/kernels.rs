//! `wgllama kernels`: the variants that adapters are given, and those that a model's plans use.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use wgllama::graph::Graph;
use wgllama::kernels::link::link;
use wgllama::kernels::{Grid, KERNELS, Variant};
use wgllama::model::{Config, architecture};
use wgllama::plan::{Plan, PlanOptions, WeightLayout, lower};
use wgllama::{Caps, Error, ModelFiles, Result, SessionOptions};

use super::Outcome;
use super::options::{CacheArgs, synthetic};

#[derive(clap::Args)]
pub struct Args {
    /// Hugging Face folder or GGUF file: what its plans launch [default: every variant of every kernel]
    #[arg(conflicts_with = "synthetic")]
    model: Option<PathBuf>,
    /// A preset and a format instead of a file, as in llama-2-7b:q4_0
    #[arg(long, value_name = "NAME:FORMAT")]
    synthetic: Option<String>,
    /// The adapter to choose for; none is opened
    #[arg(long, value_name = "CAPS", default_value = "nvidia", value_parser = Caps::presets().map(|(name, _)| name))]
    caps: String,
    /// Write the linked WGSL of each variant into this folder
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Tokens of a prompt that a session's plan takes at a time, unless told otherwise.
const CHUNK: usize = 512;

pub fn run(args: &Args) -> Outcome {
    let presets = Caps::presets();
    let Some((_, caps)) = presets.iter().find(|(name, _)| *name == args.caps) else {
        return Err(Error::option("caps", format!("'{}' is unknown", args.caps)).into());
    };
    let plans = plans(args, caps)?;
    let variants = if plans.is_empty() {
        unique(KERNELS.iter().flat_map(|decl| (decl.variants)(caps)))
    } else {
        unique(plans.iter().flat_map(|(_, plan)| plan.launches.iter().map(|l| l.dispatch.variant)))
    };
    if let Some(folder) = &args.dump {
        dump(folder, &variants)?;
    }
    let mut out = std::io::stdout().lock();
    if plans.is_empty() {
        for variant in &variants {
            writeln!(out, "{variant}")?;
        }
    }
    for (i, (phase, plan)) in plans.iter().enumerate() {
        let gap = if i > 0 { "\n" } else { "" };
        writeln!(out, "{gap}{phase}: {} launches", plan.launches.len())?;
        for (count, [x, y, z], variant) in launches(plan, caps) {
            writeln!(out, "{count:>6}  {:>14}  {variant}", format!("{x}x{y}x{z}"))?;
        }
    }
    Ok(())
}

/// The plans of a session for decoding and for a chunk of a prompt; none without a model.
fn plans(args: &Args, caps: &Caps) -> Result<Vec<(String, Plan)>> {
    let (config, graph, layouts) = match (&args.model, &args.synthetic) {
        (Some(path), _) => {
            let files = ModelFiles::open(path)?;
            let layouts = layouts(files.graph(), caps, |w| files.formats(w))?;
            (files.config().clone(), files.graph().clone(), layouts)
        }
        (None, Some(text)) => {
            let (config, format) = synthetic(text)?;
            let graph = (architecture(&config.model_type)?.graph)(&config)?;
            let layouts =
                layouts(&graph, caps, |w| Ok(vec![wgllama::quant::fitting(format, w.cols); w.parts.len()]))?;
            (config, graph, layouts)
        }
        (None, None) => return Ok(Vec::new()),
    };
    plans_of(&config, &graph, &layouts, caps, &args.cache.session()?)
}

/// The plans of a session for decoding and for a chunk of a prompt.
pub(super) fn plans_of(
    config: &Config,
    graph: &Graph,
    layouts: &[WeightLayout],
    caps: &Caps,
    session: &SessionOptions,
) -> Result<Vec<(String, Plan)>> {
    let context = session.context_for(config)?;
    let plan = |tokens: usize| {
        let activations = session.activations;
        let options = PlanOptions { context, activations, ..PlanOptions::new(tokens, 1, session.kv) };
        lower(graph, layouts, caps, &options)
    };
    // As a session does: a chunk shrinks to what the adapter binds.
    let mut chunk = CHUNK.min(context);
    while chunk > 1 && plan(chunk).is_err() {
        chunk /= 2;
    }
    Ok(vec![("decode".to_string(), plan(1)?), (format!("prompt of {chunk} tokens"), plan(chunk)?)])
}

pub(super) fn layouts(
    graph: &Graph,
    caps: &Caps,
    mut formats: impl FnMut(&wgllama::graph::WeightSpec) -> Result<Vec<wgllama::WeightFormat>>,
) -> Result<Vec<WeightLayout>> {
    graph.weights.iter().map(|w| WeightLayout::new(w, &formats(w)?, caps)).collect()
}

fn unique(variants: impl Iterator<Item = Variant>) -> Vec<Variant> {
    let mut seen = HashSet::new();
    variants.filter(|v| seen.insert(*v)).collect()
}

/// How often each variant is launched with each number of workgroups, in the order of the plan, for as many
/// tokens as the plan takes.
fn launches(plan: &Plan, caps: &Caps) -> Vec<(usize, [u32; 3], Variant)> {
    let mut found: Vec<(usize, [u32; 3], Variant)> = Vec::new();
    for launch in &plan.launches {
        let dispatch = &launch.dispatch;
        let rows = dispatch.rows.count(plan.options.max_tokens, plan.options.max_outputs);
        let size = Grid::size(dispatch.grid, rows as u32, caps.max_groups);
        match found.iter_mut().find(|(_, s, v)| (*s, *v) == (size, dispatch.variant)) {
            Some(entry) => entry.0 += 1,
            None => found.push((1, size, dispatch.variant)),
        }
    }
    found
}

/// A file for each variant, named as the variant is, in characters that every file system takes.
fn dump(folder: &Path, variants: &[Variant]) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    for variant in variants {
        let path = folder.join(file_name(variant));
        fs::write(&path, link(variant).source).map_err(|e| Error::io(path, e))?;
    }
    Ok(())
}

fn file_name(variant: &Variant) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "+=_".contains(c) { c } else { '-' };
    let name: String = variant.to_string().chars().map(safe).collect();
    format!("{}.wgsl", name.trim_end_matches('-'))
}
