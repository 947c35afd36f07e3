//! A plan bound to buffers: bind groups and params are made once, then every step encodes the
//! same launches with the grid of its batch, in one compute pass and one submit.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::buffers::Buffer;
use crate::gpu::choices::Choices;
use crate::gpu::context::Context;
use crate::gpu::pace::{Expected, Submission};
use crate::gpu::pipelines::Pipeline;
use crate::graph::Batch;
use crate::kernels::{Grid, PAGE, Rows};
use crate::plan::{Kept, Plan, Resource, SlotId};

/// A buffer that holds a shard's two planes: offsets and lengths in bytes.
#[derive(Debug, Clone)]
pub struct Planes {
    /// The buffer.
    pub buffer: Buffer,
    /// Length of the quants, from 0.
    pub quant_bytes: u64,
    /// Start of the scales.
    pub scale_at: u64,
    /// Length of the scales.
    pub scale_bytes: u64,
}

/// What a plan's resources refer to.
#[derive(Clone, Copy)]
pub struct Buffers<'a> {
    /// Shards by matrix.
    pub weights: &'a [Vec<Planes>],
    /// Vectors.
    pub vectors: &'a [Buffer],
    /// The tables of each rotation.
    pub ropes: &'a [Buffer],
    /// Keys by layer.
    pub keys: &'a [Buffer],
    /// Values by layer.
    pub values: &'a [Buffer],
    /// What choosing tokens needs, for plans that do.
    pub choices: Option<&'a Choices>,
}

/// Where the ids of a step's tokens come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    /// From the batch.
    Batch,
    /// Each token is what its sequence chose last, on the device; ids in the batch are ignored.
    Chosen,
}

/// The page tables of the sequences in a batch, by sequence slot.
#[derive(Debug, Clone, Copy)]
pub struct StepTables<'a>(pub &'a [Vec<u32>]);

struct Bound {
    /// What it binds, in the order of its declaration.
    views: Vec<View>,
    group: wgpu::BindGroup,
    grid: Grid,
    rows: Rows,
}

impl Bound {
    /// Rows of the batch that the launch works on.
    fn rows_of(&self, batch: &Batch) -> u32 {
        self.rows.count(batch.tokens.len(), batch.outputs.len()) as u32
    }
}

/// Bytes of a buffer that a launch binds.
#[derive(Debug, Clone)]
pub struct View {
    pub(super) buffer: Buffer,
    pub(super) offset: u64,
    /// How many.
    pub size: u64,
}

/// A plan that is ready to run.
pub struct Executable {
    pub(super) context: Context,
    plan: Plan,
    slots: Vec<Buffer>,
    launches: Vec<Bound>,
    /// Their pipelines.
    pipelines: Vec<Arc<Pipeline>>,
    step: Buffer,
    step_group: wgpu::BindGroup,
    /// What the step buffer holds, and room to put together what it is to hold.
    step_words: Vec<u32>,
    new_words: Vec<u32>,
    sequences: usize,
    pages: usize,
    staging: Buffer,
}

/// Words of the step's header; see `shaders/parts/step.wgsl`.
const HEADER: usize = 8;

/// Steps are not made smaller than this: a launch of so few tokens takes as long as one of a single token.
const FEWEST: usize = 8;

/// Params of different launches lie this far apart, in bytes.
const PARAMS_STRIDE: usize = 256;

