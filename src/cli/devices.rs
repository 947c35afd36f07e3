//! `wgllama devices`

use std::io::Write;

use wgllama::caps::AdapterKind;
use wgllama::gpu::{AdapterReport, list_adapters};

use super::{Outcome, tell};

#[derive(clap::Args)]
pub struct Args {}

const MIB: u64 = 1 << 20;

pub fn run(_: &Args) -> Outcome {
    let adapters = list_adapters()?;
    let mut out = std::io::stdout().lock();
    for adapter in &adapters {
        let mark = if adapter.index == 0 { '*' } else { ' ' };
        write!(out, "{mark} {}: ", adapter.index)?;
        describe(&mut out, adapter)?;
    }
    writeln!(out, "* is used unless --device names another")?;
    if let Some(picked) = adapters.first().filter(|a| a.caps.kind == AdapterKind::Cpu) {
        tell(format_args!("note: no GPU was found; {} runs on the CPU", picked.name));
    }
    Ok(())
}

/// Name, driver, limits and features of an adapter.
pub(super) fn describe(out: &mut dyn Write, adapter: &AdapterReport) -> std::io::Result<()> {
    let caps = &adapter.caps;
    let subgroup = match caps.subgroup {
        Some((min, max)) if min == max => format!("subgroups of {min}"),
        Some((min, max)) => format!("subgroups of {min} to {max}"),
        None => "no subgroups".to_string(),
    };
    let with = |has: bool, name: &str| if has { name.to_string() } else { format!("no {name}") };
    writeln!(out, "{}", adapter.name)?;
    writeln!(out, "     {}, {}, {}", caps.kind, adapter.backend, adapter.driver)?;
    writeln!(
        out,
        "     buffer {} MiB, binding {} MiB, uniform {} KiB, workgroup {} KiB and {} invocations",
        caps.max_buffer / MIB,
        caps.max_storage_binding / MIB,
        caps.max_uniform_binding >> 10,
        caps.max_workgroup_memory >> 10,
        caps.max_invocations
    )?;
    writeln!(
        out,
        "     {subgroup}, {}, {}",
        with(caps.shader_f16, "f16"),
        with(caps.timestamps, "timestamps")
    )
}
