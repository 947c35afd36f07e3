//! The oracle: interprets a graph on the CPU in plain loops, values in f32 and sums in f64.
//! Slow and obvious; shares no code with the kernels. Fused operations are not known here:
//! they are checked against the graph that they were made from.

use std::collections::HashMap;

use crate::dtype::KvFormat;
use crate::error::{Error, Result};
use crate::graph::{
    Batch, Graph, HeadNorm, Heads, Node, Op, Out, RopeId, Rotations, Scores, Spans, VectorId, WeightId,
};
use crate::nonlinearity::Nonlinearity;
use crate::quant;
use crate::shape::Rows;

/// Where the interpreter gets decoded weights from.
pub trait Source {
    /// The matrix `[rows, cols]`, row-major, in the graph's order of rows.
    fn weight(&self, graph: &Graph, id: WeightId) -> Result<Vec<f32>>;

    /// The vector.
    fn vector(&self, graph: &Graph, id: VectorId) -> Result<Vec<f32>>;
}

type Cache = HashMap<(usize, u32), Vec<f32>>;

/// The interpreter with its cache of keys and values.
pub struct Reference<'a> {
    graph: &'a Graph,
    weights: Vec<Vec<f32>>,
    vectors: Vec<Vec<f32>>,
    rotations: Vec<Rotations>,
    kv: KvFormat,
    keys: Cache,
    values: Cache,
}

impl<'a> Reference<'a> {
    /// Decodes all weights of `graph`; cached keys and values are rounded to `kv`.
    pub fn new(graph: &'a Graph, source: &dyn Source, kv: KvFormat) -> Result<Self> {
        Ok(Self {
            graph,
            weights: (0..graph.weights.len())
                .map(|i| source.weight(graph, WeightId(i)))
                .collect::<Result<_>>()?,
            vectors: (0..graph.vectors.len())
                .map(|i| source.vector(graph, VectorId(i)))
                .collect::<Result<_>>()?,
            rotations: graph.ropes.iter().map(|rope| rope.rotations(0)).collect(),
            kv,
            keys: HashMap::new(),
            values: HashMap::new(),
        })
    }

    /// With the rotations of a context of `length` positions, which may change them.
    pub fn in_context(mut self, length: usize) -> Self {
        self.rotations = self.graph.ropes.iter().map(|rope| rope.rotations(length)).collect();
        self
    }

    /// The results of all nodes for `batch`, each row-major.
    pub fn run(&mut self, batch: &Batch) -> Result<Vec<Vec<f32>>> {
        let graph = self.graph;
        batch.check(graph.vocab(), usize::MAX, usize::MAX)?;
        let mut results: Vec<Vec<f32>> = Vec::with_capacity(graph.nodes.len());
        for node in &graph.nodes {
            let inputs: Vec<&[f32]> = node.inputs.iter().map(|i| results[i.0].as_slice()).collect();
            let result = self.node(node, &inputs, batch)?;
            results.push(result);
        }
        Ok(results)
    }

