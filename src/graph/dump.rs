//! A graph as text, a line a node.

use std::fmt;

use crate::graph::{Graph, Op};

impl Op {
    /// The operation's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Embed { .. } => "embed",
            Self::RmsNorm { .. } => "rms_norm",
            Self::HeadNorm { .. } => "head_norm",
            Self::Linear { .. } => "linear",
            Self::RopeKv { .. } => "rope_kv",
            Self::Route { .. } => "route",
            Self::ExpertLinear { .. } => "expert_linear",
            Self::Combine { .. } => "combine",
            Self::Attention { .. } => "attention",
            Self::AttentionSplit { .. } => "attention_split",
            Self::AttentionMerge { .. } => "attention_merge",
            Self::Glu(act) => act.glu(),
            Self::Activate(act) => act.name(),
            Self::SoftCap { .. } => "soft_cap",
            Self::LayerNorm { .. } => "layer_norm",
            Self::Add { .. } => "add",
            Self::Permute { .. } => "permute",
            Self::FusedLinear { .. } => "fused_linear",
            Self::LinearSplit { .. } => "linear_split",
            Self::LinearMerge { .. } => "linear_merge",
        }
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, node) in self.nodes.iter().enumerate() {
            write!(f, "%{i} {} = {}(", node.name, node.op.name())?;
            for (j, input) in node.inputs.iter().enumerate() {
                write!(f, "{}%{}", if j == 0 { "" } else { ", " }, input.0)?;
            }
            match node.op {
                Op::Linear { weight, .. }
                | Op::FusedLinear { weight, .. }
                | Op::LinearSplit { weight, .. }
                | Op::ExpertLinear { weight, .. }
                | Op::Embed { table: weight, .. } => {
                    write!(f, " {}", self.weights[weight.0].name)?;
                }
                Op::RmsNorm { weight, .. } | Op::LayerNorm { weight, .. } => {
                    write!(f, " {}", self.vectors[weight.0].name)?
                }
                _ => {}
            }
            writeln!(f, ") [{:?}, {}]", node.rows, node.width)?;
        }
        Ok(())
    }
}
