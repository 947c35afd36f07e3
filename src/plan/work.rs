//! What a launch has to do at the least: bytes that it must move and operations that its
//! formula has, whatever the kernel. Speed is stated as a share of what that would allow.

use std::ops::AddAssign;

use crate::dtype::{KvFormat, WeightFormat};
use crate::graph::{Batch, Graph, Node, Op, Out};
use crate::kernels::Rows;
use crate::plan::{Launch, Plan};
use crate::quant;
use crate::shape::stored_head_dim;

/// The work of a launch apart from its weights, as it grows with the batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes read and written for a row of the batch.
    pub row_bytes: usize,
    /// f32 operations for a row; a multiply-add is two.
    pub row_flops: usize,
    /// Bytes of the cache for a position that a sequence has.
    pub position_bytes: usize,
    /// f32 operations for a position that a token sees.
    pub position_flops: usize,
    /// The most positions that a token sees, if there is a limit.
    pub window: Option<usize>,
    /// Experts that a row chooses, and all of them, whose weights these are.
    pub experts: Option<(usize, usize)>,
}

/// What a launch, or a step, moves and computes for one batch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Traffic {
    /// Bytes of weights, each once.
    pub weights: f64,
    /// Bytes of cached keys and values that are read, each once.
    pub cache: f64,
    /// Bytes of activations read and written, which mostly stay in an adapter's caches.
    pub activations: f64,
    /// f32 operations.
    pub flops: f64,
}

impl Traffic {
    /// All bytes.
    pub fn bytes(&self) -> f64 {
        self.weights + self.cache + self.activations
    }

    /// The same `factor` times.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self {
            weights: self.weights * factor,
            cache: self.cache * factor,
            activations: self.activations * factor,
            flops: self.flops * factor,
        }
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.weights += other.weights;
        self.cache += other.cache;
        self.activations += other.activations;
        self.flops += other.flops;
    }
}

impl Launch {
    /// Bytes of weights that it reads for `tokens` tokens: of experts, those that are chosen if all tokens
    /// choose others.
    pub fn weight_bytes_of(&self, tokens: usize) -> usize {
        match self.work.experts {
            Some((chosen, all)) if tokens * chosen < all => self.weight_bytes / all * tokens * chosen,
            _ => self.weight_bytes,
        }
    }

    /// What it moves and computes for `batch`.
    pub fn traffic(&self, batch: &Batch) -> Traffic {
        let rows = match self.dispatch.rows {
            Rows::Tokens | Rows::Chosen(_) => batch.tokens.len(),
            Rows::Outputs => batch.outputs.len(),
        };
        if rows == 0 {
            return Traffic::default();
        }
        let Work { row_bytes, row_flops, position_bytes, position_flops, window, .. } = self.work;
        let mut traffic = Traffic {
            weights: self.weight_bytes_of(rows) as f64,
            activations: (rows * row_bytes) as f64,
            flops: (rows * row_flops) as f64,
            cache: 0.0,
        };
        if position_bytes > 0 {
            let most = window.unwrap_or(usize::MAX);
            let seen: usize = batch.tokens.iter().map(|t| (t.position as usize + 1).min(most)).sum();
            // All that any token of the batch sees.
            let cached = batch.positions().min(most.saturating_add(batch.tokens.len() - 1));
            traffic.cache = (cached * position_bytes) as f64;
            traffic.flops += (seen * position_flops) as f64;
        }
        traffic
    }
}

impl Plan {
    /// What a step moves and computes for `batch`.
    pub fn traffic(&self, batch: &Batch) -> Traffic {
        let mut all = Traffic::default();
        for launch in &self.launches {
            all += launch.traffic(batch);
        }
        all
    }
}

/// The work of a launch that computes `node`, or of one that computes `rows` of the rows of
/// its matrix, which is stored in `format`.
pub(super) fn of(graph: &Graph, node: &Node, kv: KvFormat, matrix: Option<(usize, WeightFormat)>) -> Work {
    const F32: usize = 4;
    let rows = matrix.map_or(0, |(rows, _)| rows);
    let read: usize = node.inputs.iter().map(|i| graph.nodes[i.0].width).sum();
    let moved = (read + node.width) * F32;
    let plain = |row_bytes, row_flops| Work { row_bytes, row_flops, ..Work::default() };
    match node.op {
        Op::Embed { table, .. } => {
            let spec = &graph.weights[table.0];
            let row = matrix.and_then(|(_, format)| quant::row_bytes(format, spec.cols)).unwrap_or(0);
            // A token's row lies in one of the shards.
            plain((row + node.width * F32) * rows / spec.rows.max(1), 0)
        }
        Op::RmsNorm { .. } | Op::LayerNorm { .. } | Op::HeadNorm { .. } => plain(moved, 4 * node.width),
        Op::Linear { weight, .. } | Op::LinearSplit { weight, .. } => {
            plain(moved, 2 * rows * graph.weights[weight.0].cols)
        }
        Op::FusedLinear { weight, norm, out, .. } => {
            let spec = &graph.weights[weight.0];
            let around = match out {
                Out::Store => 0,
                Out::Add => rows,
                Out::Glu(_) => 5 * rows / 2,
            };
            let norm = if norm.is_some() { 4 * spec.cols } else { 0 };
            plain(moved, 2 * rows * spec.cols + around + norm)
        }
        Op::RopeKv { heads, rope, .. } => {
            let cached = 2 * heads.kv_heads * kv.head_bytes(stored_head_dim(heads.head_dim));
            // A pair turns by two products and a sum for each of its values.
            plain(moved + cached, 3 * (heads.heads + heads.kv_heads) * graph.rotated(rope))
        }
        Op::Attention { heads, scores, .. } | Op::AttentionSplit { heads, scores, .. } => Work {
            row_bytes: moved,
            row_flops: 0,
            position_bytes: 2 * heads.kv_heads * kv.head_bytes(stored_head_dim(heads.head_dim)),
            // A product with the key and one with the value.
            position_flops: 4 * heads.heads * heads.head_dim,
            window: scores.window,
            ..Work::default()
        },
        Op::Route { .. } => plain(moved, 2 * read),
        Op::Combine { .. } => plain(moved, 2 * graph.nodes[node.inputs[0].0].width),
        Op::ExpertLinear { weight, out, .. } => {
            let spec = &graph.weights[weight.0];
            let around = if let Out::Glu(_) = out { 5 * rows / 2 } else { 0 };
            Work {
                row_bytes: moved,
                row_flops: node.pieces * (2 * rows * spec.cols + around),
                experts: Some((node.pieces, spec.matrices)),
                ..Work::default()
            }
        }
        Op::AttentionMerge { .. } => plain(moved, 2 * read),
        Op::LinearMerge { .. } => plain(moved, read),
        // An exponential counts as one.
        Op::Glu(_) | Op::Activate(_) | Op::SoftCap { .. } => plain(moved, 5 * node.width),
        Op::Add { .. } => plain(moved, node.width),
        Op::Permute { .. } => plain(moved, 0),
    }
}
