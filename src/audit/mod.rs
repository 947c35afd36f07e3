//! Compares what launches computed on the device with what the CPU makes of the same inputs: for each
//! variant of a kernel before a session relies on it, and for each launch of a run that is to be checked.
//! Weights, inputs and the cache are read back as the device holds them; results are compared in samples,
//! each with the error that its own sum may have.

mod cached;
mod expected;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::error::{Error, Result};
use crate::gpu::{Context, Executable, StepTables, View};
use crate::graph::{Batch, Op};
use crate::kernels::sample::Choice;
use crate::kernels::{PAGE, Variant};
use crate::plan::{Launch, Plan, Resource, WeightLayout, pitch};
use crate::shape::Rows;

/// How much is compared of each result.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Rows of the batch.
    pub rows: usize,
    /// Runs of neighbouring rows of a matrix, or heads.
    pub runs: usize,
}

impl Effort {
    /// For the start of a session.
    pub const TRIAL: Self = Self { rows: 4, runs: 2 };
    /// For the launches of a run.
    pub const CHECK: Self = Self { rows: 8, runs: 6 };
}

/// What was compared of a kernel's results.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Compared {
    /// Variants, by name.
    pub variants: BTreeSet<String>,
    /// Results of operations.
    pub results: usize,
    /// Values of these.
    pub values: usize,
    /// The largest error, as a share of what was allowed.
    pub worst: f64,
}

/// What was compared, by kernel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Findings(pub BTreeMap<&'static str, Compared>);

impl Findings {
    /// Adds what was found elsewhere.
    pub fn add(&mut self, other: Self) {
        for (kernel, more) in other.0 {
            let all = self.0.entry(kernel).or_default();
            all.variants.extend(more.variants);
            all.results += more.results;
            all.values += more.values;
            all.worst = all.worst.max(more.worst);
        }
    }

    /// Adds a result that some variants computed together.
    fn note(&mut self, variants: &[Variant], values: usize, worst: f64) {
        if values == 0 {
            return;
        }
        for variant in variants {
            let all = self.0.entry(variant.kernel().name).or_default();
            all.variants.insert(variant.to_string());
            all.results += 1;
            all.values += values;
            all.worst = all.worst.max(worst);
        }
    }

    /// Values that were compared, and the kernel whose error was the largest share of what was allowed, with it.
    pub fn summary(&self) -> (usize, Option<(&'static str, f64)>) {
        let worst = self.0.iter().max_by(|a, b| a.1.worst.total_cmp(&b.1.worst));
        (self.0.values().map(|c| c.values).sum(), worst.map(|(kernel, c)| (*kernel, c.worst)))
    }
}

/// Rows of a result, as they lie in its buffer.
struct Stored {
    values: Vec<f32>,
    pitch: usize,
}

impl Stored {
    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.pitch..][..self.pitch]
    }
}

/// One step of a plan, compared launch by launch.
pub struct Audit<'a> {
    context: Context,
    run: &'a mut Executable,
    layouts: &'a [WeightLayout],
    batch: Batch,
    tables: StepTables<'a>,
    effort: Effort,
    random: ChaCha8Rng,
    /// Inputs of nodes whose results another node puts together.
    split: HashMap<usize, Vec<Stored>>,
    findings: Findings,
    /// Whether results are no numbers before they are computed.
    poison: bool,
}

impl<'a> Audit<'a> {
    /// Of the step of `batch`; the plan's matrices lie as `layouts` say.
    pub fn new(
        context: &Context,
        run: &'a mut Executable,
        layouts: &'a [WeightLayout],
        batch: &Batch,
        tables: StepTables<'a>,
        effort: Effort,
    ) -> Self {
        let (context, batch, findings) = (context.clone(), batch.clone(), Findings::default());
        let random = ChaCha8Rng::seed_from_u64(0);
        Self {
            context,
            run,
            layouts,
            batch,
            tables,
            effort,
            random,
            split: HashMap::new(),
            findings,
            poison: false,
        }
    }