impl Executable {
    /// Compiles what `plan` needs and binds it. A batch may hold `sequences` sequences whose
    /// tables have `pages` entries; the cache holds as many pages for each. The buffers must
    /// be as large as the plan's weights, vectors, positions and pages ask for.
    pub fn bind(
        context: &Context,
        plan: Plan,
        buffers: Buffers<'_>,
        sequences: usize,
        pages: usize,
    ) -> Result<Self> {
        let variants: Vec<_> = plan.launches.iter().map(|l| l.dispatch.variant).collect();
        context.compile(&variants)?;
        let help = "process fewer tokens at a time";
        let slots = plan
            .slots
            .iter()
            .enumerate()
            .map(|(i, floats)| context.buffer(&format!("activations {i}"), *floats as u64 * 4, help))
            .collect::<Result<Vec<_>>>()?;
        let params = params(context, &plan)?;
        let pipelines: Vec<Arc<Pipeline>> =
            variants.iter().map(|variant| context.pipeline(variant)).collect::<Result<_>>()?;
        let launches = pipelines
            .iter()
            .enumerate()
            .map(|(i, pipeline)| bind_launch(context, &plan, i, pipeline, &slots, buffers, &params))
            .collect::<Result<Vec<_>>>()?;
        let words = HEADER + plan.options.max_tokens * 4 + plan.options.max_outputs + sequences * pages;
        let step = context.buffer("the step", words as u64 * 4, help)?;
        let step_group = context.creator().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("step"),
            layout: context.step_layout(),
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: step.raw.as_entire_binding() }],
        });
        let staging_bytes = plan.options.max_outputs * plan.output.pitch * 4;
        let staging = context.staging("the logits", staging_bytes as u64)?;
        context.check()?;
        Ok(Self {
            context: context.clone(),
            plan,
            slots,
            launches,
            pipelines,
            step,
            step_group,
            step_words: Vec::with_capacity(words),
            new_words: Vec::with_capacity(words),
            sequences,
            pages,
            staging,
        })
    }

    /// The plan that it runs.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes of its own buffers on the device: activations, the step and what logits are read
    /// through; params are small.
    pub fn bytes(&self) -> u64 {
        self.slots.iter().chain([&self.step, &self.staging]).map(Buffer::size).sum()
    }

    /// Fills every activation buffer with `word`: tests poison them with NaN.
    pub fn fill_activations(&self, word: u32) {
        for slot in &self.slots {
            let words = vec![word; slot.size() as usize / 4];
            self.context.write(slot, 0, bytemuck::cast_slice(&words));
        }
    }

    /// Writes the start of an activation buffer, for running a plan on given inputs.
    pub fn write_slot(&self, slot: SlotId, values: &[f32]) -> Result<()> {
        self.context.write(self.slot(slot, values.len())?, 0, bytemuck::cast_slice(values));
        Ok(())
    }

    /// The buffer of a slot that holds `len` values.
    fn slot(&self, slot: SlotId, len: usize) -> Result<&Buffer> {
        let found = self.slots.get(slot.0).filter(|b| b.size() as usize >= len * 4);
        found.ok_or_else(|| Error::shape("slot", format!("there is no slot {} of {len} values", slot.0)))
    }

    /// Reads the first `len` values of an activation buffer.
    pub async fn read_slot(&self, slot: SlotId, len: usize) -> Result<Vec<f32>> {
        let words = self.context.read(self.slot(slot, len)?, len).await?;
        Ok(words.into_iter().map(f32::from_bits).collect())
    }

    /// Runs one step: the logits of the batch's outputs are then ready to be read.
    ///
    /// A step is one compute pass and one submit. Only where that would keep the device busy for
    /// longer than [`ContextOptions::longest_submit`](crate::ContextOptions::longest_submit) is it cut into
    /// several.
    pub fn run(&mut self, batch: &Batch, tables: StepTables<'_>) -> Result<()> {
        self.write_step(batch, tables, Feed::Batch)?;
        let bytes = (batch.outputs.len() * self.plan.output.pitch * 4) as u64;
        let logits = &self.slots[self.plan.output.slot.0];
        let copy = |encoder: &mut wgpu::CommandEncoder| {
            if bytes > 0 {
                encoder.copy_buffer_to_buffer(&logits.raw, 0, &self.staging.raw, 0, bytes);
            }
        };
        self.submit(batch, self.plan.choosing, |_| (), copy)?;
        self.context.check()
    }

    /// Runs one step and chooses the tokens that follow its outputs, on the device: the host
    /// takes them later from `choices`, and may run the step that they feed before.
    pub fn run_choosing(
        &mut self,
        batch: &Batch,
        tables: StepTables<'_>,
        feed: Feed,
        choices: &mut Choices,
    ) -> Result<()> {
        if !self.plan.options.choose || !choices.has_room() {
            return Err(Error::shape("step", "the plan does not choose, or too many choices are waiting"));
        }
        self.write_step(batch, tables, feed)?;
        let next = &choices.next;
        let tokens = |encoder: &mut wgpu::CommandEncoder| {
            if feed == Feed::Chosen {
                let bytes = (batch.tokens.len() * 16) as u64;
                encoder.copy_buffer_to_buffer(&next.raw, 0, &self.step.raw, HEADER as u64 * 4, bytes);
            }
        };
        let rows = batch.outputs.len();
        let ids = |encoder: &mut wgpu::CommandEncoder| choices.copy(encoder, rows);
        let submission = self.submit(batch, self.launches.len(), tokens, ids)?;
        if let Some(submission) = submission {
            choices.submitted(rows, submission);
        }
        self.context.check()
    }

    /// Encodes and submits the first `launches` launches, between what `before` and `after`
    /// encode.
    fn submit(
        &self,
        batch: &Batch,
        launches: usize,
        before: impl Fn(&mut wgpu::CommandEncoder),
        after: impl Fn(&mut wgpu::CommandEncoder),
    ) -> Result<Option<Submission>> {
        let mut submission = None;
        let mut next = 0;
        while next < launches {
            let (end, expected) = self.submit_end(next, launches, batch);
            let mut encoder = self.context.device().create_command_encoder(&Default::default());
            if next == 0 {
                before(&mut encoder);
            }
            self.encode(&mut encoder.begin_compute_pass(&Default::default()), next..end, batch);
            if end == launches {
                after(&mut encoder);
            }
            let commands = encoder.finish();
            submission = Some(self.context.submit_paced(commands, &self.pipelines[next..end], expected)?);
            next = end;
        }
        Ok(submission)
    }

    /// The launch before which a submit that begins with launch `start` ends, and what it is expected to
    /// take.
    pub(super) fn submit_end(&self, start: usize, launches: usize, batch: &Batch) -> (usize, Expected) {
        let mut all = Expected { seconds: 0.0, measured: true };
        for i in start..launches {
            let next = self.expected(i, batch);
            if all.seconds + next.seconds > self.context.pace().aim() && i > start {
                return (i, all);
            }
            all.seconds += next.seconds;
            all.measured &= next.measured;
        }
        (launches, all)
    }

    /// Whether the host waits for the device within each step like `batch`, since it takes long.
    pub fn is_waited_for(&self, batch: &Batch) -> bool {
        let (end, expected) = self.submit_end(0, self.launches.len(), batch);
        end < self.launches.len() || self.context.pace().always_measures(expected)
    }

    /// What a launch is expected to take.
    fn expected(&self, launch: usize, batch: &Batch) -> Expected {
        if self.launches[launch].rows_of(batch) == 0 {
            return Expected { seconds: 0.0, measured: true };
        }
        self.context.expected(&self.pipelines[launch], self.plan.launches[launch].traffic(batch))
    }

    /// How many of the first tokens of `batch` to feed in one step, so that no launch keeps the device busy
    /// for too long.
    pub fn fitting(&self, batch: &Batch) -> usize {
        let mut part = batch.clone();
        while part.tokens.len() > FEWEST {
            let launches = 0..self.plan.choosing;
            let longest = launches.map(|i| self.expected(i, &part).seconds).fold(0.0, f64::max);
            if longest <= self.context.pace().aim() {
                break;
            }
            let half = part.tokens.len().div_ceil(2);
            part.tokens.truncate(half);
            part.outputs.retain(|output| (*output as usize) < half);
        }
        part.tokens.len()
    }

    /// Records the launches of `range`.
    pub(super) fn encode(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        range: std::ops::Range<usize>,
        batch: &Batch,
    ) {
        let limit = self.context.caps().max_groups;
        pass.set_bind_group(1, &self.step_group, &[]);
        let mut current: Option<&Arc<Pipeline>> = None;
        for (launch, pipeline) in self.launches[range.clone()].iter().zip(&self.pipelines[range]) {
            let rows = launch.rows_of(batch);
            if rows == 0 {
                continue;
            }
            if !current.is_some_and(|p| Arc::ptr_eq(p, pipeline)) {
                pass.set_pipeline(&pipeline.raw);
                current = Some(pipeline);
            }
            let [x, y, z] = launch.grid.size(rows, limit);
            pass.set_bind_group(0, &launch.group, &[]);
            pass.dispatch_workgroups(x, y, z);
        }
    }

    /// What a launch binds, by the place in its kernel's declaration.
    pub fn view(&self, launch: usize, binding: usize) -> Option<&View> {
        self.launches.get(launch)?.views.get(binding)
    }

    /// Hands over a batch, for running single launches on it.
    pub fn set_step(&mut self, batch: &Batch, tables: StepTables<'_>) -> Result<()> {
        self.write_step(batch, tables, Feed::Batch)
    }

    /// Runs some launches on the batch that was handed over.
    pub fn run_launches(&self, launches: std::ops::Range<usize>, batch: &Batch) -> Result<()> {
        let mut encoder = self.context.device().create_command_encoder(&Default::default());
        self.encode(&mut encoder.begin_compute_pass(&Default::default()), launches, batch);
        self.context.queue().submit([encoder.finish()]);
        self.context.check()
    }

    /// Reads `rows` rows of logits of the last step into `out`, `[rows, vocab]`.
    pub async fn read_logits(&self, rows: usize, out: &mut Vec<f32>) -> Result<()> {
        let Kept { pitch, width, .. } = self.plan.output;
        out.clear();
        let bytes = (rows * pitch * 4) as u64;
        if rows == 0 {
            return Ok(());
        }
        if rows > self.plan.options.max_outputs {
            let most = self.plan.options.max_outputs;
            return Err(Error::shape("logits", format!("{rows} rows asked for, the plan has {most}")));
        }
        self.context
            .map(&self.staging, bytes, |view| {
                let values: &[f32] = bytemuck::cast_slice(view);
                for row in values.chunks_exact(pitch) {
                    out.extend_from_slice(&row[..width]);
                }
            })
            .await
    }

    /// Reads the last step's logits of its first output from where they were computed.
    pub async fn read_output(&self) -> Result<Vec<f32>> {
        self.read_slot(self.plan.output.slot, self.plan.output.width).await
    }

    /// Reads what the last step, which ran `batch`, computed for a kept node, `[rows, width]`.
    pub async fn read_kept(&self, name: &str, batch: &Batch) -> Result<Vec<f32>> {
        let kept = self
            .plan
            .kept
            .iter()
            .find(|k| k.name == name)
            .ok_or_else(|| Error::option("capture", format!("'{name}' was not kept")))?;
        let rows = kept.rows.count(batch.tokens.len(), batch.outputs.len());
        let words = self.context.read(self.slot(kept.slot, rows * kept.pitch)?, rows * kept.pitch).await?;
        let values: &[f32] = bytemuck::cast_slice(&words);
        let mut out = Vec::with_capacity(rows * kept.width);
        for row in values.chunks_exact(kept.pitch) {
            for run in row.chunks(kept.step).take(kept.width / kept.run) {
                out.extend_from_slice(&run[..kept.run]);
            }
        }
        Ok(out)
    }

    /// Writes the step, if it is not what the buffer holds already: where the tokens come from
    /// the device it only changes with a sequence's pages.
    pub(super) fn write_step(&mut self, batch: &Batch, tables: StepTables<'_>, feed: Feed) -> Result<()> {
        let (tokens, outputs) = (batch.tokens.len(), batch.outputs.len());
        let options = &self.plan.options;
        if tokens == 0 || tokens > options.max_tokens || outputs > options.max_outputs {
            return Err(Error::shape(
                "step",
                format!(
                    "{tokens} tokens with {outputs} outputs, expected 1 to {} with at most {}",
                    options.max_tokens, options.max_outputs
                ),
            ));
        }
        let (count, pages) = (tables.0.len(), self.pages);
        let entry = |page: &u32| (*page as usize) < self.sequences * pages;
        if count > self.sequences || tables.0.iter().any(|t| t.len() != pages || !t.iter().all(entry)) {
            let message = format!(
                "expected up to {} page tables of {pages} entries below {}",
                self.sequences,
                self.sequences * pages
            );
            return Err(Error::shape("step", message));
        }
        batch.check(self.plan.vocab, pages * PAGE, count)?;
        let outputs_at = HEADER + tokens * 4;
        let tables_at = outputs_at + outputs;
        let words = &mut self.new_words;
        words.clear();
        let header = [tokens, outputs, HEADER, outputs_at, tables_at, pages, 0, 0];
        words.extend(header.map(|w| w as u32));
        words.extend(batch.tokens.iter().flat_map(|t| [t.id, t.position, t.sequence, 0]));
        words.extend_from_slice(&batch.outputs);
        words.extend(tables.0.iter().flatten());
        let same = |range: std::ops::Range<usize>| words.get(range.clone()) == self.step_words.get(range);
        let rest = same(0..HEADER) && same(outputs_at..words.len());
        if feed == Feed::Batch || !rest || words.len() != self.step_words.len() {
            self.context.write(&self.step, 0, bytemuck::cast_slice(words));
            std::mem::swap(&mut self.new_words, &mut self.step_words);
        }
        Ok(())
    }
}

