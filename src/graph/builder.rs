//! Building a graph: one method an operation, which checks shapes and answers with the node.

use crate::error::{Error, Result};
use crate::graph::{
    Graph, HeadNorm, Heads, Node, NodeId, Op, Out, Rope, RopeId, Scores, Spans, VectorId, VectorSpec,
    WeightId, WeightSpec,
};
use crate::nonlinearity::Nonlinearity;
use crate::shape::{MOST_EXPERTS, Rows};

impl Graph {
    /// A graph with no nodes, and with one rotation.
    pub fn new(rope: Rope) -> Self {
        let ropes = vec![rope];
        Self { nodes: Vec::new(), weights: Vec::new(), vectors: Vec::new(), ropes, caches: Vec::new() }
    }

    /// Declares another rotation.
    pub fn rope(&mut self, rope: Rope) -> RopeId {
        self.ropes.push(rope);
        RopeId(self.ropes.len() - 1)
    }

    /// Declares a matrix.
    pub fn weight(&mut self, spec: WeightSpec) -> Result<WeightId> {
        let rows: usize = spec.parts.iter().map(|p| p.rows).sum();
        if rows != spec.rows || spec.rows == 0 || spec.cols == 0 {
            return Err(Error::shape(
                spec.name,
                format!("{} rows of {} columns expected, parts have {rows} rows", spec.rows, spec.cols),
            ));
        }
        let of_all = |n: usize| spec.matrices > 0 && n.is_multiple_of(spec.matrices);
        if !of_all(spec.rows) || !of_all(spec.parts.len()) {
            let message =
                format!("{} rows of {} parts for {} matrices", rows, spec.parts.len(), spec.matrices);
            return Err(Error::shape(spec.name, message));
        }
        if spec.interleaved && spec.parts.iter().any(|p| p.rows * spec.parts.len() != spec.rows) {
            return Err(Error::shape(spec.name, "interleaved parts must have the same number of rows"));
        }
        self.weights.push(spec);
        Ok(WeightId(self.weights.len() - 1))
    }

    /// Declares a vector.
    pub fn vector(&mut self, spec: VectorSpec) -> VectorId {
        self.vectors.push(spec);
        VectorId(self.vectors.len() - 1)
    }

    fn push(&mut self, name: &str, op: Op, inputs: Vec<NodeId>, width: usize, rows: Rows) -> NodeId {
        let pieces = match op {
            Op::ExpertLinear { .. } => self.nodes[inputs[1].0].width / 2,
            Op::Glu(_) | Op::Activate(_) => self.nodes[inputs[0].0].pieces,
            _ => 1,
        };
        self.nodes.push(Node { name: name.to_string(), op, inputs, width, pieces, rows });
        NodeId(self.nodes.len() - 1)
    }

