//! Buffers for activations: each node's result gets a slot from its launch to its last use,
//! and slots are used again. One buffer a slot, since a graphics API tracks usage per buffer.

use crate::graph::{Graph, NodeId};
use crate::plan::SlotId;

/// The slot of each node, and the size of each slot in floats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Slots by node.
    pub slot: Vec<SlotId>,
    /// Sizes in floats.
    pub sizes: Vec<usize>,
}

/// The input whose slot the node's result takes, because it is computed in place.
fn in_place(graph: &Graph, node: usize) -> Option<NodeId> {
    let node = &graph.nodes[node];
    node.inputs.get(1).copied().filter(|_| node.op.adds_in_place())
}

/// Assigns slots. `size` is what a node's result needs, in floats; results of nodes for which
/// `kept` holds are never overwritten, nor is the last node's.
pub fn assign(graph: &Graph, size: impl Fn(usize) -> usize, kept: impl Fn(usize) -> bool) -> Memory {
    let n = graph.nodes.len();
    let mut last_use: Vec<usize> = (0..n).collect();
    for (i, node) in graph.nodes.iter().enumerate() {
        for input in &node.inputs {
            last_use[input.0] = i;
        }
    }
    for (i, last) in last_use.iter_mut().enumerate() {
        if kept(i) || i + 1 == n {
            *last = usize::MAX;
        }
    }
    let mut memory = Memory { slot: Vec::with_capacity(n), sizes: Vec::new() };
    let mut free: Vec<SlotId> = Vec::new();
    for i in 0..n {
        let slot = match in_place(graph, i) {
            Some(input) => {
                let slot = memory.slot[input.0];
                memory.sizes[slot.0] = memory.sizes[slot.0].max(size(i));
                slot
            }
            None => take(&mut memory.sizes, &mut free, size(i)),
        };
        memory.slot.push(slot);
        // Inputs that die here are free from the next launch on, not for this one's result.
        let mut inputs = graph.nodes[i].inputs.clone();
        inputs.dedup();
        for input in inputs {
            if last_use[input.0] == i && memory.slot[input.0] != slot {
                free.push(memory.slot[input.0]);
            }
        }
    }
    memory
}

/// The smallest free slot that is large enough, else the largest one, grown, else a new one.
fn take(sizes: &mut Vec<usize>, free: &mut Vec<SlotId>, need: usize) -> SlotId {
    let fits = free.iter().enumerate().filter(|(_, s)| sizes[s.0] >= need).min_by_key(|(_, s)| sizes[s.0]);
    let best = fits.or_else(|| free.iter().enumerate().max_by_key(|(_, s)| sizes[s.0]));
    match best.map(|(at, _)| at) {
        Some(at) => {
            let slot = free.swap_remove(at);
            sizes[slot.0] = sizes[slot.0].max(need);
            slot
        }
        None => {
            sizes.push(need);
            SlotId(sizes.len() - 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::graph::{Part, Rope, RowOrder, VectorSpec, WeightSpec};
    use crate::kernels::tuning::Tiling;
    use crate::plan::fuse::{Target, fuse};
    use crate::shape::Rows;

    /// A random graph of linears, norms and sums over earlier nodes; sizes vary by node.
    fn graph(choices: &[(usize, usize, usize)]) -> Graph {
        let mut g = Graph::new(Rope::plain(1e4, 2));
        let part = Part { tensor: "t".into(), rows: 8, order: RowOrder::Stored, within: None };
        let spec = WeightSpec {
            name: "w".into(),
            rows: 8,
            cols: 8,
            parts: vec![part],
            interleaved: false,
            matrices: 1,
        };
        let w = g.weight(spec).unwrap();
        g.embed("n0", w);
        let part = Part { tensor: "v".into(), rows: 8, order: RowOrder::Stored, within: None };
        let v = g.vector(VectorSpec {
            name: "v".into(),
            parts: vec![part],
            interleaved: false,
            shift: 0.0,
            scale: 1.0,
        });
        for (i, &(kind, a, b)) in choices.iter().enumerate() {
            let n = g.nodes.len();
            let (a, b) = (NodeId(a % n), NodeId(b % n));
            let name = format!("n{}", i + 1);
            match kind % 3 {
                0 => g.add(&name, a, b),
                1 => g.rms_norm(&name, a, v, 1e-5, Rows::Tokens),
                _ => g.linear(&name, a, w, None),
            }
            .unwrap();
        }
        g
    }

    /// Runs the launches on symbols: every input must still hold its own node's result.
    fn check(graph: &Graph, keep: &[String]) {
        let size = |i: usize| 32 * (1 + i * 7 % 5);
        let kept = |i: usize| keep.contains(&graph.nodes[i].name);
        let memory = assign(graph, size, kept);
        let mut holds: Vec<Option<usize>> = vec![None; memory.sizes.len()];
        for (i, node) in graph.nodes.iter().enumerate() {
            for input in &node.inputs {
                assert_eq!(holds[memory.slot[input.0].0], Some(input.0), "input of {}", node.name);
            }
            let slot = memory.slot[i];
            let shared = node.inputs.iter().filter(|input| memory.slot[input.0] == slot).count();
            assert_eq!(
                shared,
                usize::from(in_place(graph, i).is_some()),
                "{} reads what it writes",
                node.name
            );
            assert!(memory.sizes[slot.0] >= size(i));
            holds[slot.0] = Some(i);
        }
        for i in (0..graph.nodes.len()).filter(|&i| kept(i) || i + 1 == graph.nodes.len()) {
            assert_eq!(holds[memory.slot[i].0], Some(i), "{} was to be kept", graph.nodes[i].name);
        }
    }

    proptest! {
        #[test]
        fn no_result_is_overwritten_before_its_last_use(
            choices in prop::collection::vec((0usize..3, 0usize..100, 0usize..100), 1..40),
            kept in prop::collection::vec(0usize..40, 0..4),
        ) {
            let graph = graph(&choices);
            let keep: Vec<String> =
                kept.iter().filter_map(|&k| graph.nodes.get(k)).map(|n| n.name.clone()).collect();
            check(&graph, &keep);
            check(&fuse(&graph, &Target { keep: &keep, layouts: &[], norm: true, head_norm: true, glu: true, caps: &crate::caps::Caps::nvidia(), attention_groups: 64, pages: 8, tiling: Some(Tiling { tokens: 64, groups: 128 }) }), &keep);
        }
    }

    #[test]
    fn a_chain_needs_two_slots() {
        let graph = graph(&[(2, 0, 0), (2, 1, 0), (2, 2, 0), (2, 3, 0)]);
        assert_eq!(assign(&graph, |_| 32, |_| false).sizes.len(), 2);
        assert_eq!(graph.nodes[0].rows, Rows::Tokens);
    }
}
