//! What the benches run: a few launches over random weights, at the shapes of real models.

use std::fmt;
use std::ops::Range;
use std::time::Instant;

use wgllama::caps::AdapterKind;
use wgllama::gpu::{Buffers, Executable, StepTables};
use wgllama::graph::{Batch, Graph, Heads, Part as Tensor, Rope, RowOrder, VectorSpec, WeightSpec};
use wgllama::kernels::gemm::{self, Tile};
use wgllama::kernels::gemv::{self, Gemv};
use wgllama::kernels::gemv_int8;
use wgllama::kernels::pack::Order;
use wgllama::kernels::tuning::{self, GemvShape};
use wgllama::kernels::{Dispatch, Part, probe_copy, probe_fma};
use wgllama::model::{KvCache, Weights};
use wgllama::nonlinearity::Nonlinearity;
use wgllama::plan::{Launch, Plan, PlanOptions, Resource, SlotId, Traffic, lower};
use wgllama::shape::Rows;
use wgllama::{Activations, Context, KvFormat, Result, WeightFormat, host};

/// All formats.
pub const FORMATS: [WeightFormat; 19] = WeightFormat::ALL;

/// Who may share a row of a mat-vec.
pub const LANES: [Part; 3] = [Part::LaneThread, Part::LaneSubgroup, Part::LaneWorkgroup];

/// A matrix of a model.
#[derive(Clone, Copy)]
pub struct Shape {
    pub rows: usize,
    pub cols: usize,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.rows, self.cols)
    }
}

const fn shape(rows: usize, cols: usize) -> Shape {
    Shape { rows, cols }
}

/// Gate and up, and down, of SmolLM2 135M and of Llama 2 7B; q, k and v, and the logits, of
/// Llama 3 8B.
pub const SHAPES: [Shape; 6] = [
    shape(3072, 576),
    shape(576, 1536),
    shape(22016, 4096),
    shape(4096, 11008),
    shape(6144, 4096),
    shape(128_256, 4096),
];

/// A division of a matrix product that is not the one that `tuning` chooses.
#[derive(Clone, Copy)]
pub enum Split {
    Gemv(GemvShape),
    Gemm(Tile),
    /// Activations of bytes, where [`multiplies_bytes`].
    Int8,
}

/// Whether the adapter has a mat-vec of bytes for a format.
pub fn multiplies_bytes(context: &Context, format: WeightFormat) -> bool {
    let variants = (gemv_int8::GEMV_INT8.variants)(context.caps());
    variants.iter().any(|v| v.parts().any(|p| p == Part::Weight(format)))
}

/// `lane/rows/columns/invocations`, and `/uniform`.
pub fn text(shape: GemvShape) -> String {
    let lane = match shape.lane {
        Part::LaneThread => "thread",
        Part::LaneSubgroup => "subgroup",
        _ => "workgroup",
    };
    let uniform = if shape.uniform { "/uniform" } else { "" };
    format!("{lane}/{}/{}/{}{uniform}", shape.rows, shape.cols, shape.wg)
}

/// The reverse of [`text`].
pub fn parse(text: &str) -> std::result::Result<GemvShape, String> {
    let wrong = || format!("expected lane/rows/columns/invocations[/uniform], found '{text}'");
    let mut words = text.split('/');
    let lane = match words.next() {
        Some("thread") => Part::LaneThread,
        Some("subgroup") => Part::LaneSubgroup,
        Some("workgroup") => Part::LaneWorkgroup,
        _ => return Err(wrong()),
    };
    let mut number = || words.next().and_then(|w| w.parse().ok()).ok_or_else(wrong);
    let (rows, cols, wg) = (number()?, number()?, number()?);
    let uniform = match words.next() {
        None => false,
        Some("uniform") => true,
        Some(_) => return Err(wrong()),
    };
    Ok(GemvShape { lane, rows, cols, wg, uniform })
}