    fn expect(&self, name: &str, what: &str, expected: usize, found: usize) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        Err(Error::shape(name, format!("{what}: expected {expected}, found {found}")))
    }

    /// Only results of all tokens can be the input of what works on tokens.
    fn expect_tokens(&self, name: &str, x: NodeId) -> Result<()> {
        match self.nodes[x.0].rows {
            Rows::Tokens | Rows::Chosen(_) => Ok(()),
            Rows::Outputs => Err(Error::shape(name, "the input has rows for the outputs only")),
        }
    }

    /// Rows of `table` for the tokens' ids.
    pub fn embed(&mut self, name: &str, table: WeightId) -> NodeId {
        self.embed_scaled(name, table, 1.0)
    }

    /// As [`embed`](Self::embed), times a factor.
    pub fn embed_scaled(&mut self, name: &str, table: WeightId, scale: f32) -> NodeId {
        let width = self.weights[table.0].cols;
        self.push(name, Op::Embed { table, scale }, vec![], width, Rows::Tokens)
    }

    /// Normalises the rows of `x`, or only those whose logits are wanted.
    pub fn rms_norm(
        &mut self,
        name: &str,
        x: NodeId,
        weight: VectorId,
        eps: f32,
        rows: Rows,
    ) -> Result<NodeId> {
        self.expect_tokens(name, x)?;
        let width = self.nodes[x.0].width;
        self.expect(name, "length of the weight", width, self.vectors[weight.0].len())?;
        Ok(self.push(name, Op::RmsNorm { weight, eps, add: false }, vec![x], width, rows))
    }

    /// As [`rms_norm`](Self::rms_norm), about the rows' means and with an offset.
    pub fn layer_norm(
        &mut self,
        name: &str,
        x: NodeId,
        [weight, bias]: [VectorId; 2],
        eps: f32,
        rows: Rows,
    ) -> Result<NodeId> {
        self.expect_tokens(name, x)?;
        let width = self.nodes[x.0].width;
        self.expect(name, "length of the weight", width, self.vectors[weight.0].len())?;
        self.expect(name, "length of the bias", width, self.vectors[bias.0].len())?;
        Ok(self.push(name, Op::LayerNorm { weight, bias, eps }, vec![x], width, rows))
    }

    /// Normalises q and k of `qkv`.
    pub fn head_norm(&mut self, name: &str, qkv: NodeId, norm: HeadNorm, heads: Heads) -> Result<NodeId> {
        self.expect_tokens(name, qkv)?;
        let width = (heads.heads + 2 * heads.kv_heads) * heads.head_dim;
        self.expect(name, "width of q, k, v", width, self.nodes[qkv.0].width)?;
        for (vector, count) in [(norm.q, heads.heads), (norm.k, heads.kv_heads)] {
            let (len, all) = (self.vectors[vector.0].len(), count * heads.head_dim);
            if len != all && (len != heads.head_dim || norm.spans == Spans::All) {
                return Err(Error::shape(name, format!("{len} factors for {count} heads")));
            }
        }
        Ok(self.push(name, Op::HeadNorm { norm, heads }, vec![qkv], width, Rows::Tokens))
    }

    /// W x + bias.
    pub fn linear(
        &mut self,
        name: &str,
        x: NodeId,
        weight: WeightId,
        bias: Option<VectorId>,
    ) -> Result<NodeId> {
        let (width, rows) = (self.nodes[x.0].width, self.nodes[x.0].rows);
        let spec = &self.weights[weight.0];
        self.expect(name, "columns of the weight", width, spec.cols)?;
        if let Some(bias) = bias {
            self.expect(name, "length of the bias", spec.rows, self.vectors[bias.0].len())?;
        }
        let out = spec.rows;
        Ok(self.push(name, Op::Linear { weight, bias }, vec![x], out, rows))
    }

    /// Rotates q and k by the first rotation and appends k and v to a new cache; answers q.
    pub fn rope_kv(&mut self, name: &str, qkv: NodeId, heads: Heads) -> Result<NodeId> {
        self.rope_kv_by(name, qkv, heads, Some(RopeId(0)))
    }

    /// As [`rope_kv`](Self::rope_kv), by any rotation, or without turning anything.
    pub fn rope_kv_by(
        &mut self,
        name: &str,
        qkv: NodeId,
        heads: Heads,
        rope: Option<RopeId>,
    ) -> Result<NodeId> {
        self.expect_tokens(name, qkv)?;
        let Heads { heads: n, kv_heads, head_dim } = heads;
        let rotated = self.rotated(rope);
        if kv_heads == 0 || !n.is_multiple_of(kv_heads) {
            return Err(Error::shape(
                name,
                format!("{n} query heads are no multiple of {kv_heads} KV heads"),
            ));
        }
        if !(2..=256).contains(&head_dim) || !head_dim.is_multiple_of(2) || rotated > head_dim {
            return Err(Error::shape(
                name,
                format!("head_dim {head_dim} with {rotated} rotated: expected even and at most 256"),
            ));
        }
        self.expect(name, "width of q, k, v", (n + 2 * kv_heads) * head_dim, self.nodes[qkv.0].width)?;
        self.caches.push(heads);
        let op = Op::RopeKv { layer: self.caches.len() - 1, heads, rope, norm: None };
        Ok(self.push(name, op, vec![qkv], n * head_dim, Rows::Tokens))
    }

    /// Attention of `q`, as [`rope_kv`](Self::rope_kv) answered it, to all positions.
    pub fn attention(&mut self, name: &str, q: NodeId, scale: f32) -> Result<NodeId> {
        self.attention_by(name, q, Scores::plain(scale))
    }

    /// As [`attention`](Self::attention), with other scores.
    pub fn attention_by(&mut self, name: &str, q: NodeId, scores: Scores) -> Result<NodeId> {
        if scores.window == Some(0) {
            return Err(Error::shape(name, "a window of no positions"));
        }
        let Op::RopeKv { layer, heads, .. } = self.nodes[q.0].op else {
            return Err(Error::shape(name, "the input must be a rope_kv"));
        };
        let width = self.nodes[q.0].width;
        Ok(self.push(name, Op::Attention { layer, heads, scores }, vec![q], width, Rows::Tokens))
    }

    /// The `chosen` experts with the largest of the logits `x`, and their weights.
    pub fn route(&mut self, name: &str, x: NodeId, chosen: usize, normalised: bool) -> Result<NodeId> {
        self.expect_tokens(name, x)?;
        let experts = self.nodes[x.0].width;
        if !(1..=experts).contains(&chosen) || experts > MOST_EXPERTS {
            let message =
                format!("{chosen} of {experts} experts: expected 1 to all of at most {MOST_EXPERTS}");
            return Err(Error::shape(name, message));
        }
        Ok(self.push(name, Op::Route { chosen, normalised }, vec![x], 2 * chosen, Rows::Tokens))
    }

    /// W x by each expert of `routes`; x is the same for all of them, or a piece for each.
    pub fn expert_linear(
        &mut self,
        name: &str,
        x: NodeId,
        routes: NodeId,
        weight: WeightId,
    ) -> Result<NodeId> {
        self.expect_tokens(name, x)?;
        let (Op::Route { chosen, .. }, logits) = (&self.nodes[routes.0].op, self.nodes[routes.0].inputs[0])
        else {
            return Err(Error::shape(name, "the routes must be a route"));
        };
        let (node, spec) = (&self.nodes[x.0], &self.weights[weight.0]);
        self.expect(name, "matrices of the weight", self.nodes[logits.0].width, spec.matrices)?;
        if node.pieces != 1 {
            self.expect(name, "pieces of the input", *chosen, node.pieces)?;
        }
        self.expect(name, "columns of the weight", node.width / node.pieces, spec.cols)?;
        let width = chosen * spec.matrix_rows();
        let op = Op::ExpertLinear { weight, norm: None, out: Out::Store };
        Ok(self.push(name, op, vec![x, routes], width, Rows::Tokens))
    }

    /// The sum of what the experts of `routes` computed, weighted.
    pub fn combine(&mut self, name: &str, x: NodeId, routes: NodeId) -> Result<NodeId> {
        let Op::Route { chosen, .. } = self.nodes[routes.0].op else {
            return Err(Error::shape(name, "the routes must be a route"));
        };
        self.expect(name, "pieces of the input", chosen, self.nodes[x.0].pieces)?;
        let width = self.nodes[x.0].width / chosen;
        Ok(self.push(name, Op::Combine { add: false }, vec![x, routes], width, Rows::Tokens))
    }

    /// act(gate) up of alternating gates and ups.
    pub fn glu(&mut self, name: &str, x: NodeId, act: Nonlinearity) -> Result<NodeId> {
        self.expect_tokens(name, x)?;
        let width = self.nodes[x.0].width;
        if !width.is_multiple_of(2) {
            return Err(Error::shape(name, format!("the width {width} is not even")));
        }
        Ok(self.push(name, Op::Glu(act), vec![x], width / 2, Rows::Tokens))
    }

    /// act(x).
    pub fn activate(&mut self, name: &str, x: NodeId, act: Nonlinearity) -> NodeId {
        let (width, rows) = (self.nodes[x.0].width, self.nodes[x.0].rows);
        self.push(name, Op::Activate(act), vec![x], width, rows)
    }

    /// cap tanh(x / cap).
    pub fn soft_cap(&mut self, name: &str, x: NodeId, cap: f32) -> NodeId {
        let (width, rows) = (self.nodes[x.0].width, self.nodes[x.0].rows);
        self.push(name, Op::SoftCap { cap }, vec![x], width, rows)
    }

    /// a + b.
    pub fn add(&mut self, name: &str, a: NodeId, b: NodeId) -> Result<NodeId> {
        self.add_scaled(name, a, b, 1.0)
    }

    /// a + b, where both have rows of the same kind.
    fn add_rows(&mut self, name: &str, a: NodeId, b: NodeId) -> Result<NodeId> {
        let (width, rows) = (self.nodes[a.0].width, self.nodes[a.0].rows);
        self.expect(name, "width of the second operand", width, self.nodes[b.0].width)?;
        Ok(self.push(name, Op::Add { scale: 1.0 }, vec![a, b], width, rows))
    }

    /// a + scale b.
    pub fn add_scaled(&mut self, name: &str, a: NodeId, b: NodeId, scale: f32) -> Result<NodeId> {
        let width = self.nodes[a.0].width;
        self.expect(name, "width of the second operand", width, self.nodes[b.0].width)?;
        self.expect_tokens(name, a)?;
        self.expect_tokens(name, b)?;
        Ok(self.push(name, Op::Add { scale }, vec![a, b], width, Rows::Tokens))
    }

    /// The values of each row of `x` in another order.
    pub fn permute(&mut self, name: &str, x: NodeId, order: VectorId) -> Result<NodeId> {
        let (width, rows) = (self.nodes[x.0].width, self.nodes[x.0].rows);
        self.expect(name, "length of the order", width, self.vectors[order.0].len())?;
        Ok(self.push(name, Op::Permute { order }, vec![x], width, rows))
    }

    /// The same graph with B (A x) added to those products W x for which `factors` has an A and a B.
    pub fn with_additions(
        &self,
        mut factors: impl FnMut(&str, &WeightSpec) -> Result<Option<(WeightSpec, WeightSpec)>>,
    ) -> Result<Self> {
        let mut graph = Self { nodes: Vec::new(), ..self.clone() };
        let mut places: Vec<NodeId> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let mut node = node.clone();
            node.inputs.iter_mut().for_each(|input| *input = places[input.0]);
            let found = match node.op {
                Op::Linear { weight, .. } => factors(&node.name, &self.weights[weight.0])?,
                _ => None,
            };
            let (name, mut x) = (node.name.clone(), node.inputs.first().copied());
            if found.is_some() {
                // The sum has the name.
                node.name.push_str(".base");
            }
            graph.nodes.push(node);
            if let Some(((a, b), x)) = found.zip(x.as_mut()) {
                // A knows the columns in their own order.
                if let Op::Permute { .. } = graph.nodes[x.0].op {
                    *x = graph.nodes[x.0].inputs[0];
                }
                let y = NodeId(graph.nodes.len() - 1);
                let (a, b) = (graph.weight(a)?, graph.weight(b)?);
                let low = graph.linear(&format!("{name}.lora_a"), *x, a, None)?;
                let low = graph.linear(&format!("{name}.lora_b"), low, b, None)?;
                graph.add_rows(&name, y, low)?;
            }
            places.push(NodeId(graph.nodes.len() - 1));
        }
        Ok(graph)
    }

    /// The same graph with the inputs of those matrices permuted that `order` has an order for.
    pub fn with_ordered_inputs(
        &self,
        order: impl Fn(&WeightSpec) -> Result<Option<VectorSpec>>,
    ) -> Result<Self> {
        let mut graph = Self { nodes: Vec::new(), ..self.clone() };
        let mut places = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let mut node = node.clone();
            node.inputs.iter_mut().for_each(|input| *input = places[input.0]);
            if let Op::Linear { weight, .. } = node.op
                && let Some(spec) = order(&self.weights[weight.0])?
            {
                let order = graph.vector(spec);
                node.inputs[0] = graph.permute(&format!("{}_order", node.name), node.inputs[0], order)?;
            }
            graph.nodes.push(node);
            places.push(NodeId(graph.nodes.len() - 1));
        }
        Ok(graph)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Part, RowOrder};

    fn part(rows: usize) -> Part {
        Part { tensor: "t".into(), rows, order: RowOrder::Stored, within: None }
    }

    fn matrix(rows: usize, cols: usize) -> WeightSpec {
        WeightSpec { name: "w".into(), rows, cols, parts: vec![part(rows)], interleaved: false, matrices: 1 }
    }

    fn graph() -> (Graph, NodeId) {
        let mut g = Graph::new(Rope::plain(1e4, 8));
        let table = g.weight(matrix(10, 16)).unwrap();
        let x = g.embed("x", table);
        (g, x)
    }

    #[test]
    fn a_linear_of_the_wrong_width_is_refused() {
        let (mut g, x) = graph();
        let w = g.weight(matrix(4, 15)).unwrap();
        let error = g.linear("y", x, w, None).unwrap_err().to_string();
        assert_eq!(error, "y: columns of the weight: expected 16, found 15");
    }

    #[test]
    fn a_bias_of_the_wrong_length_is_refused() {
        let (mut g, x) = graph();
        let w = g.weight(matrix(4, 16)).unwrap();
        let b = g.vector(VectorSpec {
            name: "b".into(),
            parts: vec![part(5)],
            interleaved: false,
            shift: 0.0,
            scale: 1.0,
        });
        assert!(g.linear("y", x, w, Some(b)).unwrap_err().to_string().contains("length of the bias"));
    }

    #[test]
    fn heads_that_do_not_divide_are_refused() {
        let (mut g, x) = graph();
        let heads = Heads { heads: 3, kv_heads: 2, head_dim: 8 };
        assert!(g.rope_kv("q", x, heads).unwrap_err().to_string().contains("no multiple"));
    }

    #[test]
    fn parts_that_do_not_sum_up_are_refused() {
        let (mut g, _) = graph();
        let spec = WeightSpec { parts: vec![part(3)], ..matrix(4, 16) };
        assert!(g.weight(spec).is_err());
    }

    #[test]
    fn rows_of_outputs_go_into_nothing_that_needs_all_tokens() {
        let (mut g, x) = graph();
        let norm = g.vector(VectorSpec {
            name: "n".into(),
            parts: vec![part(16)],
            interleaved: false,
            shift: 0.0,
            scale: 1.0,
        });
        let y = g.rms_norm("y", x, norm, 1e-5, Rows::Outputs).unwrap();
        assert!(g.rms_norm("z", y, norm, 1e-5, Rows::Outputs).is_err());
        assert!(g.glu("z", y, Nonlinearity::Silu).is_err());
        assert!(g.add("z", x, y).is_err());
    }

    #[test]
    fn addends_of_different_widths_are_refused() {
        let (mut g, x) = graph();
        let w = g.weight(matrix(4, 16)).unwrap();
        let y = g.linear("y", x, w, None).unwrap();
        assert!(g.add("z", x, y).is_err());
    }
}
