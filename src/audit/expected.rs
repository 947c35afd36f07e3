//! What a node's result should be, and how far off it may be: sums in f64 of what the device holds.

use std::ops::Range;

use super::{Audit, Stored, cached};
use crate::dtype::KvFormat;
use crate::error::{Error, Result};
use crate::graph::reference::{activated, head_norm, layer_norm, rms_norm, route};
use crate::graph::{HeadNorm, Heads, Op, Out, RopeId, Scores, Spans, VectorId, WeightId};
use crate::kernels::{PAGE, Variant, pack};
use crate::plan::Resource;
use crate::plan::fuse::Linear;
use crate::shape::{GROUP, ROPE_FINE, Rows, padded, stored_head_dim};

/// A value, and how far off it may be.
#[derive(Clone, Copy)]
struct Near {
    value: f64,
    slack: f64,
}

/// A value of a row of a result.
struct Sample {
    row: usize,
    at: usize,
    near: Near,
}

/// Roundings of a sum of thousands of products in f32, as a share of the sum of their magnitudes.
const SUM: f64 = 1e-5;

/// Roundings of a few operations.
const FEW: f64 = 2e-6;

/// How a kernel rounds weights and activations before it multiplies them.
#[derive(Clone, Copy, PartialEq)]
enum Products {
    Floats,
    Halves,
    Bytes,
}

impl Products {
    /// The sum of the products of a row and activations.
    fn sum(self, weights: &[f32], x: &[f64]) -> Near {
        let mut near = Near { value: 0.0, slack: 0.0 };
        for (w, x) in weights.chunks(GROUP).zip(x.chunks(GROUP)) {
            let magnitude = |values: &[f64]| values.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let w: Vec<f64> = w.iter().map(|w| f64::from(*w)).collect();
            let (sum_w, sum_x) = [&w[..], x].map(|v| v.iter().map(|v| v.abs()).sum::<f64>()).into();
            let products = w.iter().zip(x).map(|(w, x)| w * x);
            near.value += products.clone().sum::<f64>();
            // A format's offset is multiplied apart from its quants, and both exceed the weight.
            near.slack += SUM * magnitude(&w) * sum_x;
            near.slack += match self {
                Self::Floats => 0.0,
                // Both lose up to a thousandth; what is smaller than halves can say, more.
                Self::Halves => products.map(f64::abs).sum::<f64>() / 512.0 + sum_w * 1e-6 + sum_x * 6e-8,
                Self::Bytes => sum_w * magnitude(x) / 127.0 * 0.51,
            };
        }
        near
    }
}

/// act of a value that is near.
fn act_near(function: crate::nonlinearity::Nonlinearity, x: Near) -> Near {
    let value = f64::from(activated(function, x.value as f32));
    // No slope of theirs exceeds 1.2; exponentials of drivers are off by more where they are large.
    Near {
        value,
        slack: 1.2 * x.slack + FEW * (value.abs() + x.value.abs()) * (1.0 + x.value.abs().min(30.0)),
    }
}

fn times(a: Near, b: Near) -> Near {
    let value = a.value * b.value;
    let slack = a.slack * b.value.abs() + b.slack * a.value.abs() + a.slack * b.slack + FEW * value.abs();
    Near { value, slack }
}

fn plus(a: Near, b: f64) -> Near {
    Near { value: a.value + b, slack: a.slack + FEW * (a.value.abs() + b.abs()) }
}

/// A result in f32 of operations whose operands are of some magnitude.
fn exact(value: f32, magnitude: f32) -> Near {
    Near { value: f64::from(value), slack: FEW * f64::from(value.abs().max(magnitude.abs())) + 1e-30 }
}