    /// Runs the step and compares the results of all of its launches. The first that differs by more than
    /// its sums may is an [`Error::WrongResult`].
    pub async fn step(mut self) -> Result<Findings> {
        self.run.set_step(&self.batch, self.tables)?;
        for (node, launches) in nodes(self.run.plan()) {
            self.node(node, launches).await?;
        }
        Ok(self.findings)
    }

    /// Tries the variants of the plan that are not among `tried` on random inputs, and adds them. Activations
    /// and the first pages of the cache are overwritten.
    pub async fn trial(mut self, tried: &mut HashSet<Variant>) -> Result<Findings> {
        self.poison = true;
        let all = nodes(self.run.plan());
        for (at, (node, launches)) in all.iter().enumerate() {
            let split = self.is_split(*node);
            // What is split shows only when it is put together.
            let end =
                if split { all.get(at + 1).map_or(launches.end, |next| next.1.end) } else { launches.end };
            let variants: Vec<Variant> =
                self.run.plan().launches[launches.start..end].iter().map(|l| l.dispatch.variant).collect();
            if variants.iter().all(|variant| tried.contains(variant)) {
                continue;
            }
            self.fill_cache(*node, &all)?;
            self.run.set_step(&self.batch, self.tables)?;
            self.prepare(*node, &all)?;
            self.node(*node, launches.clone()).await?;
            if let Some((next, launches)) = all.get(at + 1).filter(|_| split) {
                self.node(*next, launches.clone()).await?;
            }
            tried.extend(variants);
        }
        let plan = self.run.plan();
        let choosing: Vec<_> = plan.launches[plan.choosing..].iter().map(|l| l.dispatch.variant).collect();
        if choosing.iter().any(|variant| !tried.contains(variant)) {
            self.choice().await?;
            tried.extend(choosing);
        }
        Ok(self.findings)
    }

    /// Lets the device choose from random logits, in two ways that both mean the largest.
    async fn choice(&mut self) -> Result<()> {
        let plan = self.run.plan();
        let (launches, width) = (plan.choosing..plan.launches.len(), plan.output.width);
        let last = plan.graph.nodes.len() - 1;
        self.run.set_step(&self.batch, self.tables)?;
        self.fill(last)?;
        // No other is as large.
        let mut logits = self.result(last).await?.values;
        let expected = self.random.next_u32() % width as u32;
        logits[expected as usize] = 2.0;
        self.context.write_view(self.output(last)?, bytemuck::cast_slice(&logits));
        for (flags, top_k) in [(0, 0), (Choice::CHANCE, 1)] {
            let choice = Choice { flags, top_k, ..Choice::GREEDY };
            self.context.write_view(self.view(Resource::Choices)?, bytemuck::bytes_of(&choice));
            self.run.run_launches(launches.clone(), &self.batch)?;
            let next = self.context.read_views(&[(self.view(Resource::Next)?, 0, 4)]).await?;
            let found = u32::from_le_bytes([next[0][0], next[0][1], next[0][2], next[0][3]]);
            compare_choice(&self.context, self.run.plan(), found, expected, &mut self.findings)?;
        }
        Ok(())
    }

    fn is_split(&self, node: usize) -> bool {
        matches!(self.run.plan().graph.nodes[node].op, Op::AttentionSplit { .. } | Op::LinearSplit { .. })
    }

    /// Runs a node's launches, and compares its result unless another node puts it together.
    async fn node(&mut self, node: usize, launches: Range<usize>) -> Result<()> {
        let inputs = self.inputs(node).await?;
        let in_place = self.run.plan().graph.nodes[node].op.adds_in_place();
        let before = if in_place { Some(self.result(node).await?) } else { None };
        if self.poison && !in_place {
            let (rows, pitch) = self.extent(node);
            let none = vec![f32::NAN; rows * pitch];
            self.context.write_view(self.output(node)?, bytemuck::cast_slice(&none));
        }
        self.run.run_launches(launches.clone(), &self.batch)?;
        if self.is_split(node) {
            self.split.insert(node, inputs);
            return Ok(());
        }
        let found = self.result(node).await?;
        self.compare(node, launches, &inputs, before.as_ref(), &found).await
    }