/// Mean and standard deviation.
pub fn spread(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (squares / (values.len() as f64 - 1.0).max(1.0)).sqrt())
}

/// Launches that are timed together.
pub struct Case {
    run: Executable,
    batch: Batch,
    tables: Vec<Vec<u32>>,
    /// Those that are timed, of the launches of the plan.
    timed: Range<usize>,
    /// The time is that of so many equal ones.
    copies: usize,
    /// What one of them moves and computes.
    pub traffic: Traffic,
}

impl Case {
    /// Seconds of one run: the device's if it has timestamps, else of a whole step.
    pub fn seconds(&mut self, context: &Context) -> Result<f64> {
        let tables = StepTables(&self.tables);
        if context.caps().timestamps {
            let seconds = pollster::block_on(self.run.time(&self.batch, tables, self.timed.clone()))?;
            return Ok(seconds / self.copies as f64);
        }
        let start = Instant::now();
        self.run.run(&self.batch, tables)?;
        context.wait()?;
        Ok(start.elapsed().as_secs_f64() / self.copies as f64)
    }

    /// `launches` of a plan over a graph; `change` may replace some.
    fn new(
        context: &Context,
        graph: &Graph,
        (format, kv): (WeightFormat, KvFormat),
        batch: Batch,
        timed: impl Fn(&Launch) -> bool,
        change: impl Fn(&mut Plan, &Weights),
    ) -> Result<Self> {
        let length = batch.positions();
        let weights = Weights::random(context, graph, format)?;
        let mut options = PlanOptions::new(batch.tokens.len(), 1, kv);
        options.context = length;
        let mut plan = lower(graph, &weights.layouts, context.caps(), &options)?;
        change(&mut plan, &weights);
        let mut cache = KvCache::new(context, graph, kv, 1, length, usize::MAX)?;
        cache.reserve(0, length)?;
        let rotations = graph.ropes[0].rotations(length).tables(length);
        let rope = context.buffer("rotations", rotations.len() as u64 * 8, "")?;
        context.write(&rope, 0, bytemuck::cast_slice(&rotations));
        // They follow one another.
        let first = plan.launches.iter().position(&timed).unwrap_or_default();
        let count = plan.launches.iter().filter(|l| timed(l)).count();
        let timed = first..first + count;
        let mut traffic = Traffic::default();
        plan.launches[timed.clone()].iter().for_each(|l| traffic += l.traffic(&batch));
        let buffers = Buffers {
            weights: &weights.matrices,
            vectors: &weights.vectors,
            ropes: &[rope],
            keys: &cache.keys,
            values: &cache.values,
            choices: None,
        };
        let run = Executable::bind(context, plan, buffers, 1, cache.pages)?;
        Ok(Self { run, batch, tables: cache.tables().to_vec(), timed, copies: 1, traffic })
    }