impl Audit<'_> {
    /// Compares samples of what a node's launches left.
    pub(super) async fn compare(
        &mut self,
        id: usize,
        launches: Range<usize>,
        inputs: &[Stored],
        before: Option<&Stored>,
        found: &Stored,
    ) -> Result<()> {
        let node = self.run.plan().graph.nodes[id].clone();
        let (rows, _) = self.extent(id);
        let picked = self.some(rows, self.effort.rows);
        let mut samples = Vec::new();
        // Rows that are computed from those of the inputs, value by value.
        let mut by_row = |row: usize, values: Vec<Near>| {
            samples.extend(values.into_iter().enumerate().map(|(at, near)| Sample { row, at, near }));
        };
        let source = |row: usize| match node.rows {
            Rows::Outputs => self.batch.outputs[row] as usize,
            _ => row,
        };
        match node.op {
            Op::Embed { table, scale } => {
                for &row in &picked {
                    let id = self.batch.tokens[row].id as usize;
                    let values = self.weight_row(table, id).await?;
                    // Drivers may take halves below 2^-14 for zero.
                    let tiny = 6.2e-5 * f64::from(scale.abs());
                    let near = |v: &f32| {
                        let near = exact(v * scale, 0.0);
                        Near { slack: if v.abs() < 6.2e-5 { tiny } else { near.slack }, ..near }
                    };
                    by_row(row, values.iter().take(node.width).map(near).collect());
                }
            }
            Op::RmsNorm { weight, eps, add } => {
                let weight = self.vector(weight).await?;
                for &row in &picked {
                    let x = &inputs[0].row(source(row))[..node.width];
                    let old = before.filter(|_| add).map(|b| b.row(row));
                    let y = rms_norm(x, &weight, eps).into_iter().enumerate();
                    let near = |(i, y)| plus(exact(y, 0.0), old.map_or(0.0, |old| f64::from(old[i])));
                    by_row(row, y.map(near).collect());
                }
            }
            Op::LayerNorm { weight, bias, eps } => {
                let (weight, bias) = (self.vector(weight).await?, self.vector(bias).await?);
                for &row in &picked {
                    let x = &inputs[0].row(source(row))[..node.width];
                    let y = layer_norm(x, &weight, &bias, eps);
                    // The mean is taken off values that may be larger than what is left.
                    let most = y.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                    by_row(row, y.into_iter().map(|y| exact(y, 4.0 * most)).collect());
                }
            }
            Op::HeadNorm { norm, heads } => {
                let factors = self.factors(norm).await?;
                for &row in &picked {
                    let x = &inputs[0].row(row)[..node.width];
                    let y = heads_normed(x, norm, heads, &factors);
                    let most = y.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                    by_row(
                        row,
                        y.into_iter().map(|y| exact(y, if norm.centred { most } else { 0.0 })).collect(),
                    );
                }
            }
            Op::Glu(act) => {
                for &row in &picked {
                    let (pieces, width) = (node.pieces, node.width / node.pieces);
                    let (from, to) = (inputs[0].pitch / pieces, found.pitch / pieces);
                    for piece in 0..pieces {
                        for i in 0..width {
                            let pair = &inputs[0].row(row)[piece * from + 2 * i..];
                            let near = times(act_near(act, exact(pair[0], 0.0)), exact(pair[1], 0.0));
                            samples.push(Sample { row, at: piece * to + i, near });
                        }
                    }
                }
            }
            Op::Activate(act) => {
                for &row in &picked {
                    let x = &inputs[0].row(row)[..node.width];
                    by_row(row, x.iter().map(|x| act_near(act, exact(*x, 0.0))).collect());
                }
            }
            Op::SoftCap { cap } => {
                for &row in &picked {
                    let x = &inputs[0].row(row)[..node.width];
                    // It is made of 1 - e^-x, which keeps the roundings of one where x is small.
                    by_row(row, x.iter().map(|x| exact(cap * (x / cap).tanh(), 0.2 * cap)).collect());
                }
            }
            Op::Add { scale } => {
                for &row in &picked {
                    let (a, b) = (inputs[0].row(row), inputs[1].row(row));
                    let pairs = a.iter().zip(b).take(node.width);
                    by_row(
                        row,
                        pairs.map(|(a, b)| exact(a + scale * b, a.abs().max((scale * b).abs()))).collect(),
                    );
                }
            }
            Op::Permute { order } => {
                let order = self.vector(order).await?;
                for &row in &picked {
                    let x = inputs[0].row(row);
                    let y = order.iter().take(node.width).map(|place| exact(x[*place as usize], 0.0));
                    by_row(row, y.collect());
                }
            }
            Op::Route { chosen, normalised } => {
                let experts = self.run.plan().graph.nodes[node.inputs[0].0].width;
                for &row in &picked {
                    let y = route(&inputs[0].row(row)[..experts], chosen, normalised);
                    by_row(row, y.into_iter().map(|y| exact(y, 2.0)).collect());
                }
            }
            Op::Combine { add } => {
                let chosen = self.run.plan().graph.nodes[node.inputs[0].0].pieces;
                let routes = &inputs[if add { 2 } else { 1 }];
                for &row in &picked {
                    let (x, weights) = (inputs[0].row(row), &routes.row(row)[chosen..2 * chosen]);
                    let step = inputs[0].pitch / chosen;
                    let near = |i: usize| {
                        let terms = weights.iter().enumerate();
                        let terms = terms.map(|(c, w)| f64::from(*w) * f64::from(x[c * step + i]));
                        let slack = FEW * terms.clone().map(f64::abs).sum::<f64>();
                        let sum = Near { value: terms.sum(), slack };
                        plus(sum, before.filter(|_| add).map_or(0.0, |b| f64::from(b.row(row)[i])))
                    };
                    by_row(row, (0..node.width).map(near).collect());
                }
            }
            Op::RopeKv { layer, heads, rope, norm } => {
                samples = self.rope_kv(layer, heads, rope, norm, &inputs[0], &picked).await?;
            }
            Op::Attention { layer, heads, scores } | Op::AttentionSplit { layer, heads, scores, .. } => {
                samples = self.attention(layer, heads, scores, &inputs[0], &picked).await?;
            }
            Op::AttentionMerge { heads, scores, .. } => {
                let split = &self.run.plan().graph.nodes[node.inputs[0].0];
                let Op::AttentionSplit { layer, .. } = split.op else { return Ok(()) };
                samples = self.attention(layer, heads, scores, &inputs[0], &picked).await?;
            }
            Op::Linear { .. } | Op::FusedLinear { .. } => {
                let Some(linear) = Linear::of(&node) else { return Ok(()) };
                samples = self.linear(id, linear, inputs, before, &picked).await?;
            }
            Op::ExpertLinear { weight, norm, out } => {
                let linear = Linear { weight, bias: None, norm, out };
                samples = self.linear(id, linear, inputs, before, &picked).await?;
            }
            Op::LinearMerge { out, .. } => {
                let split = &self.run.plan().graph.nodes[node.inputs[0].0];
                let Op::LinearSplit { weight, .. } = split.op else { return Ok(()) };
                let linear = Linear { weight, bias: None, norm: None, out };
                samples = self.linear(id, linear, inputs, before, &picked).await?;
            }
            Op::LinearSplit { .. } => return Ok(()),
        }
        self.judge(&node.name, &launches, found, &samples)
    }

    fn judge(
        &mut self,
        name: &str,
        launches: &Range<usize>,
        found: &Stored,
        samples: &[Sample],
    ) -> Result<()> {
        let mut worst = 0.0f64;
        for Sample { row, at, near } in samples {
            let value = f64::from(found.row(*row)[*at]);
            // What overflows on the CPU, too, is the model's fault, and shows in its logits.
            if !near.value.is_finite() || !near.slack.is_finite() {
                continue;
            }
            let share = (value - near.value).abs() / near.slack.max(f64::MIN_POSITIVE);
            if share.is_nan() || share > 1.0 {
                return Err(self.wrong(name, launches, &format!("value {at} of row {row}"), value, *near));
            }
            worst = worst.max(share);
        }
        let variants = self.involved(name, launches);
        self.findings.note(&variants, samples.len(), worst);
        Ok(())
    }

    /// The variants that made a result: what another launch has split shows only where it is put together.
    fn involved(&self, name: &str, launches: &Range<usize>) -> Vec<Variant> {
        let plan = self.run.plan();
        let inputs = plan.graph.find(name).map_or(&[][..], |node| &plan.graph.nodes[node.0].inputs);
        let split = inputs.iter().filter(|input| self.is_split(input.0));
        let names: Vec<&str> = split.map(|input| plan.graph.nodes[input.0].name.as_str()).collect();
        let split = plan.launches.iter().filter(|launch| names.contains(&launch.name.as_str()));
        let all = split.chain(&plan.launches[launches.clone()]);
        let mut variants: Vec<Variant> = all.map(|launch| launch.dispatch.variant).collect();
        variants.dedup();
        variants
    }

    fn wrong(&self, name: &str, launches: &Range<usize>, place: &str, found: f64, near: Near) -> Error {
        let variants = self.involved(name, launches);
        Error::WrongResult {
            launch: name.to_string(),
            variant: variants.iter().map(ToString::to_string).collect::<Vec<_>>().join(" + "),
            adapter: self.context.adapter().name.clone(),
            place: place.to_string(),
            found,
            expected: near.value,
            allowed: near.slack,
        }
    }

    async fn vector(&self, id: VectorId) -> Result<Vec<f32>> {
        let len = self.run.plan().graph.vectors[id.0].len();
        let view = self.view(Resource::Vector(id))?;
        let bytes = self.context.read_views(&[(view, 0, len as u64 * 4)]).await?;
        Ok(bytemuck::pod_collect_to_vec(&bytes[0]))
    }

    async fn factors(&self, norm: HeadNorm) -> Result<[Vec<f32>; 2]> {
        Ok([self.vector(norm.q).await?, self.vector(norm.k).await?])
    }

    /// Row `row` of a weight that is one matrix.
    async fn weight_row(&self, weight: WeightId, row: usize) -> Result<Vec<f32>> {
        for (shard, s) in self.layouts[weight.0].shards.iter().enumerate() {
            let Some(r) = row.checked_sub(s.first).filter(|r| r % s.stride == 0 && r / s.stride < s.rows)
            else {
                continue;
            };
            return Ok(self.shard_rows(weight, shard, r / s.stride..).await?.swap_remove(0));
        }
        Err(Error::shape(&self.run.plan().graph.weights[weight.0].name, format!("no shard has row {row}")))
    }

    /// Rows of a shard from one on, as many as lie together with it.
    async fn shard_rows(
        &self,
        weight: WeightId,
        shard: usize,
        rows: std::ops::RangeFrom<usize>,
    ) -> Result<Vec<Vec<f32>>> {
        let planes = &self.layouts[weight.0].shards[shard].planes;
        let align = planes.order.align();
        let first = rows.start / align * align;
        let (quant_bytes, scale_bytes) = planes.row_bytes();
        let piece = |bytes: usize| ((first * bytes) as u64, (align * bytes) as u64);
        let quants = self.view(Resource::Quants { weight, shard })?;
        let scales = self.view(Resource::Scales { weight, shard })?;
        let mut pieces = vec![(quants, piece(quant_bytes).0, piece(quant_bytes).1)];
        if scale_bytes > 0 {
            pieces.push((scales, piece(scale_bytes).0, piece(scale_bytes).1));
        }
        let read = self.context.read_views(&pieces).await?;
        let scales = read.get(1).map_or(&[][..], Vec::as_slice);
        Ok((rows.start..first + align).map(|r| pack::unpack(planes, r, &read[0], scales)).collect())
    }

    /// Samples of a product of a matrix, or of those of the experts that a row chose.
    async fn linear(
        &mut self,
        id: usize,
        linear: Linear,
        inputs: &[Stored],
        before: Option<&Stored>,
        picked: &[usize],
    ) -> Result<Vec<Sample>> {
        let graph = &self.run.plan().graph;
        let (node, spec) = (graph.nodes[id].clone(), graph.weights[linear.weight.0].clone());
        let experts = spec.matrices > 1;
        let shared = inputs[0].pitch == padded(spec.cols);
        // Where columns were split, it is the split product that rounds.
        let kernel = |name: &str| {
            let split = node.inputs.first().filter(|input| self.is_split(input.0));
            let split = split.map_or("", |input| graph.nodes[input.0].name.as_str());
            let own = |l: &crate::plan::Launch| l.name == node.name || l.name == split;
            let mut launches = self.run.plan().launches.iter().filter(|l| own(l));
            launches.any(|l| l.dispatch.variant.kernel().name == name)
        };
        let products = match () {
            () if kernel("gemm_coop") => Products::Halves,
            () if kernel("gemv_int8") => Products::Bytes,
            () => Products::Floats,
        };
        let bias = match linear.bias {
            Some(bias) => Some(self.vector(bias).await?),
            None => None,
        };
        let gain = match linear.norm {
            Some((gain, eps)) => Some((self.vector(gain).await?, eps)),
            None => None,
        };
        let x_of = |row: usize, piece: usize| -> Vec<f64> {
            let step = padded(spec.cols);
            let x = &inputs[0].row(row)[if shared { 0 } else { piece * step }..][..spec.cols];
            let Some((gain, eps)) = &gain else { return x.iter().map(|v| f64::from(*v)).collect() };
            let squares: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
            let factor = 1.0 / (squares / x.len() as f64 + f64::from(*eps)).sqrt();
            x.iter().zip(gain).map(|(v, g)| f64::from(*v) * f64::from(*g) * factor).collect()
        };
        // Which rows of the batch meet which matrix.
        let mut meetings: Vec<(usize, Vec<(usize, usize)>)> = Vec::new();
        if experts {
            for &row in picked {
                for (piece, number) in inputs[1].row(row)[..node.pieces].iter().enumerate() {
                    meetings.push((*number as usize, vec![(row, piece)]));
                }
            }
            meetings.truncate(2 * self.effort.rows);
        } else {
            meetings.push((0, picked.iter().map(|row| (*row, 0)).collect()));
        }
        let mut samples = Vec::new();
        for (matrix, rows) in meetings {
            for (shard, start) in self.runs(linear.weight, matrix) {
                let s = self.layouts[linear.weight.0].shards[shard].clone();
                let base = (matrix - s.matrices.0) * s.each;
                let weights = self.shard_rows(linear.weight, shard, base + start..).await?;
                let weights = &weights[..weights.len().min(s.rows - start)];
                for &(row, piece) in &rows {
                    let x = x_of(row, piece);
                    let sum = |r: usize| {
                        let bias =
                            bias.as_ref().map_or(0.0, |b| f64::from(b[s.first + (start + r) * s.stride]));
                        plus(products.sum(&weights[r][..spec.cols], &x), bias)
                    };
                    let step = if experts { piece * padded(node.width / node.pieces) } else { 0 };
                    match linear.out {
                        Out::Glu(act) => samples.extend((0..weights.len() / 2).map(|pair| {
                            let near = times(act_near(act, sum(2 * pair)), sum(2 * pair + 1));
                            Sample { row, at: step + s.first / 2 + (start / 2 + pair) * s.stride, near }
                        })),
                        out => samples.extend((0..weights.len()).map(|r| {
                            let at = step + s.first + (start + r) * s.stride;
                            let old =
                                before.filter(|_| out == Out::Add).map_or(0.0, |b| f64::from(b.row(row)[at]));
                            Sample { row, at, near: plus(sum(r), old) }
                        })),
                    }
                }
            }
        }
        Ok(samples)
    }

    /// Some runs of rows of a matrix: the shard, and the first row of the matrix in there.
    fn runs(&mut self, weight: WeightId, matrix: usize) -> Vec<(usize, usize)> {
        let mut all = Vec::new();
        for (shard, s) in self.layouts[weight.0].shards.iter().enumerate() {
            if (s.matrices.0..s.matrices.0 + s.matrices.1).contains(&matrix) {
                all.extend((0..s.rows).step_by(s.planes.order.align()).map(|start| (shard, start)));
            }
        }
        let picked = self.some(all.len(), self.effort.runs);
        picked.into_iter().map(|i| all[i]).collect()
    }

    /// The page of a token's sequence that holds a position, for one of the layer's launches.
    fn page(&self, launch: usize, sequence: usize, position: usize) -> usize {
        let dispatch = &self.run.plan().launches[launch].dispatch;
        let declared = dispatch.variant.kernel().params;
        let ring = declared.iter().position(|(name, _)| *name == "ring").map(|i| dispatch.params[i] as usize);
        match ring.filter(|_| dispatch.variant.parts().any(|p| p == crate::kernels::Part::PagesRing)) {
            Some(ring) => sequence * ring + position / PAGE % ring,
            None => self.tables.0[sequence][position / PAGE] as usize,
        }
    }

    /// A head's share of the page that holds a position.
    async fn share(&self, cache: Resource, heads: Heads, head: usize, at: (usize, usize)) -> Result<Vec<u8>> {
        let bytes = PAGE * self.run.plan().options.kv.head_bytes(stored_head_dim(heads.head_dim));
        let launches = self.run.plan().launches.iter();
        let launch = launches.enumerate().find(|(_, l)| l.bindings.contains(&cache)).map_or(0, |(i, _)| i);
        let page = self.page(launch, at.0, at.1);
        let from = ((page * heads.kv_heads + head) * bytes) as u64;
        Ok(self.context.read_views(&[(self.view(cache)?, from, bytes as u64)]).await?.swap_remove(0))
    }

    async fn rope_kv(
        &mut self,
        layer: usize,
        heads: Heads,
        rope: Option<RopeId>,
        norm: Option<HeadNorm>,
        qkv: &Stored,
        picked: &[usize],
    ) -> Result<Vec<Sample>> {
        let factors = match norm {
            Some(norm) => Some((norm, self.factors(norm).await?)),
            None => None,
        };
        let graph = &self.run.plan().graph;
        let (rotated, dim, kv) = (graph.rotated(rope), heads.head_dim, self.run.plan().options.kv);
        let name = graph.nodes.iter().find(|n| matches!(n.op, Op::RopeKv { layer: l, .. } if l == layer));
        let name = name.map_or_else(String::new, |n| n.name.clone());
        let stored = stored_head_dim(dim);
        let mut samples = Vec::new();
        for &row in picked {
            let token = self.batch.tokens[row];
            let position = token.position as usize;
            let x = &qkv.row(row)[..(heads.heads + 2 * heads.kv_heads) * dim];
            let mut x = match &factors {
                Some((norm, factors)) => heads_normed(x, *norm, heads, factors),
                None => x.to_vec(),
            };
            if let Some(rope) = rope {
                let view = self.view(Resource::Rope(rope.0))?;
                let bytes = rotated as u64 * 4;
                let places = [position % ROPE_FINE, ROPE_FINE + position / ROPE_FINE];
                let pieces = places.map(|place| (view, place as u64 * bytes, bytes));
                let turns = self.context.read_views(&pieces).await?;
                let turns: Vec<Vec<f32>> = turns.iter().map(|t| bytemuck::pod_collect_to_vec(t)).collect();
                for head in x[..(heads.heads + heads.kv_heads) * dim].chunks_exact_mut(dim) {
                    for pair in 0..rotated / 2 {
                        let at = |t: &[f32]| (f64::from(t[2 * pair]), f64::from(t[2 * pair + 1]));
                        let ((a, b), (c, d)) = (at(&turns[0]), at(&turns[1]));
                        let (cos, sin) = (a * c - b * d, a * d + b * c);
                        let (v, w) = (f64::from(head[2 * pair]), f64::from(head[2 * pair + 1]));
                        head[2 * pair] = (v * cos - w * sin) as f32;
                        head[2 * pair + 1] = (v * sin + w * cos) as f32;
                    }
                }
            }
            // A pair's values are sums of both.
            let most = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for (head, values) in x[..heads.heads * dim].chunks_exact(dim).enumerate() {
                let near = values.iter().map(|v| exact(*v, most)).enumerate();
                samples.extend(near.map(|(i, near)| Sample { row, at: head * stored + i, near }));
            }
            let first = heads.heads * dim;
            for (cache, first) in
                [(Resource::Keys(layer), first), (Resource::Values(layer), first + heads.kv_heads * dim)]
            {
                for head in self.some(heads.kv_heads, self.effort.runs) {
                    let share = self.share(cache, heads, head, (token.sequence as usize, position)).await?;
                    let found = cached::values(kv, &share, stored, position % PAGE);
                    let values = &x[first + head * dim..][..dim];
                    for (i, (value, found)) in values.iter().zip(&found).enumerate() {
                        if !most.is_finite() || most > 6e4 {
                            // Formats of 16 bits cut these.
                            continue;
                        }
                        let slack = cached::slack(kv, values, i) + f64::from(most) * FEW;
                        let near = Near { value: f64::from(*value), slack };
                        let off = (f64::from(*found) - near.value).abs();
                        if off.is_nan() || off > near.slack {
                            let place = format!("value {i} of head {head} in {cache} at position {position}");
                            let plan = self.run.plan();
                            let launch = plan.launches.iter().position(|l| l.name == name).unwrap_or(0);
                            return Err(self.wrong(
                                &name,
                                &(launch..launch + 1),
                                &place,
                                f64::from(*found),
                                near,
                            ));
                        }
                    }
                }
            }
        }
        Ok(samples)
    }

    async fn attention(
        &mut self,
        layer: usize,
        heads: Heads,
        scores: Scores,
        q: &Stored,
        picked: &[usize],
    ) -> Result<Vec<Sample>> {
        let (dim, stored) = (heads.head_dim, stored_head_dim(heads.head_dim));
        let kv: KvFormat = self.run.plan().options.kv;
        let mut samples = Vec::new();
        for &row in picked {
            let token = self.batch.tokens[row];
            let (sequence, last) = (token.sequence as usize, token.position as usize);
            let seen = scores.first(last)..last + 1;
            for kv_head in self.some(heads.kv_heads, self.effort.runs) {
                let mut cache = [Vec::new(), Vec::new()];
                for page in seen.start / PAGE..=last / PAGE {
                    let from = seen.start.max(page * PAGE)..seen.end.min((page + 1) * PAGE);
                    for (which, values) in
                        [Resource::Keys(layer), Resource::Values(layer)].into_iter().zip(&mut cache)
                    {
                        let share = self.share(which, heads, kv_head, (sequence, page * PAGE)).await?;
                        values.extend(from.clone().map(|j| cached::values(kv, &share, stored, j % PAGE)));
                    }
                }
                let group = heads.heads / heads.kv_heads;
                for head in self.some(group, self.effort.runs).into_iter().map(|h| kv_head * group + h) {
                    let query = &q.row(row)[head * stored..][..dim];
                    let near = attended(query, &cache[0], &cache[1], scores);
                    let near = near.into_iter().enumerate();
                    samples.extend(near.map(|(i, near)| Sample { row, at: head * dim + i, near }));
                }
            }
        }
        Ok(samples)
    }
}

