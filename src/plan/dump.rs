//! A plan as text: a line a launch, with the bytes of weights that it reads.

use std::fmt;

use crate::plan::{Plan, Resource};

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot(s) => write!(f, "slot{}", s.0),
            Self::Quants { weight, shard } => write!(f, "w{}.{shard}", weight.0),
            Self::Scales { weight, shard } => write!(f, "s{}.{shard}", weight.0),
            Self::Vector(v) => write!(f, "v{}", v.0),
            Self::Rope(0) => f.write_str("rope"),
            Self::Rope(rope) => write!(f, "rope{rope}"),
            Self::Keys(layer) => write!(f, "k{layer}"),
            Self::Values(layer) => write!(f, "v{layer}"),
            Self::Choices => f.write_str("choices"),
            Self::Counts => f.write_str("counts"),
            Self::Next => f.write_str("next"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "plan for {} tokens, {} outputs, {} cache: {} launches, {:.1} MB of weights, {} slots of {:.2} MB",
            self.options.max_tokens,
            self.options.max_outputs,
            self.options.kv,
            self.launches.len(),
            self.weight_bytes() as f64 / 1e6,
            self.slots.len(),
            self.slot_bytes() as f64 / 1e6,
        )?;
        for (i, launch) in self.launches.iter().enumerate() {
            write!(f, "#{i} {} {} :", launch.dispatch.variant, launch.name)?;
            for (n, binding) in launch.bindings.iter().enumerate() {
                write!(f, "{}{binding}", if n == 0 { " " } else { ", " })?;
            }
            write!(f, " {}", launch.dispatch.grid)?;
            let bytes = launch.weight_bytes_of(self.options.max_tokens);
            if bytes > 0 {
                write!(f, " {:.2} MB", bytes as f64 / 1e6)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