    /// A matrix times `tokens` vectors. Equal matrices take turns, enough that none stays in a cache, as in a model; but no
    /// more than 32, which is less than some caches for the smallest.
    pub fn product(
        context: &Context,
        shape: Shape,
        format: WeightFormat,
        tokens: usize,
        split: Option<Split>,
    ) -> Result<Self> {
        const BEYOND_CACHES: usize = 96 << 20;
        let bytes = shape.rows * shape.cols / format.block_len() * format.block_bytes();
        let copies = BEYOND_CACHES.div_ceil(bytes).clamp(1, 32);
        let mut graph = Graph::new(Rope::plain(1e4, 2));
        let table = graph.weight(matrix("table", 2, shape.cols))?;
        let x = graph.embed("x", table);
        for _ in 0..copies {
            let w = graph.weight(matrix("w", shape.rows, shape.cols))?;
            graph.linear("y", x, w, None)?;
        }
        let batch = first(tokens);
        let change = |plan: &mut Plan, weights: &Weights| {
            let Some(split) = split else { return };
            let shards = weights.layouts.iter().skip(1).flat_map(|l| &l.shards);
            let mut floats = 0;
            for (launch, shard) in plan.launches.iter_mut().filter(|l| l.name == "y").zip(shards) {
                let problem = Gemv {
                    format,
                    // Random weights are as good in one order as in another.
                    order: Order::Rows,
                    inputs: shape.cols,
                    outputs: shape.rows,
                    rows: shard.computed,
                    first: shard.first,
                    stride: shard.stride,
                    out: gemv::Out::Store,
                    norm: None,
                    activations: Activations::Int8,
                    bytes: tuning::bytes(context.caps()),
                    bias: false,
                    experts: None,
                    batch: Rows::Tokens,
                    max_batch: tokens,
                };
                launch.dispatch = match split {
                    Split::Gemv(shape) => gemv::dispatch(&problem, shape, context.caps()),
                    Split::Gemm(tile) => gemm::dispatch(&problem, tile, 1),
                    Split::Int8 => gemv_int8::select(&problem, context.caps()).expect("bytes"),
                };
                let bindings = launch.dispatch.variant.kernel().bindings.len();
                let unused = launch.bindings[0];
                launch.bindings.resize(bindings, unused);
                floats = launch.dispatch.variant.number("X4").map_or(0, |n| n as usize * 4);
            }
            plan.slots.iter_mut().for_each(|slot| *slot = (*slot).max(floats));
        };
        let formats = (format, KvFormat::F32);
        let mut case = Self::new(context, &graph, formats, batch, |l| l.name == "y", change)?;
        case.copies = copies;
        case.traffic = case.traffic.times(1.0 / copies as f64);
        Ok(case)
    }

    /// Attention of `tokens` tokens that follow `depth` others; the launches whose names begin
    /// with `timed`: `attn`, or `q` for the rotation and the append.
    pub fn attention(
        context: &Context,
        heads: Heads,
        kv: KvFormat,
        tokens: usize,
        depth: usize,
        timed: &str,
    ) -> Result<Self> {
        let mut graph = Graph::new(Rope::plain(1e4, heads.head_dim));
        let width = (heads.heads + 2 * heads.kv_heads) * heads.head_dim;
        let table = graph.weight(matrix("table", 2, width))?;
        let qkv = graph.embed("x", table);
        let q = graph.rope_kv("q", qkv, heads)?;
        graph.attention("attn", q, 0.1)?;
        let batch = Batch::sequence(&vec![0; tokens], depth, 0);
        let timed = |l: &Launch| l.name.starts_with(timed);
        Self::new(context, &graph, (WeightFormat::F32, kv), batch, timed, |_, _| ())
    }

    /// A norm of `tokens` rows.
    pub fn rms_norm(context: &Context, width: usize, tokens: usize) -> Result<Self> {
        let mut graph = Graph::new(Rope::plain(1e4, 2));
        let table = graph.weight(matrix("table", 2, width))?;
        let part = Tensor { tensor: "gain".to_string(), rows: width, order: RowOrder::Stored, within: None };
        let gain = graph.vector(VectorSpec {
            name: "gain".to_string(),
            parts: vec![part],
            interleaved: false,
            shift: 0.0,
            scale: 1.0,
        });
        let x = graph.embed("x", table);
        graph.rms_norm("y", x, gain, 1e-5, Rows::Tokens)?;
        let formats = (WeightFormat::F32, KvFormat::F32);
        Self::new(context, &graph, formats, first(tokens), |l| l.name == "y", |_, _| ())
    }

    /// SwiGLU of `tokens` rows of `width` results.
    pub fn swiglu(context: &Context, width: usize, tokens: usize) -> Result<Self> {
        let mut graph = Graph::new(Rope::plain(1e4, 2));
        let table = graph.weight(matrix("table", 2, 2 * width))?;
        let x = graph.embed("x", table);
        graph.glu("y", x, Nonlinearity::Silu)?;
        let formats = (WeightFormat::F32, KvFormat::F32);
        Self::new(context, &graph, formats, first(tokens), |l| l.name == "y", |_, _| ())
    }

