//! Rewrite rules over a graph, one function each; every rule is tested against the reference
//! run of the graph that it started from.

use crate::graph::{Graph, NodeId, Op};

/// A rule: changes the graph and says how often it applied. Nodes named in `keep` stay.
pub type Rule = fn(&mut Graph, keep: &[String]) -> usize;

/// All rules with their names, in the order of application.
pub const RULES: [(&str, Rule); 1] = [("residual_into_linear", residual_into_linear)];

/// Applies all rules.
pub fn fuse(graph: &Graph, keep: &[String]) -> Graph {
    let mut graph = graph.clone();
    for (name, rule) in RULES {
        let times = rule(&mut graph, keep);
        log::debug!("fusion {name}: {times} times");
    }
    graph
}

/// `linear(x) + residual` becomes one launch that adds in place, where the sum is the only
/// user of the linear and the last of the residual.
fn residual_into_linear(graph: &mut Graph, keep: &[String]) -> usize {
    let mut times = 0;
    let mut at = 0;
    while at < graph.nodes.len() {
        if let Some((linear, residual)) = fusable(graph, NodeId(at), keep) {
            let Op::Linear { weight, bias } = graph.nodes[linear.0].op else { return times };
            let x = graph.nodes[linear.0].inputs[0];
            graph.nodes[at].op = Op::LinearAdd { weight, bias };
            graph.nodes[at].inputs = vec![x, residual];
            remove(graph, linear);
            times += 1;
        } else {
            at += 1;
        }
    }
    times
}

/// The linear and the residual of a sum that can be fused.
fn fusable(graph: &Graph, sum: NodeId, keep: &[String]) -> Option<(NodeId, NodeId)> {
    let node = &graph.nodes[sum.0];
    if node.op != Op::Add {
        return None;
    }
    let users = |of: NodeId| graph.nodes.iter().enumerate().filter(move |(_, n)| n.inputs.contains(&of));
    let kept = |of: NodeId| keep.contains(&graph.nodes[of.0].name);
    [(node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])].into_iter().find(
        |&(linear, residual)| {
            matches!(graph.nodes[linear.0].op, Op::Linear { .. })
                && linear != residual
            // In place, no launch may read the vector that it adds to.
            && graph.nodes[linear.0].inputs[0] != residual
                && !kept(linear)
                && !kept(residual)
                && users(linear).count() == 1
                && users(residual).all(|(i, _)| i <= sum.0)
            && !overwritten_before(graph, graph.nodes[linear.0].inputs[0], sum)
                && graph.nodes[residual.0].rows == node.rows
        },
    )
}

/// Whether a sum in place, before `node`, overwrites `x`: a linear can't move past that.
fn overwritten_before(graph: &Graph, x: NodeId, node: NodeId) -> bool {
    let in_place = |op: &Op| matches!(op, Op::LinearAdd { .. });
    graph.nodes[..node.0].iter().any(|n| in_place(&n.op) && n.inputs.get(1) == Some(&x))
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
