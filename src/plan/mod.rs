//! A plan: the launches that run a graph on an adapter of given capabilities, as plain data.
//! It holds no handles, can be compared and printed, and is made on any machine. `gpu` binds
//! it to buffers once and encodes it every step.

mod dump;
pub mod fuse;
mod layout;
mod lower;
mod memory;
mod work;

pub use layout::{Shard, WeightLayout};
pub use lower::{lower, pitch};
pub use work::{Traffic, Work};

use crate::dtype::{Activations, KvFormat};
use crate::graph::{Graph, Rope, VectorId, WeightId};
use crate::kernels::{Dispatch, Rows};

/// What a plan is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanOptions {
    /// The most tokens in a batch.
    pub max_tokens: usize,
    /// The most tokens of a batch whose logits are wanted.
    pub max_outputs: usize,
    /// Format of the cache.
    pub kv: KvFormat,
    /// How activations meet weights.
    pub activations: Activations,
    /// Tokens that the cache holds.
    pub context: usize,
    /// Positions beyond a window that its layer's pages hold, which are then used in turn
    /// ([`ring_pages`](crate::kernels::ring_pages)); without, all layers have pages for all positions.
    pub slack: Option<usize>,
    /// Names of nodes whose results stay readable after a step.
    pub keep: Vec<String>,
    /// Whether rewrite rules are applied; without them each node is its own launch.
    pub fuse: bool,
    /// Whether the next tokens can be chosen on the device.
    pub choose: bool,
}

impl PlanOptions {
    /// For batches of up to `max_tokens` tokens with the logits of `max_outputs`, in a context
    /// of 4096.
    pub fn new(max_tokens: usize, max_outputs: usize, kv: KvFormat) -> Self {
        Self {
            max_tokens,
            max_outputs,
            kv,
            activations: Activations::default(),
            context: 4096,
            slack: None,
            keep: Vec::new(),
            fuse: true,
            choose: false,
        }
    }
}

/// A buffer of activations, by its place in [`Plan::slots`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub usize);

/// What a binding of a launch refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Activations.
    Slot(SlotId),
    /// The plane of quants of a shard.
    Quants {
        /// The matrix.
        weight: WeightId,
        /// The shard of it.
        shard: usize,
    },
    /// The plane of scales of a shard.
    Scales {
        /// The matrix.
        weight: WeightId,
        /// The shard of it.
        shard: usize,
    },
    /// A vector of weights.
    Vector(VectorId),
    /// The tables of a rotation.
    Rope(usize),
    /// The keys of a layer's cache.
    Keys(usize),
    /// The values of a layer's cache.
    Values(usize),
    /// How each sequence chooses its next token.
    Choices,
    /// How often each sequence had each token.
    Counts,
    /// The tokens that were chosen last.
    Next,
}

/// One dispatch of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// The node that it computes.
    pub name: String,
    /// Kernel, params and grid.
    pub dispatch: Dispatch,
    /// What each declared binding refers to.
    pub bindings: Vec<Resource>,
    /// Bytes of weights that it reads, or chooses from.
    pub weight_bytes: usize,
    /// What else it moves and computes, for statements of its speed.
    pub work: Work,
}

/// The result of a node that can be read after a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The node's name.
    pub name: String,
    /// Where it lies.
    pub slot: SlotId,
    /// Values of a row that count, as runs of `run` values out of every `step`.
    pub width: usize,
    /// Length of a run.
    pub run: usize,
    /// Distance of runs.
    pub step: usize,
    /// Values from one row to the next.
    pub pitch: usize,
    /// Which rows of the batch.
    pub rows: Rows,
}

/// The launches for a graph, in order, and the buffers that they share.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What it was made for.
    pub options: PlanOptions,
    /// What the launches compute: the graph as fusion left it.
    pub graph: Graph,
    /// The launches.
    pub launches: Vec<Launch>,
    /// Those from here on choose the next tokens; they only run where that is wanted.
    pub choosing: usize,
    /// Sizes of the activation buffers, in floats.
    pub slots: Vec<usize>,
    /// Token ids are below this.
    pub vocab: usize,
    /// The logits.
    pub output: Kept,
    /// The results that were to be kept.
    pub kept: Vec<Kept>,
}

impl Plan {
    /// Launches of one's own over slots of the given sizes, for kernels that are run outside of
    /// any model, on batches of up to `max_tokens` tokens of id 0. The results are read with
    /// [`Executable::read_slot`](crate::gpu::Executable::read_slot).
    pub fn bare(launches: Vec<Launch>, slots: Vec<usize>, max_tokens: usize) -> Self {
        let output = Kept {
            name: "unused".to_string(),
            slot: SlotId(0),
            width: 4,
            run: 4,
            step: 4,
            pitch: 4,
            rows: Rows::Tokens,
        };
        let options = PlanOptions::new(max_tokens, 1, KvFormat::F32);
        let choosing = launches.len();
        let graph = Graph::new(Rope::plain(1e4, 2));
        Self { options, graph, launches, choosing, slots, vocab: 1, output, kept: Vec::new() }
    }

    /// Bytes of weights that one step reads.
    pub fn weight_bytes(&self) -> usize {
        self.launches.iter().map(|l| l.weight_bytes_of(self.options.max_tokens)).sum()
    }

    /// Bytes of activation buffers.
    pub fn slot_bytes(&self) -> usize {
        self.slots.iter().map(|s| s * 4).sum()
    }
}