    /// The logits of the batch's outputs, `[outputs, vocab]`.
    pub fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        Ok(self.run(batch)?.pop().unwrap_or_default())
    }

    fn node(&mut self, node: &Node, inputs: &[&[f32]], batch: &Batch) -> Result<Vec<f32>> {
        Ok(match node.op {
            Op::Embed { table, scale } => {
                let table = &self.weights[table.0];
                let row = |id: u32| table[id as usize * node.width..][..node.width].iter();
                batch.tokens.iter().flat_map(|t| row(t.id).map(|v| v * scale)).collect()
            }
            Op::RmsNorm { weight, eps, add: false } => {
                let rows = rows(node, batch).map(|r| &inputs[0][r * node.width..][..node.width]);
                rows.flat_map(|row| rms_norm(row, &self.vectors[weight.0], eps)).collect()
            }
            Op::LayerNorm { weight, bias, eps } => {
                let (weight, bias) = (&self.vectors[weight.0], &self.vectors[bias.0]);
                let rows = rows(node, batch).map(|r| &inputs[0][r * node.width..][..node.width]);
                rows.flat_map(|row| layer_norm(row, weight, bias, eps)).collect()
            }
            Op::Linear { weight, bias } => {
                let spec = &self.graph.weights[weight.0];
                let bias = bias.map(|b| self.vectors[b.0].as_slice());
                let rows = inputs[0].chunks_exact(spec.cols);
                rows.flat_map(|x| linear(&self.weights[weight.0], x, bias)).collect()
            }
            Op::HeadNorm { norm, heads } => {
                let (q_width, k_width) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
                let row = |row: &[f32]| {
                    let (queries, rest) = row.split_at(q_width);
                    let (keys, values) = rest.split_at(k_width);
                    let parts = [(queries, norm.q), (keys, norm.k)].map(|(part, factors)| {
                        let span = if norm.spans == Spans::All { part.len() } else { heads.head_dim };
                        let factors = self.vectors[factors.0].chunks_exact(span).cycle();
                        let spans = part.chunks_exact(span).zip(factors);
                        spans.flat_map(|(x, w)| head_norm(x, w, norm)).collect::<Vec<_>>()
                    });
                    [&parts[0], &parts[1], values].concat()
                };
                inputs[0].chunks_exact(node.width).flat_map(row).collect()
            }
            Op::RopeKv { layer, heads, rope, norm: None } => {
                self.rope_kv(layer, heads, rope, inputs[0], batch)
            }
            Op::Attention { layer, heads, scores } => self.attention(layer, heads, scores, inputs[0], batch),
            Op::Glu(act) => inputs[0].chunks_exact(2).map(|p| activated(act, p[0]) * p[1]).collect(),
            Op::Activate(act) => inputs[0].iter().map(|x| activated(act, *x)).collect(),
            Op::SoftCap { cap } => inputs[0].iter().map(|x| cap * (x / cap).tanh()).collect(),
            Op::Route { chosen, normalised } => {
                let rows = inputs[0].chunks_exact(inputs[0].len() / batch.tokens.len().max(1));
                rows.flat_map(|logits| route(logits, chosen, normalised)).collect()
            }
            Op::ExpertLinear { weight, norm: None, out: Out::Store } => {
                let (spec, w) = (&self.graph.weights[weight.0], &self.weights[weight.0]);
                let chosen = node.pieces;
                let shared = inputs[0].len() == batch.tokens.len() * spec.cols;
                let expert = |(i, number): (usize, &f32)| {
                    let x = &inputs[0][if shared { i / chosen } else { i } * spec.cols..][..spec.cols];
                    let matrix = spec.matrix_rows() * spec.cols;
                    linear(&w[*number as usize * matrix..][..matrix], x, None)
                };
                let numbers = inputs[1].chunks_exact(2 * chosen).flat_map(|route| &route[..chosen]);
                numbers.enumerate().flat_map(expert).collect()
            }
            Op::Combine { add: false } => {
                let chosen = inputs[0].len() / (batch.tokens.len() * node.width).max(1);
                let tokens = inputs[0].chunks_exact(chosen * node.width);
                let sum = |(x, route): (&[f32], &[f32])| -> Vec<f32> {
                    let value =
                        |c: usize, i: usize| f64::from(route[chosen + c]) * f64::from(x[c * node.width + i]);
                    let sum = |i: usize| (0..chosen).map(|c| value(c, i)).sum::<f64>() as f32;
                    (0..node.width).map(sum).collect()
                };
                tokens.zip(inputs[1].chunks_exact(2 * chosen)).flat_map(sum).collect()
            }
            Op::Permute { order } => {
                let order = &self.vectors[order.0];
                let rows = inputs[0].chunks_exact(order.len());
                rows.flat_map(|row| order.iter().map(|place| row[*place as usize])).collect()
            }
            Op::Add { scale } => inputs[0].iter().zip(inputs[1]).map(|(a, b)| a + scale * b).collect(),
            Op::FusedLinear { .. }
            | Op::LinearSplit { .. }
            | Op::ExpertLinear { .. }
            | Op::RmsNorm { add: true, .. }
            | Op::RopeKv { norm: Some(_), .. }
            | Op::Combine { add: true }
            | Op::LinearMerge { .. }
            | Op::AttentionSplit { .. }
            | Op::AttentionMerge { .. } => {
                return Err(Error::shape(&node.name, "a fused operation has no reference of its own"));
            }
        })
    }

    fn rope_kv(
        &mut self,
        layer: usize,
        heads: Heads,
        rope: Option<RopeId>,
        qkv: &[f32],
        batch: &Batch,
    ) -> Vec<f32> {
        let Heads { heads: n, kv_heads, head_dim } = heads;
        let (q_width, kv_width) = (n * head_dim, kv_heads * head_dim);
        let mut queries = Vec::new();
        for (token, row) in batch.tokens.iter().zip(qkv.chunks_exact(q_width + 2 * kv_width)) {
            let mut row = row.to_vec();
            for head in row[..q_width + kv_width].chunks_exact_mut(head_dim) {
                for pair in 0..self.graph.rotated(rope) / 2 {
                    let Some(rope) = rope else { break };
                    let (cos, sin) = self.rotations[rope.0].at(token.position as usize, pair);
                    let (a, b) = (f64::from(head[2 * pair]), f64::from(head[2 * pair + 1]));
                    head[2 * pair] = (a * cos - b * sin) as f32;
                    head[2 * pair + 1] = (a * sin + b * cos) as f32;
                }
            }
            queries.extend_from_slice(&row[..q_width]);
            let key = (layer, token.sequence);
            let at = token.position as usize * kv_width;
            for (cache, from) in [(&mut self.keys, q_width), (&mut self.values, q_width + kv_width)] {
                let cache = cache.entry(key).or_default();
                cache.resize(cache.len().max(at + kv_width), 0.0);
                for head in (0..kv_width).step_by(head_dim) {
                    let values = &row[from + head..][..head_dim];
                    cache[at + head..][..head_dim].copy_from_slice(&round_kv(values, self.kv));
                }
            }
        }
        queries
    }

    fn attention(&self, layer: usize, heads: Heads, scores: Scores, q: &[f32], batch: &Batch) -> Vec<f32> {
        let scale = f64::from(scores.scale);
        let Heads { heads: n, kv_heads, head_dim } = heads;
        let empty = Vec::new();
        let mut out = Vec::new();
        for (token, row) in batch.tokens.iter().zip(q.chunks_exact(n * head_dim)) {
            let key = (layer, token.sequence);
            let keys = self.keys.get(&key).unwrap_or(&empty);
            let values = self.values.get(&key).unwrap_or(&empty);
            for (head, query) in row.chunks_exact(head_dim).enumerate() {
                let at = |j: usize| (j * kv_heads + head / (n / kv_heads)) * head_dim;
                let position = token.position as usize;
                let seen = scores.first(position)..position + 1;
                let capped =
                    |s: f64| scores.cap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh());
                let score = |j: usize| capped(dot(query, &keys[at(j)..][..head_dim]) * scale);
                let scores: Vec<f64> = seen.clone().map(score).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..head_dim {
                    let value = |j: usize| f64::from(values[at(j) + d]);
                    let sum: f64 = seen.clone().zip(&weights).map(|(j, weight)| weight * value(j)).sum();
                    out.push((sum / total) as f32);
                }
            }
        }
        out
    }
}

pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

/// The experts with the largest logits, and then their weights.
pub(crate) fn route(logits: &[f32], chosen: usize, normalised: bool) -> Vec<f32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|l| (f64::from(*l) - f64::from(top)).exp()).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    order.truncate(chosen);
    let summed = |over: &[usize]| over.iter().map(|e| weights[*e]).sum::<f64>();
    let all: Vec<usize> = (0..logits.len()).collect();
    let total = summed(if normalised { &order } else { &all });
    let numbers = order.iter().map(|e| *e as f32);
    numbers.chain(order.iter().map(|e| (weights[*e] / total) as f32)).collect()
}

/// The tokens whose rows a node works on.
fn rows<'a>(node: &Node, batch: &'a Batch) -> Box<dyn Iterator<Item = usize> + 'a> {
    match node.rows {
        Rows::Tokens | Rows::Chosen(_) => Box::new(0..batch.tokens.len()),
        Rows::Outputs => Box::new(batch.outputs.iter().map(|&o| o as usize)),
    }
}

pub(crate) fn activated(act: Nonlinearity, x: f32) -> f32 {
    let x = f64::from(x);
    let y = match act {
        Nonlinearity::Silu => x / (1.0 + (-x).exp()),
        Nonlinearity::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        }
        Nonlinearity::Gelu => 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
    };
    y as f32
}

pub(crate) fn head_norm(x: &[f32], weight: &[f32], norm: HeadNorm) -> Vec<f32> {
    match norm.centred {
        true => layer_norm(x, weight, &vec![0.0; x.len()], norm.eps),
        false => rms_norm(x, weight, norm.eps),
    }
}

pub(crate) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / x.len() as f64;
    let centred: Vec<f64> = x.iter().map(|&v| f64::from(v) - mean).collect();
    let variance = centred.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (variance + f64::from(eps)).sqrt();
    let affine = centred.iter().zip(weight).zip(bias);
    affine.map(|((v, &w), &b)| (v * scale * f64::from(w) + f64::from(b)) as f32).collect()
}

fn linear(weight: &[f32], x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let row = |(r, w): (usize, &[f32])| (dot(w, x) + bias.map_or(0.0, |b| f64::from(b[r]))) as f32;
    weight.chunks_exact(x.len()).enumerate().map(row).collect()
}

pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let scale = 1.0 / (dot(x, x) / x.len() as f64 + f64::from(eps)).sqrt();
    x.iter().zip(weight).map(|(&v, &w)| (f64::from(v) * scale * f64::from(w)) as f32).collect()
}

/// A head's values as the cache holds them. Scales, and values of f16, beyond the range of f16
/// become its largest.
fn round_kv(values: &[f32], kv: KvFormat) -> Vec<f32> {
    let most = match kv {
        KvFormat::F32 => f32::MAX,
        KvFormat::F16 => 65504.0,
        KvFormat::Q8_0 => 127.0 * 65504.0,
        KvFormat::Q4_0 => 8.0 * 65504.0,
    };
    let format = kv.rounding();
    let mut rounded: Vec<f32> = values.iter().map(|v| v.clamp(-most, most)).collect();
    rounded.resize(values.len().next_multiple_of(format.block_len()), 0.0);
    quant::decode(format, &quant::encode(format, &rounded), &mut rounded);
    rounded.truncate(values.len());
    rounded
}