    /// The inputs of a node; of one that puts together what another has split, the other's.
    async fn inputs(&mut self, node: usize) -> Result<Vec<Stored>> {
        let inputs = self.run.plan().graph.nodes[node].inputs.clone();
        if let Some(held) = inputs.first().and_then(|first| self.split.remove(&first.0)) {
            return Ok(held);
        }
        let mut stored = Vec::new();
        for input in inputs {
            stored.push(self.result(input.0).await?);
        }
        Ok(stored)
    }

    /// What lies where a node's result belongs.
    async fn result(&self, node: usize) -> Result<Stored> {
        let (rows, pitch) = self.extent(node);
        let view = self.output(node)?;
        let bytes = self.context.read_views(&[(view, 0, (rows * pitch * 4) as u64)]).await?;
        Ok(Stored { values: bytemuck::pod_collect_to_vec(&bytes[0]), pitch })
    }

    /// Rows of a node's result for the batch, and values from one to the next.
    fn extent(&self, node: usize) -> (usize, usize) {
        let node = &self.run.plan().graph.nodes[node];
        let rows = match node.rows {
            Rows::Outputs => self.batch.outputs.len(),
            _ => self.batch.tokens.len(),
        };
        (rows, pitch(node))
    }

    /// Where a node's result belongs.
    fn output(&self, node: usize) -> Result<&View> {
        let plan = self.run.plan();
        let name = &plan.graph.nodes[node].name;
        // Beside a route lies what groups tokens by it.
        let launch = plan.launches.iter().position(|l| l.name == *name && output_of(l).is_some());
        let view = launch.and_then(|i| self.run.view(i, output_of(&plan.launches[i])?));
        view.ok_or_else(|| Error::shape(name, "no launch computes it"))
    }

    /// The bytes that launches know as `resource`.
    fn view(&self, resource: Resource) -> Result<&View> {
        let launches = self.run.plan().launches.iter().enumerate();
        let mut places =
            launches.filter_map(|(i, l)| Some((i, l.bindings.iter().position(|b| *b == resource)?)));
        let view = places.next().and_then(|(launch, binding)| self.run.view(launch, binding));
        view.ok_or_else(|| Error::shape(resource.to_string(), "no launch binds it"))
    }

    /// Fills the inputs of a node with random values, except for what it finds its way by.
    fn prepare(&mut self, node: usize, all: &[(usize, Range<usize>)]) -> Result<()> {
        let in_place = self.run.plan().graph.nodes[node].op.adds_in_place();
        for input in self.run.plan().graph.nodes[node].inputs.clone() {
            match self.run.plan().graph.nodes[input.0].op {
                // Experts are numbers that a route writes, and what is attended to is in the cache.
                Op::Route { .. } | Op::RopeKv { .. } => {
                    self.prepare(input.0, all)?;
                    self.launches(input.0, all)?;
                }
                _ => self.fill(input.0)?,
            }
        }
        if in_place {
            self.fill(node)?;
        }
        Ok(())
    }

    fn launches(&self, node: usize, all: &[(usize, Range<usize>)]) -> Result<()> {
        let launches = all.iter().filter(|(n, _)| *n == node).map(|(_, launches)| launches.clone());
        launches.into_iter().try_for_each(|launches| self.run.run_launches(launches, &self.batch))
    }

