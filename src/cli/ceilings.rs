//! What an adapter can do at best, measured: the copy of a large buffer, and multiply-adds. On a software adapter,
//! whose copy waits for instructions and not for memory, memory as the host reads it.

use std::time::Instant;

use wgllama::caps::AdapterKind;
use wgllama::gpu::{Buffers, Executable, StepTables};
use wgllama::graph::Batch;
use wgllama::kernels::{Dispatch, probe_copy, probe_fma};
use wgllama::plan::{Launch, Plan, Resource, SlotId};
use wgllama::{Context, Result, host};

/// The two ceilings.
#[derive(Debug, Clone, Copy)]
pub struct Ceilings {
    /// Bytes per second that a copy reads and writes, or on a software adapter that the host reads, if that is more.
    pub copy: f64,
    /// f32 operations per second; a multiply-add is two.
    pub flops: f64,
}

/// Runs are repeated for at least so long, in seconds, and the fastest counts.
const LEAST: f64 = 0.3;

impl Ceilings {
    /// Measures both.
    pub fn measure(context: &Context) -> Result<Self> {
        // Far beyond any cache, and below every adapter's limit.
        let copied = 24 << 20;
        let seconds = fastest(context, copied, probe_copy::select(copied, context.caps()))?;
        let mut copy = copied as f64 * 8.0 / seconds;
        if context.caps().kind == AdapterKind::Cpu {
            copy = copy.max(host::read_rate());
        }
        // A software adapter takes as long for a few as a GPU for many.
        let values = if context.caps().kind == AdapterKind::Cpu { 1 << 16 } else { 1 << 18 };
        let seconds = fastest(context, values, probe_fma::select(values, context.caps()))?;
        let flops = values as f64 * probe_fma::FLOPS as f64 / seconds;
        Ok(Self { copy, flops })
    }
}

/// The least time of a probe over `floats` values, in seconds: of one of several launches in a
/// submit, by the device's clock if it has one.
fn fastest(context: &Context, floats: usize, dispatch: Dispatch) -> Result<f64> {
    const LAUNCHES: usize = 4;
    let (x, y) = (SlotId(0), SlotId(1));
    let launch = Launch {
        name: "probe".to_string(),
        dispatch,
        bindings: vec![Resource::Slot(x), Resource::Slot(y)],
        weight_bytes: 0,
        work: Default::default(),
    };
    let plan = Plan::bare(vec![launch; LAUNCHES], vec![floats; 2], 1);
    let buffers = Buffers { weights: &[], vectors: &[], ropes: &[], keys: &[], values: &[], choices: None };
    let mut run = Executable::bind(context, plan, buffers, 1, 1)?;
    let batch = Batch::sequence(&[0], 0, 0);
    let (mut best, mut total) = (f64::INFINITY, 0.0);
    // The first run compiles.
    for i in 0.. {
        let tables = [vec![0]];
        let seconds = if context.caps().timestamps {
            pollster::block_on(run.time(&batch, StepTables(&tables), 0..LAUNCHES))?
        } else {
            let start = Instant::now();
            run.run(&batch, StepTables(&tables))?;
            context.wait()?;
            start.elapsed().as_secs_f64()
        };
        if i > 0 {
            best = best.min(seconds);
            total += seconds;
        }
        if total > LEAST && i > 3 {
            break;
        }
    }
    Ok(best / LAUNCHES as f64)
}
