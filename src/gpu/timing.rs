//! What a step costs: the time of each launch on the device, and the CPU's time to encode.
//! Both for measuring only; a step that runs as usual is not touched.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::gpu::buffers::Buffer;
use crate::gpu::context::Context;
use crate::gpu::executable::{Executable, Feed, StepTables};
use crate::graph::Batch;

/// Launches that are timed in one submit: a query set has at most 4096 entries, and a launch
/// takes up to two.
const LAUNCHES: usize = 2048;

/// Timestamps: the set of them, and where they are resolved and read.
struct Stamps {
    set: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: Buffer,
    /// Whether they can be written between the launches of one pass.
    inside: bool,
}

impl Stamps {
    /// For up to `launches` launches.
    fn new(context: &Context, launches: usize) -> Result<Self> {
        let features = context.device().features();
        if !features.contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Err(Error::option("profile", "the adapter has no timestamps, or was opened without"));
        }
        let count = 2 * launches as u32;
        let set = context.device().create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let bytes = u64::from(count) * 8;
        let resolved = context.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("timestamps"),
            size: bytes,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let staging = context.staging("the timestamps", bytes)?;
        let inside = features.contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES);
        Ok(Self { set, resolved, staging, inside })
    }
}

impl Executable {
    /// Runs one step as [`run`](Self::run) does and answers the seconds that each launch took
    /// on the device; 0 for a launch that the batch leaves out. The logits can't be read.
    ///
    /// Launches are timed one after the other: between them the device waits for the one
    /// before, as it does for its results anyway. Where the adapter can't write timestamps
    /// inside of a pass, each launch is a pass of its own. An error where it has none at all.
    pub async fn profile(&mut self, batch: &Batch, tables: StepTables<'_>) -> Result<Vec<f64>> {
        let count = self.plan().launches.len();
        let stamps = Stamps::new(&self.context, count.min(LAUNCHES))?;
        self.write_step(batch, tables, Feed::Batch)?;
        let mut seconds = Vec::with_capacity(count);
        while seconds.len() < count {
            let start = seconds.len();
            let end = self.submit_end(start, count, batch).0.min(start + LAUNCHES);
            self.timed(start..end, batch, &stamps, &mut seconds).await?;
        }
        self.context.check()?;
        Ok(seconds)
    }

    /// Runs one step in one submit and answers the seconds that the launches of `range` took on
    /// the device, from the first to the last, with what lies between launches in a usual step
    /// and nothing else. An error where the adapter has no timestamps.
    pub async fn time(&mut self, batch: &Batch, tables: StepTables<'_>, range: Range<usize>) -> Result<f64> {
        let Stamps { set, resolved, staging, .. } = &Stamps::new(&self.context, 1)?;
        self.write_step(batch, tables, Feed::Batch)?;
        let mut encoder = self.context.device().create_command_encoder(&Default::default());
        let end = self.plan().launches.len();
        for (part, timed) in [(0..range.start, false), (range.clone(), true), (range.end..end, false)] {
            let writes = timed.then_some(wgpu::ComputePassTimestampWrites {
                query_set: set,
                beginning_of_pass_write_index: Some(0),
                end_of_pass_write_index: Some(1),
            });
            let mut pass = encoder
                .begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes: writes });
            self.encode(&mut pass, part, batch);
        }
        encoder.resolve_query_set(set, 0..2, resolved, 0);
        encoder.copy_buffer_to_buffer(resolved, 0, &staging.raw, 0, 16);
        self.context.queue().submit([encoder.finish()]);
        let period = f64::from(self.context.queue().get_timestamp_period()) * 1e-9;
        let mut seconds = 0.0;
        let read = |view: &[u8]| {
            let ticks: &[u64] = bytemuck::cast_slice(view);
            seconds = ticks[1].saturating_sub(ticks[0]) as f64 * period;
        };
        self.context.map(staging, 16, read).await?;
        self.context.check()?;
        Ok(seconds)
    }

    /// Runs the launches of `range` in one submit and appends their seconds.
    async fn timed(
        &self,
        range: Range<usize>,
        batch: &Batch,
        stamps: &Stamps,
        seconds: &mut Vec<f64>,
    ) -> Result<()> {
        let Stamps { set, resolved, staging, inside } = stamps;
        let (first, count) = (range.start, range.len());
        let mut encoder = self.context.device().create_command_encoder(&Default::default());
        let stamps = if *inside {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.write_timestamp(set, 0);
            for i in range {
                self.encode(&mut pass, i..i + 1, batch);
                pass.write_timestamp(set, (i - first + 1) as u32);
            }
            count + 1
        } else {
            for i in range {
                let at = 2 * (i - first) as u32;
                let writes = wgpu::ComputePassTimestampWrites {
                    query_set: set,
                    beginning_of_pass_write_index: Some(at),
                    end_of_pass_write_index: Some(at + 1),
                };
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: None,
                    timestamp_writes: Some(writes),
                });
                self.encode(&mut pass, i..i + 1, batch);
            }
            2 * count
        };
        let bytes = stamps as u64 * 8;
        encoder.resolve_query_set(set, 0..stamps as u32, resolved, 0);
        encoder.copy_buffer_to_buffer(resolved, 0, &staging.raw, 0, bytes);
        self.context.queue().submit([encoder.finish()]);
        let period = f64::from(self.context.queue().get_timestamp_period()) * 1e-9;
        let elapsed = |begin: u64, end: u64| end.saturating_sub(begin) as f64 * period;
        self.context
            .map(staging, bytes, |view| {
                let ticks: &[u64] = bytemuck::cast_slice(view);
                if *inside {
                    seconds.extend(ticks.windows(2).map(|t| elapsed(t[0], t[1])));
                } else {
                    seconds.extend(ticks.chunks_exact(2).map(|t| elapsed(t[0], t[1])));
                }
            })
            .await
    }

    /// The CPU's time for one step without running it: checking the batch, handing over the
    /// `Step` buffer, recording all launches and finishing the command buffer. Submitting,
    /// which some drivers use to run the step, is not included.
    pub fn encode_time(&mut self, batch: &Batch, tables: StepTables<'_>) -> Result<Duration> {
        let start = Instant::now();
        self.write_step(batch, tables, Feed::Batch)?;
        let mut next = 0;
        let count = self.plan().launches.len();
        while next < count {
            let (end, _) = self.submit_end(next, count, batch);
            let mut encoder = self.context.device().create_command_encoder(&Default::default());
            self.encode(&mut encoder.begin_compute_pass(&Default::default()), next..end, batch);
            drop(encoder.finish());
            next = end;
        }
        let taken = start.elapsed();
        // What was handed over waits for a submit.
        self.context.queue().submit([]);
        self.context.wait()?;
        Ok(taken)
    }
}
