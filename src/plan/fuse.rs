//! Rewrite rules over a graph, one function each; every rule is tested against the reference
//! run of the graph that it started from.

use crate::caps::Caps;
use crate::graph::{Graph, Node, NodeId, Op, Out, Spans, VectorId, WeightId};
use crate::kernels::tuning::Tiling;
use crate::kernels::{PAGE, attention, gemm_merge};
use crate::plan::WeightLayout;
use crate::plan::lower::sums_of;
use crate::shape::Rows;

/// What the rules are to respect.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Names of nodes that stay as they are.
    pub keep: &'a [String],
    /// How each matrix is cut.
    pub layouts: &'a [WeightLayout],
    /// Whether normalisation goes into the mat-vec that follows.
    pub norm: bool,
    /// Whether heads are normalised where they turn.
    pub head_norm: bool,
    /// Whether gating goes into the mat-vec before it.
    pub glu: bool,
    /// The adapter.
    pub caps: &'a Caps,
    /// Workgroups that attention should have; 0 never splits it.
    pub attention_groups: usize,
    /// Pages that a sequence may have.
    pub pages: usize,
    /// How products over many tokens divide their work, if they do it in tiles.
    pub tiling: Option<Tiling>,
}

/// A rule: changes the graph where it applies first, and says whether it did.
pub type Rule = fn(&mut Graph, &Target<'_>) -> bool;

/// All rules with their names, in the order of application.
pub const RULES: [(&str, Rule); 7] = [
    ("split_attention", split_attention),
    ("glu_into_linear", glu_into_linear),
    ("residual_into_linear", residual_into_linear),
    ("residual_into_rows", residual_into_rows),
    ("norm_into_linear", norm_into_linear),
    ("head_norm_into_rope", head_norm_into_rope),
    ("split_linear", split_linear),
];

/// Applies each rule for as long as it finds a place.
pub fn fuse(graph: &Graph, target: &Target<'_>) -> Graph {
    let mut graph = graph.clone();
    for (name, rule) in RULES {
        let mut times = 0;
        while rule(&mut graph, target) {
            times += 1;
        }
        log::debug!("fusion {name}: {times} times");
    }
    graph
}

/// A linear, plain or fused before.
#[derive(Clone, Copy)]
pub(crate) struct Linear {
    pub weight: WeightId,
    pub bias: Option<VectorId>,
    pub norm: Option<(VectorId, f32)>,
    pub out: Out,
}

impl Linear {
    pub fn of(node: &Node) -> Option<Self> {
        match node.op {
            Op::Linear { weight, bias } => Some(Self { weight, bias, norm: None, out: Out::Store }),
            Op::FusedLinear { weight, bias, norm, out } => Some(Self { weight, bias, norm, out }),
            _ => None,
        }
    }

    fn op(self) -> Op {
        Op::FusedLinear { weight: self.weight, bias: self.bias, norm: self.norm, out: self.out }
    }
}

/// `linear(x) + residual` becomes one launch that adds in place, where the sum is the only
/// user of the linear and the last of the residual.
fn residual_into_linear(graph: &mut Graph, target: &Target<'_>) -> bool {
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        if node.op != (Op::Add { scale: 1.0 }) {
            continue;
        }
        let [a, b] = [node.inputs[0], node.inputs[1]];
        let found = [(a, b), (b, a)].into_iter().find_map(|(linear, residual)| {
            let movable = movable(graph, target, linear, NodeId(at))?;
            let last = users(graph, residual).all(|user| user <= at);
            // In place, no launch may read the vector that it adds to.
            let apart = linear != residual && graph.nodes[linear.0].inputs[0] != residual;
            (last && apart && !kept(graph, target, residual)).then_some((linear, residual, movable))
        });
        if let Some((id, residual, linear)) = found {
            let x = graph.nodes[id.0].inputs[0];
            graph.nodes[at].op = Linear { out: Out::Add, ..linear }.op();
            graph.nodes[at].inputs = vec![x, residual];
            remove(graph, id);
            return true;
        }
    }
    false
}

