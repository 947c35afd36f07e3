//! What a model computes, without a word of how: operations, their shapes, and the weights
//! that they read. Shape errors surface here. Knows no kernels and no device.

mod batch;
mod builder;
mod dump;
pub mod reference;
mod rope;

pub use batch::{Batch, Token};
pub use rope::{Rope, RopeScaling, Rotations, yarn_magnitude};

use crate::nonlinearity::Nonlinearity;
use crate::shape::Rows;

/// A node of a [`Graph`], by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub usize);

/// A matrix of a [`Graph`], by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub usize);

/// A vector of a [`Graph`], by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VectorId(pub usize);

/// A rotation of a [`Graph`], by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RopeId(pub usize);

/// The order in which a tensor's rows are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// As they are stored.
    Stored,
    /// Heads whose first `rotated` rows turn in neighbouring pairs; files that pair row i with
    /// row i + rotated / 2 are reordered at load.
    Rotary {
        /// Rows of a head.
        head_dim: usize,
        /// Rows of a head that turn.
        rotated: usize,
    },
}

/// A stored tensor, or the part that it plays in a joined one.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The tensor's name, as Hugging Face spells it.
    pub tensor: String,
    /// Its rows (the length of a vector).
    pub rows: usize,
    /// The order in which they are wanted.
    pub order: RowOrder,
    /// The first row, and how many the tensor has, where the part is not all of it.
    pub within: Option<(usize, usize)>,
}

impl Part {
    /// The part's first row in the tensor.
    pub fn first(&self) -> usize {
        self.within.map_or(0, |(first, _)| first)
    }

    /// Rows of the whole tensor.
    pub fn tensor_rows(&self) -> usize {
        self.within.map_or(self.rows, |(_, rows)| rows)
    }
}

/// A matrix `[rows, cols]`, joined from one or several stored tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightSpec {
    /// Name in plans.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// The tensors.
    pub parts: Vec<Part>,
    /// Whether the parts' rows alternate (0 of the first, 0 of the second, ...) instead of
    /// following one another.
    pub interleaved: bool,
    /// Matrices of the same shape that `rows` and `parts` are made up of, one after the other: one,
    /// or one for each expert.
    pub matrices: usize,
}

impl WeightSpec {
    /// Rows of one matrix.
    pub fn matrix_rows(&self) -> usize {
        self.rows / self.matrices
    }

    /// Parts of one matrix.
    pub fn matrix_parts(&self) -> usize {
        self.parts.len() / self.matrices
    }
}

/// A vector, joined from one or several stored tensors one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorSpec {
    /// Name in plans.
    pub name: String,
    /// The tensors.
    pub parts: Vec<Part>,
    /// Whether the parts' values alternate.
    pub interleaved: bool,
    /// Added to the stored values.
    pub shift: f32,
    /// Factor of the sums.
    pub scale: f32,
}

impl VectorSpec {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|p| p.rows).sum()
    }

    /// True for a vector with no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values in a head.
    pub head_dim: usize,
}

/// What of q, and of k, is normalised together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spans {
    /// Each head.
    Heads,
    /// All heads.
    All,
}

/// How queries and keys are normalised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadNorm {
    /// The factors of q: of a head, or of all of q.
    pub q: VectorId,
    /// Those of k.
    pub k: VectorId,
    /// What is normalised together.
    pub spans: Spans,
    /// Whether about the mean, and not by the mean square alone.
    pub centred: bool,
    /// Added to the mean square, or to the variance.
    pub eps: f32,
}

/// How the scores of an attention come about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// Their factor.
    pub scale: f32,
    /// How many positions a token sees, the last ones with its own; all without a window.
    pub window: Option<usize>,
    /// What none exceeds: s becomes cap tanh(s / cap) (Gemma 2, 2024).
    pub cap: Option<f32>,
}

impl Scores {
    /// Scores of all positions, times a factor.
    pub fn plain(scale: f32) -> Self {
        Self { scale, window: None, cap: None }
    }

