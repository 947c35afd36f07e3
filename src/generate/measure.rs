//! What the next step of a session would cost, launch by launch. Nothing is fed: what a
//! measured step computes is thrown away.

use std::time::Duration;

use crate::error::Result;
use crate::generate::{Group, Session};
use crate::gpu::{Executable, StepTables};
use crate::graph::Batch;
use crate::plan::{Launch, Traffic};

/// One launch of a measured step.
#[derive(Debug, Clone, PartialEq)]
pub struct Timed {
    /// The launch.
    pub launch: Launch,
    /// Seconds on the device.
    pub seconds: f64,
    /// What it had to move and to compute.
    pub traffic: Traffic,
}

fn profile(run: &mut Executable, batch: &Batch, tables: StepTables<'_>) -> Result<Vec<Timed>> {
    let seconds = pollster::block_on(run.profile(batch, tables))?;
    let timed = |(launch, seconds): (&Launch, f64)| Timed {
        launch: launch.clone(),
        seconds,
        traffic: launch.traffic(batch),
    };
    Ok(run.plan().launches.iter().zip(seconds).map(timed).collect())
}

impl Session {
    /// Times each launch of the step that would feed `ids` (at most a chunk) next. An error
    /// where the adapter has no timestamps.
    pub fn profile(&mut self, ids: &[u32]) -> Result<Vec<Timed>> {
        let (run, batch, tables) = self.next_step(ids)?;
        profile(run, &batch, tables)
    }

    /// The CPU's time to encode that step: see [`Executable::encode_time`].
    pub fn encode_time(&mut self, ids: &[u32]) -> Result<Duration> {
        let (run, batch, tables) = self.next_step(ids)?;
        run.encode_time(&batch, tables)
    }
}

impl Group {
    /// Times each launch of the step that would feed one of `ids` to each sequence next. An
    /// error where the adapter has no timestamps.
    pub fn profile(&mut self, ids: &[u32]) -> Result<Vec<Timed>> {
        let (run, batch, tables) = self.next_step(ids)?;
        profile(run, &batch, tables)
    }

    /// The CPU's time to encode that step: see [`Executable::encode_time`].
    pub fn encode_time(&mut self, ids: &[u32]) -> Result<Duration> {
        let (run, batch, tables) = self.next_step(ids)?;
        run.encode_time(&batch, tables)
    }
}