    /// A copy of 96 MiB.
    pub fn copy(context: &Context) -> Result<Self> {
        const FLOATS: usize = 24 << 20;
        let traffic = Traffic { activations: FLOATS as f64 * 8.0, ..Traffic::default() };
        Self::probe(context, FLOATS, probe_copy::select(FLOATS, context.caps()), traffic)
    }

    /// Nothing but multiply-adds.
    pub fn fma(context: &Context) -> Result<Self> {
        const FLOATS: usize = 1 << 16;
        let flops = FLOATS as f64 * probe_fma::FLOPS as f64;
        let traffic = Traffic { activations: FLOATS as f64 * 4.0, flops, ..Traffic::default() };
        Self::probe(context, FLOATS, probe_fma::select(FLOATS, context.caps()), traffic)
    }

    /// Next to nothing.
    pub fn empty(context: &Context) -> Result<Self> {
        Self::probe(context, 256, probe_copy::select(256, context.caps()), Traffic::default())
    }

    fn probe(context: &Context, floats: usize, dispatch: Dispatch, traffic: Traffic) -> Result<Self> {
        let bindings = vec![Resource::Slot(SlotId(0)), Resource::Slot(SlotId(1))];
        let name = "probe".to_string();
        let launch = Launch { name, dispatch, bindings, weight_bytes: 0, work: Default::default() };
        let plan = Plan::bare(vec![launch], vec![floats; 2], 1);
        let buffers =
            Buffers { weights: &[], vectors: &[], ropes: &[], keys: &[], values: &[], choices: None };
        let run = Executable::bind(context, plan, buffers, 1, 1)?;
        let batch = Batch::sequence(&[0], 0, 0);
        Ok(Self { run, batch, tables: vec![vec![0]], timed: 0..1, copies: 1, traffic })
    }
}

fn matrix(name: &str, rows: usize, cols: usize) -> WeightSpec {
    let part = Tensor { tensor: name.to_string(), rows, order: RowOrder::Stored, within: None };
    WeightSpec { name: name.to_string(), rows, cols, parts: vec![part], interleaved: false, matrices: 1 }
}

/// `tokens` tokens from position 0 on.
fn first(tokens: usize) -> Batch {
    Batch::sequence(&vec![0; tokens], 0, 0)
}

/// What must not move between two runs, nor within one.
#[derive(Clone, Copy, Default)]
pub struct Controls {
    /// Bytes per second that a copy reads and writes, or on a software adapter that the host reads, if that is more.
    pub copy: f64,
    /// f32 operations per second.
    pub flops: f64,
    /// Seconds of a launch that does nothing.
    pub empty: f64,
}

impl Controls {
    /// The best of some runs of each.
    pub fn measure(context: &Context) -> Result<Self> {
        let best = |mut case: Case| -> Result<f64> {
            let runs = (0..8).map(|_| case.seconds(context)).collect::<Result<Vec<_>>>()?;
            Ok(runs.into_iter().fold(f64::INFINITY, f64::min))
        };
        let (copy, fma) = (Case::copy(context)?, Case::fma(context)?);
        let (bytes, flops) = (copy.traffic.bytes(), fma.traffic.flops);
        let host = if context.caps().kind == AdapterKind::Cpu { host::read_rate() } else { 0.0 };
        Ok(Self {
            copy: host.max(bytes / best(copy)?),
            flops: flops / best(fma)?,
            empty: best(Case::empty(context)?)?,
        })
    }
}

impl fmt::Display for Controls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (copy, flops, empty) = (self.copy / 1e9, self.flops / 1e9, self.empty * 1e6);
        write!(f, "copy {copy:.2} GB/s, multiply-adds {flops:.1} GFLOP/s, an empty launch {empty:.1} us")
    }
}