    /// The first position that the token at `position` sees.
    pub fn first(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// An operation. T is the number of tokens in the batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Token ids -> `[T, cols]`: rows of a table, times a factor.
    Embed {
        /// The table `[vocab, cols]`.
        table: WeightId,
        /// The factor.
        scale: f32,
    },
    /// x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019).
    RmsNorm {
        /// The factors.
        weight: VectorId,
        /// Added to the mean square.
        eps: f32,
        /// Whether the result is added in place to the second input, the residual: made by fusion.
        add: bool,
    },
    /// (x - mean(x)) / sqrt(var(x) + eps) * weight + bias (Ba et al. 2016).
    LayerNorm {
        /// The factors.
        weight: VectorId,
        /// What is added.
        bias: VectorId,
        /// Added to the variance.
        eps: f32,
    },
    /// `[T, (heads + 2 kv_heads) head_dim]` (q, k, v) -> the same with q and k normalised.
    HeadNorm {
        /// How.
        norm: HeadNorm,
        /// The heads.
        heads: Heads,
    },
    /// W x + bias.
    Linear {
        /// W.
        weight: WeightId,
        /// The bias.
        bias: Option<VectorId>,
    },
    /// `[T, (heads + 2 kv_heads) head_dim]` (q, k, v) -> rotated q `[T, heads head_dim]`;
    /// appends rotated k, and v, to the layer's cache.
    RopeKv {
        /// Which cache.
        layer: usize,
        /// The heads.
        heads: Heads,
        /// How q and k turn, if they do.
        rope: Option<RopeId>,
        /// How their heads are normalised before: made by fusion.
        norm: Option<HeadNorm>,
    },
    /// `[T, experts]` -> `[T, 2 chosen]`: the numbers of the experts with the largest logits, then their
    /// weights, which are the softmax of all logits (Shazeer et al. 2017).
    Route {
        /// How many.
        chosen: usize,
        /// Whether their weights are made to sum up to one.
        normalised: bool,
    },
    /// `[T, n]`, or `[T, chosen, n]`, and routes -> `[T, chosen, m]`: W x by each chosen expert.
    ExpertLinear {
        /// The W of all experts.
        weight: WeightId,
        /// Factors and epsilon of the normalisation of x on the way in: made by fusion.
        norm: Option<(VectorId, f32)>,
        /// What becomes of the sums: stored, or gated, made by fusion.
        out: Out,
    },
    /// `[T, chosen, n]` and routes -> `[T, n]`: the sum, weighted by the routes.
    Combine {
        /// Whether the result is added in place to the second input, the residual, which the routes then
        /// follow: made by fusion.
        add: bool,
    },
    /// Causal softmax attention of rotated q over the layer's cache.
    Attention {
        /// Which cache.
        layer: usize,
        /// The heads.
        heads: Heads,
        /// The scores.
        scores: Scores,
    },
    /// A share of the attention for each of `splits` parts of the cache: made by fusion.
    AttentionSplit {
        /// Which cache.
        layer: usize,
        /// The heads.
        heads: Heads,
        /// The scores.
        scores: Scores,
        /// Parts of the cache.
        splits: usize,
    },
    /// The attention that the shares make up: made by fusion.
    AttentionMerge {
        /// The heads.
        heads: Heads,
        /// The scores.
        scores: Scores,
        /// Parts of the cache.
        splits: usize,
    },
    /// `[T, 2 n]` (gate and up alternating) -> `[T, n]`: act(gate) up (Shazeer 2020).
    Glu(Nonlinearity),
    /// act(x).
    Activate(Nonlinearity),
    /// cap tanh(x / cap) (Gemma 2, 2024).
    SoftCap {
        /// What no result exceeds.
        cap: f32,
    },
    /// a + scale b.
    Add {
        /// The factor.
        scale: f32,
    },
    /// Values of a row in another order: value i of the result is value order(i) of x.
    Permute {
        /// The places, as numbers.
        order: VectorId,
    },
    /// A linear with what fusion has joined to it.
    FusedLinear {
        /// W.
        weight: WeightId,
        /// The bias.
        bias: Option<VectorId>,
        /// Factors and epsilon of the normalisation of x on the way in.
        norm: Option<(VectorId, f32)>,
        /// What becomes of the sums.
        out: Out,
    },
    /// A sum over each of `splits` shares of the columns of W x: made by fusion.
    LinearSplit {
        /// W.
        weight: WeightId,
        /// Shares of the columns.
        splits: usize,
        /// What will become of the sums.
        out: Out,
    },
    /// The linear that the shares make up: made by fusion.
    LinearMerge {
        /// Shares of the columns.
        splits: usize,
        /// What becomes of the sums.
        out: Out,
    },
}

impl Op {
    /// Whether the result takes the place of the second input, to which it is added.
    pub fn adds_in_place(&self) -> bool {
        match self {
            Self::FusedLinear { out, .. } | Self::LinearMerge { out, .. } => *out == Out::Add,
            Self::RmsNorm { add, .. } | Self::Combine { add } => *add,
            _ => false,
        }
    }
}

/// What becomes of the sums of a fused linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Out {
    /// They are the result.
    Store,
    /// They are added in place to the second input, the residual.
    Add,
    /// Alternating gates and ups: act(gate) up is the result.
    Glu(Nonlinearity),
}

/// An operation in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Name in plans, and for captures: `layers.3.attn`.
    pub name: String,
    /// What is computed.
    pub op: Op,
    /// From what.
    pub inputs: Vec<NodeId>,
    /// Width of a row of the result, in values.
    pub width: usize,
    /// Pieces of a row, each padded for itself: one, or one for each chosen expert.
    pub pieces: usize,
    /// Rows of the result.
    pub rows: Rows,
}

/// A model as data: nodes in the order of computation.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    /// The operations; inputs come before their users.
    pub nodes: Vec<Node>,
    /// The matrices.
    pub weights: Vec<WeightSpec>,
    /// The vectors.
    pub vectors: Vec<VectorSpec>,
    /// The rotations of positions.
    pub ropes: Vec<Rope>,
    /// Layers with a cache, and their heads.
    pub caches: Vec<Heads>,
}

impl Graph {
    /// The node called `name`.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.nodes.iter().position(|n| n.name == name).map(NodeId)
    }

    /// Values of a head that turn by `rope`.
    pub fn rotated(&self, rope: Option<RopeId>) -> usize {
        rope.map_or(0, |id| self.ropes[id.0].rotated)
    }

    /// The window of the attention, fused or not, to a layer's cache.
    pub fn window(&self, cache: usize) -> Option<usize> {
        let window = |node: &Node| match node.op {
            Op::Attention { layer, scores, .. } | Op::AttentionSplit { layer, scores, .. }
                if layer == cache =>
            {
                scores.window
            }
            _ => None,
        };
        self.nodes.iter().find_map(window)
    }

    /// Ids that every embedding table has a row for.
    pub fn vocab(&self) -> usize {
        let rows = |n: &Node| match n.op {
            Op::Embed { table, .. } => Some(self.weights[table.0].rows),
            _ => None,
        };
        self.nodes.iter().filter_map(rows).min().unwrap_or(usize::MAX)
    }

    /// The last node, whose rows are the logits.
    pub fn output(&self) -> Option<&Node> {
        self.nodes.last()
    }
}