/// All launches' params in one buffer.
fn params(context: &Context, plan: &Plan) -> Result<Buffer> {
    let mut bytes = vec![0u8; plan.launches.len() * PARAMS_STRIDE];
    for (launch, slot) in plan.launches.iter().zip(bytes.chunks_exact_mut(PARAMS_STRIDE)) {
        let words: &[u8] = bytemuck::cast_slice(&launch.dispatch.params);
        let place = slot.get_mut(..words.len());
        let place = place.ok_or_else(|| {
            Error::shape(&launch.name, format!("{} bytes of params, at most {PARAMS_STRIDE}", words.len()))
        })?;
        place.copy_from_slice(words);
    }
    let buffer = context.buffer("the params", bytes.len() as u64, "")?;
    context.write(&buffer, 0, &bytes);
    Ok(buffer)
}

fn bind_launch(
    context: &Context,
    plan: &Plan,
    index: usize,
    pipeline: &Pipeline,
    slots: &[Buffer],
    buffers: Buffers<'_>,
    params: &Buffer,
) -> Result<Bound> {
    let launch = &plan.launches[index];
    let dispatch = &launch.dispatch;
    let missing = |what: Resource| Error::shape(&launch.name, format!("no buffer for {what}"));
    let mut views = Vec::with_capacity(launch.bindings.len());
    let declared = dispatch.variant.kernel().bindings;
    if declared.len() != launch.bindings.len() {
        let message = format!("{} bindings for {} declared ones", launch.bindings.len(), declared.len());
        return Err(Error::shape(&launch.name, message));
    }
    for (&resource, declared) in launch.bindings.iter().zip(declared) {
        let (buffer, offset, mut size) =
            resolve(resource, slots, buffers).ok_or_else(|| missing(resource))?;
        if dispatch.variant.access(declared) == crate::kernels::Access::Uniform {
            // As long as the shader's array, not as the buffer, which may exceed a binding.
            size = dispatch.variant.number("X4").map(|n| u64::from(n) * 16);
        }
        let size = size.unwrap_or(buffer.size().saturating_sub(offset));
        views.push(View { buffer: buffer.clone(), offset, size });
    }
    let own = View {
        buffer: params.clone(),
        offset: (index * PARAMS_STRIDE) as u64,
        size: (dispatch.params.len() as u64 * 4).next_multiple_of(16),
    };
    let entry = |(i, view)| wgpu::BindGroupEntry { binding: i as u32, resource: bound(view) };
    let entries: Vec<_> = views.iter().chain([&own]).enumerate().map(entry).collect();
    let group = context.creator().create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(&launch.name),
        layout: &pipeline.layout,
        entries: &entries,
    });
    Ok(Bound { views, group, grid: dispatch.grid, rows: dispatch.rows })
}