/// The gating of a linear, its only user, becomes one launch, where gate and up rows alternate in
/// every shard.
fn glu_into_linear(graph: &mut Graph, target: &Target<'_>) -> bool {
    for at in 0..graph.nodes.len() {
        let Op::Glu(act) = graph.nodes[at].op else { continue };
        if !target.glu {
            continue;
        }
        let id = graph.nodes[at].inputs[0];
        let alone = users(graph, id).count() == 1 && !kept(graph, target, id);
        let fused = match graph.nodes[id.0].op {
            Op::ExpertLinear { weight, norm, out: Out::Store }
                if alone && !overwritten_before(graph, graph.nodes[id.0].inputs[0], NodeId(at)) =>
            {
                Some((weight, Op::ExpertLinear { weight, norm, out: Out::Glu(act) }))
            }
            _ => movable(graph, target, id, NodeId(at))
                .map(|linear| (linear.weight, Linear { out: Out::Glu(act), ..linear }.op())),
        };
        let Some((weight, op)) = fused else { continue };
        let layout = target.layouts.get(weight.0);
        let alternate = layout
            .is_some_and(|l| l.shards.iter().all(|s| s.interleaved && s.parts.len() == 2 * s.matrices.1));
        if alternate {
            graph.nodes[at].op = op;
            graph.nodes[at].inputs = graph.nodes[id.0].inputs.clone();
            remove(graph, id);
            return true;
        }
    }
    false
}

/// As [`residual_into_linear`], where what is added are normalised rows, or the sum of experts.
fn residual_into_rows(graph: &mut Graph, target: &Target<'_>) -> bool {
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        if node.op != (Op::Add { scale: 1.0 }) || node.rows != Rows::Tokens {
            continue;
        }
        let [a, b] = [node.inputs[0], node.inputs[1]];
        let found = [(a, b), (b, a)].into_iter().find_map(|(rows, residual)| {
            let op = match graph.nodes[rows.0].op {
                Op::RmsNorm { weight, eps, add: false } => Op::RmsNorm { weight, eps, add: true },
                Op::Combine { add: false } => Op::Combine { add: true },
                _ => return None,
            };
            let inputs = &graph.nodes[rows.0].inputs;
            let alone = users(graph, rows).count() == 1 && !kept(graph, target, rows);
            let whole = inputs.iter().all(|x| !overwritten_before(graph, *x, NodeId(at)));
            let last = users(graph, residual).all(|user| user <= at);
            let apart = rows != residual && !inputs.contains(&residual);
            (alone && whole && last && apart && !kept(graph, target, residual))
                .then_some((rows, residual, op))
        });
        if let Some((id, residual, op)) = found {
            let mut inputs = graph.nodes[id.0].inputs.clone();
            inputs.insert(1, residual);
            graph.nodes[at].op = op;
            graph.nodes[at].inputs = inputs;
            remove(graph, id);
            return true;
        }
    }
    false
}

/// Linears of normalised x read x and normalise on the way in, where nothing else uses the norm. Each
/// team sums the squares that it reads anyway.
fn norm_into_linear(graph: &mut Graph, target: &Target<'_>) -> bool {
    for at in (0..graph.nodes.len()).filter(|_| target.norm) {
        let node = &graph.nodes[at];
        let Op::RmsNorm { weight, eps, add: false } = node.op else { continue };
        let (id, x) = (NodeId(at), node.inputs[0]);
        let takes = |user: usize| {
            let node = &graph.nodes[user];
            let others = node.inputs.get(1..).unwrap_or_default();
            let linear = match node.op {
                Op::ExpertLinear { norm, .. } => norm.is_none(),
                _ => Linear::of(node).is_some_and(|l| l.norm.is_none()),
            };
            let apart = !others.contains(&id) && !others.contains(&x);
            linear && apart && node.inputs[0] == id && !overwritten_before(graph, x, NodeId(user))
        };
        let found: Vec<usize> = users(graph, id).collect();
        let all = !found.is_empty() && found.iter().all(|user| takes(*user));
        if !all || node.rows != Rows::Tokens || kept(graph, target, id) {
            continue;
        }
        for user in found {
            let node = &mut graph.nodes[user];
            let norm = Some((weight, eps));
            node.op = match (node.op.clone(), Linear::of(node)) {
                (Op::ExpertLinear { weight, out, .. }, _) => Op::ExpertLinear { weight, norm, out },
                (_, Some(linear)) => Linear { norm, ..linear }.op(),
                (other, None) => other,
            };
            node.inputs[0] = x;
        }
        remove(graph, id);
        return true;
    }
    false
}

/// Heads are normalised where they turn, where nothing else uses the norm.
fn head_norm_into_rope(graph: &mut Graph, target: &Target<'_>) -> bool {
    for at in (0..graph.nodes.len()).filter(|_| target.head_norm) {
        let Op::RopeKv { layer, heads, rope, norm: None } = graph.nodes[at].op else { continue };
        let id = graph.nodes[at].inputs[0];
        let Op::HeadNorm { norm, .. } = graph.nodes[id.0].op else { continue };
        let x = graph.nodes[id.0].inputs[0];
        let alone = users(graph, id).count() == 1 && !kept(graph, target, id);
        if norm.spans == Spans::Heads && !norm.centred && alone && !overwritten_before(graph, x, NodeId(at)) {
            graph.nodes[at].op = Op::RopeKv { layer, heads, rope, norm: Some(norm) };
            graph.nodes[at].inputs[0] = x;
            remove(graph, id);
            return true;
        }
    }
    false
}

