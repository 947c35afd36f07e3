//! `bench --profile`: where the time of one step goes, kernel by kernel.

use wgllama::plan::Traffic;
use wgllama::{Result, generate::Timed};

use super::Args;
use crate::cli::ceilings::Ceilings;

/// The launches of a step that run one variant for one kind of node.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The variant.
    pub variant: String,
    /// The kernel's name.
    pub stem: &'static str,
    /// What it computes in each layer, or once: `gate_up`, `logits`.
    pub node: String,
    pub launches: usize,
    /// Seconds of all of them in a step.
    pub seconds: f64,
    /// What all of them move and compute in a step.
    pub traffic: Traffic,
}

impl Kernel {
    /// The share of its roof that it reaches: of the copy or of the multiply-adds, whichever
    /// would take longer.
    pub fn share_of_roof(&self, ceilings: Ceilings) -> f64 {
        let copy = self.traffic.bytes() / ceilings.copy;
        copy.max(self.traffic.flops / ceilings.flops) / self.seconds
    }

    /// Whether the copy is its nearer roof.
    pub fn memory_bound(&self, ceilings: Ceilings) -> bool {
        self.traffic.bytes() / ceilings.copy >= self.traffic.flops / ceilings.flops
    }
}

/// A node's name without its layer.
fn node(name: &str) -> &str {
    name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, node)| node)
}

/// The kernels of a step, the most expensive first; none if no profile was asked for. Of each
/// launch the middle of several runs counts, after one to warm up.
pub fn measure(args: &Args, mut step: impl FnMut() -> Result<Vec<Timed>>) -> Result<Vec<Kernel>> {
    let mut kernels: Vec<Kernel> = Vec::new();
    if !args.profiles() {
        return Ok(kernels);
    }
    step()?;
    let runs = (0..args.repeat.max(3)).map(|_| step()).collect::<Result<Vec<_>>>()?;
    for (i, timed) in runs[0].iter().enumerate() {
        let mut seconds: Vec<f64> = runs.iter().map(|run| run[i].seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let variant = timed.launch.dispatch.variant.to_string();
        let node = node(&timed.launch.name);
        let found = kernels.iter().position(|k| k.variant == variant && k.node == node);
        let place = found.unwrap_or_else(|| {
            kernels.push(Kernel {
                variant,
                stem: timed.launch.dispatch.variant.kernel().name,
                node: node.to_string(),
                launches: 0,
                seconds: 0.0,
                traffic: Traffic::default(),
            });
            kernels.len() - 1
        });
        let kernel = &mut kernels[place];
        kernel.launches += 1;
        kernel.seconds += seconds[seconds.len() / 2];
        kernel.traffic += timed.traffic;
    }
    // Launches that a batch leaves out take no time.
    kernels.retain(|k| k.seconds > 0.0);
    kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Ok(kernels)
}