/// q, k and v with the heads of q and k normalised.
fn heads_normed(row: &[f32], norm: HeadNorm, heads: Heads, factors: &[Vec<f32>; 2]) -> Vec<f32> {
    let (queries, rest) = row.split_at(heads.heads * heads.head_dim);
    let (keys, values) = rest.split_at(heads.kv_heads * heads.head_dim);
    let mut all = Vec::with_capacity(row.len());
    for (part, factors) in [(queries, &factors[0]), (keys, &factors[1])] {
        let span = if norm.spans == Spans::All { part.len() } else { heads.head_dim };
        let spans = part.chunks_exact(span).zip(factors.chunks_exact(span).cycle());
        all.extend(spans.flat_map(|(x, w)| head_norm(x, w, norm)));
    }
    all.extend_from_slice(values);
    all
}

/// softmax(scale q K) V.
fn attended(query: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>], scores: Scores) -> Vec<Near> {
    let scale = f64::from(scores.scale);
    let capped = |s: f64| scores.cap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh());
    let product = |key: &Vec<f32>| {
        let terms = query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k));
        (terms.clone().sum::<f64>() * scale, terms.map(f64::abs).sum::<f64>() * scale.abs())
    };
    let products: Vec<(f64, f64)> = keys.iter().map(product).collect();
    // A score that is off makes its exponential off by as large a share.
    let off = products.iter().fold(0.0f64, |m, (_, magnitude)| m.max(*magnitude)) * SUM + SUM;
    let off = off + f64::from(scores.cap.unwrap_or(0.0)) * FEW * 0.2;
    let scored: Vec<f64> = products.iter().map(|(s, _)| capped(*s)).collect();
    let top = scored.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scored.iter().map(|s| (s - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    let near = |i: usize| {
        let terms = weights.iter().zip(values).map(|(w, v)| w * f64::from(v[i]) / total);
        let magnitude: f64 = terms.clone().map(f64::abs).sum();
        Near { value: terms.sum(), slack: magnitude * (2.0 * off + SUM) + 1e-9 }
    };
    (0..query.len()).map(near).collect()
}