    /// Random values, with the padding that a result has.
    fn fill(&mut self, node: usize) -> Result<()> {
        let (rows, pitch) = self.extent(node);
        let width = self.run.plan().graph.nodes[node].width;
        let pieces = self.run.plan().graph.nodes[node].pieces;
        let mut values = vec![0.0f32; rows * pitch];
        for piece in values.chunks_exact_mut(pitch / pieces) {
            piece[..width / pieces].iter_mut().for_each(|v| *v = unit(&mut self.random));
        }
        self.context.write_view(self.output(node)?, bytemuck::cast_slice(&values));
        Ok(())
    }

    /// Gives the layer that a node attends to random keys and values for all positions before the batch.
    fn fill_cache(&mut self, node: usize, all: &[(usize, Range<usize>)]) -> Result<()> {
        let (Op::Attention { .. } | Op::AttentionSplit { .. }) = self.run.plan().graph.nodes[node].op else {
            return Ok(());
        };
        let rope = self.run.plan().graph.nodes[node].inputs[0].0;
        let most = self.run.plan().options.max_tokens;
        let first = self.batch.tokens.first().map_or(0, |token| token.position as usize);
        for start in (0..first).step_by(most) {
            let ids = vec![0; most.min(first - start)];
            let part = Batch { outputs: Vec::new(), ..Batch::sequence(&ids, start, 0) };
            let whole = std::mem::replace(&mut self.batch, part);
            self.run.set_step(&self.batch, self.tables)?;
            self.prepare(rope, all)?;
            self.launches(rope, all)?;
            self.batch = whole;
        }
        Ok(())
    }

    /// Some of `0 .. count`: the first, the last, and others.
    fn some(&mut self, count: usize, wanted: usize) -> Vec<usize> {
        if count <= wanted {
            return (0..count).collect();
        }
        let mut picked: Vec<usize> = vec![0, count - 1];
        picked.extend((2..wanted).map(|_| self.random.next_u32() as usize % count));
        picked.truncate(wanted);
        picked.sort_unstable();
        picked.dedup();
        picked
    }
}

/// Notes that a plan's last launches chose `found`; an error if the CPU chose another token.
pub fn compare_choice(
    context: &Context,
    plan: &Plan,
    found: u32,
    expected: u32,
    findings: &mut Findings,
) -> Result<()> {
    let variants: Vec<Variant> = plan.launches[plan.choosing..].iter().map(|l| l.dispatch.variant).collect();
    if found == expected {
        findings.note(&variants, 1, 0.0);
        return Ok(());
    }
    Err(Error::WrongResult {
        launch: "choice".to_string(),
        variant: variants.iter().map(ToString::to_string).collect::<Vec<_>>().join(" + "),
        adapter: context.adapter().name.clone(),
        place: "the chosen id".to_string(),
        found: f64::from(found),
        expected: f64::from(expected),
        allowed: 0.0,
    })
}

/// The nodes of a plan's launches with these, in order.
fn nodes(plan: &Plan) -> Vec<(usize, Range<usize>)> {
    let mut all: Vec<(usize, Range<usize>)> = Vec::new();
    for (i, launch) in plan.launches[..plan.choosing].iter().enumerate() {
        let Some(node) = plan.graph.find(&launch.name) else { continue };
        match all.last_mut() {
            Some((last, launches)) if *last == node.0 => launches.end = i + 1,
            _ => all.push((node.0, i..i + 1)),
        }
    }
    all
}

/// The binding of a launch that takes the result of its node.
fn output_of(launch: &Launch) -> Option<usize> {
    let declared = launch.dispatch.variant.kernel().bindings;
    declared
        .iter()
        .position(|binding| binding.name == "y" || binding.name == "q" && declared[0].name == "qkv")
}

/// A value between -1 and 1.
fn unit(random: &mut ChaCha8Rng) -> f32 {
    random.next_u32() as f32 / (1u32 << 31) as f32 - 1.0
}

/// Positions that come before those of a trial, if there is room: they begin a second page.
pub const TRIAL_START: usize = PAGE + 6;