/// Attention is shared by several workgroups for the same heads, and merged, where one for
/// each would leave the adapter idle. The merged result keeps the name.
fn split_attention(graph: &mut Graph, target: &Target<'_>) -> bool {
    for at in 0..graph.nodes.len() {
        let Op::Attention { layer, heads, scores } = graph.nodes[at].op else { continue };
        let groups = attention::groups(heads.heads, heads.kv_heads, heads.head_dim, target.caps);
        // A window touches a page more than it fills.
        let pages = scores.window.map_or(target.pages, |w| target.pages.min(w.div_ceil(PAGE) + 1));
        let splits = target.attention_groups.div_ceil(groups).min(pages);
        if splits < 2 {
            continue;
        }
        let merge = Node {
            op: Op::AttentionMerge { heads, scores, splits },
            inputs: vec![NodeId(at)],
            ..graph.nodes[at].clone()
        };
        let node = &mut graph.nodes[at];
        node.op = Op::AttentionSplit { layer, heads, scores, splits };
        node.name.push_str(".parts");
        node.width = heads.heads * splits * attention::part_values(heads.head_dim);
        insert(graph, NodeId(at + 1), merge);
        return true;
    }
    false
}

/// The columns of a linear are shared by several workgroups for the same tile, and the sums
/// merged, where the tiles alone would leave the adapter idle. The merged result keeps the
/// name. One with a bias stays: no model that is known has both few rows and a bias.
fn split_linear(graph: &mut Graph, target: &Target<'_>) -> bool {
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let plain = |l: &Linear| l.bias.is_none() && l.norm.is_none() && node.rows == Rows::Tokens;
        let Some((linear, tiling)) = Linear::of(node).filter(plain).zip(target.tiling) else { continue };
        let spec = &graph.weights[linear.weight.0];
        let splits = tiling.splits(spec.rows, spec.cols);
        if splits < 2 {
            continue;
        }
        let (weight, out) = (linear.weight, linear.out);
        let residual = node.inputs.get(1).copied();
        let inputs = std::iter::once(NodeId(at)).chain(residual).collect();
        let merge = Node { op: Op::LinearMerge { splits, out }, inputs, ..node.clone() };
        let node = &mut graph.nodes[at];
        node.op = Op::LinearSplit { weight, splits, out };
        node.inputs.truncate(1);
        node.name.push_str(".parts");
        node.width = splits * gemm_merge::part_values(node.width, sums_of(out));
        insert(graph, NodeId(at + 1), merge);
        return true;
    }
    false
}

/// The linear `id`, if nothing but `user` needs its sums and it can be computed there.
fn movable(graph: &Graph, target: &Target<'_>, id: NodeId, user: NodeId) -> Option<Linear> {
    let node = &graph.nodes[id.0];
    let linear = Linear::of(node).filter(|l| l.out == Out::Store)?;
    let alone = users(graph, id).count() == 1 && !kept(graph, target, id);
    (alone && !overwritten_before(graph, node.inputs[0], user)).then_some(linear)
}

/// The nodes that use `id`; one that does so twice counts once.
fn users(graph: &Graph, id: NodeId) -> impl Iterator<Item = usize> + '_ {
    graph.nodes.iter().enumerate().filter(move |(_, n)| n.inputs.contains(&id)).map(|(i, _)| i)
}

fn kept(graph: &Graph, target: &Target<'_>, id: NodeId) -> bool {
    target.keep.contains(&graph.nodes[id.0].name)
}

/// Whether a sum in place, before `node`, overwrites `x`: what reads x can't move past that.
fn overwritten_before(graph: &Graph, x: NodeId, node: NodeId) -> bool {
    graph.nodes[..node.0].iter().any(|n| n.op.adds_in_place() && n.inputs.get(1) == Some(&x))
}

/// Puts in a node that takes over the users of the one before it.
fn insert(graph: &mut Graph, id: NodeId, node: Node) {
    for input in graph.nodes.iter_mut().flat_map(|n| &mut n.inputs).filter(|input| input.0 + 1 >= id.0) {
        input.0 += 1;
    }
    graph.nodes.insert(id.0, node);
}

/// Takes a node that nobody uses out of the graph.
fn remove(graph: &mut Graph, id: NodeId) {
    graph.nodes.remove(id.0);
    for node in &mut graph.nodes {
        for input in &mut node.inputs {
            if input.0 > id.0 {
                input.0 -= 1;
            }
        }
    }
}
