//! Buffers for activations: each node's result gets a slot from its launch to its last use,
//! and slots are used again. One buffer a slot, since a graphics API tracks usage per buffer.

use crate::graph::{Graph, NodeId, Op};
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
    match graph.nodes[node].op {
        Op::LinearAdd { .. } => graph.nodes[node].inputs.get(1).copied(),
        _ => None,
    }
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
            Some(input) => memory.slot[input.0],
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