fn bound(view: &View) -> wgpu::BindingResource<'_> {
    wgpu::BindingResource::Buffer(wgpu::BufferBinding {
        buffer: &view.buffer.raw,
        offset: view.offset,
        size: std::num::NonZeroU64::new(view.size),
    })
}

/// Buffer, offset and length of a resource; the whole buffer where there is no length.
fn resolve<'a>(
    resource: Resource,
    slots: &'a [Buffer],
    buffers: Buffers<'a>,
) -> Option<(&'a Buffer, u64, Option<u64>)> {
    let whole = |b: &'a Buffer| Some((b, 0, None));
    match resource {
        Resource::Slot(slot) => whole(slots.get(slot.0)?),
        Resource::Quants { weight, shard } => {
            let planes = buffers.weights.get(weight.0)?.get(shard)?;
            Some((&planes.buffer, 0, Some(planes.quant_bytes)))
        }
        Resource::Scales { weight, shard } => {
            let planes = buffers.weights.get(weight.0)?.get(shard)?;
            Some((&planes.buffer, planes.scale_at, Some(planes.scale_bytes)))
        }
        Resource::Vector(vector) => whole(buffers.vectors.get(vector.0)?),
        Resource::Rope(rope) => whole(buffers.ropes.get(rope)?),
        Resource::Keys(layer) => whole(buffers.keys.get(layer)?),
        Resource::Values(layer) => whole(buffers.values.get(layer)?),
        Resource::Choices => whole(&buffers.choices?.records),
        Resource::Counts => whole(&buffers.choices?.counts),
        Resource::Next => whole(&buffers.choices?.next),
    }
}
