//! Submits that keep the device busy for a bounded time: drivers reset a device that is busy for two
//! seconds, and nothing else is drawn meanwhile. How long a launch takes is learnt from what submits took.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::caps::AdapterKind;
use crate::error::Result;
use crate::gpu::context::{Context, lock};
use crate::gpu::pipelines::Pipeline;
use crate::plan::Traffic;

/// A submit takes no longer than this, if nothing else is asked for: a tenth of what the strictest
/// drivers allow, and five frames of a slow screen.
pub const DEFAULT_BOUND: Duration = Duration::from_millis(200);

/// Share of the bound that a submit is made for: what it will take is not known exactly.
const AIM: f64 = 0.5;

/// How fast a kernel is on this device, as a factor of the time that [`guess`] expects.
#[derive(Debug)]
pub struct Speed(AtomicU32);

impl Default for Speed {
    /// A speed that was never measured.
    fn default() -> Self {
        Self(AtomicU32::new(0))
    }
}

impl Speed {
    fn known(&self) -> Option<f64> {
        let factor = f32::from_bits(self.0.load(Ordering::Relaxed));
        (factor > 0.0).then_some(f64::from(factor))
    }

    /// Moves towards what a submit took, as a factor of what was expected of it.
    fn learn(&self, ratio: f64) {
        let factor = match self.known() {
            None => ratio,
            // Several kernels share the blame: each takes part of it.
            Some(factor) => factor * ratio.sqrt().clamp(0.5, 2.0),
        };
        self.0.store((factor.clamp(1e-6, 1e6) as f32).to_bits(), Ordering::Relaxed);
    }
}

/// Seconds that a launch takes on a slow device of its kind: too long a guess costs a few submits at the
/// start, too short a one the device.
fn guess(kind: AdapterKind, traffic: Traffic) -> f64 {
    let (launch, bytes, flops) = match kind {
        AdapterKind::Cpu => (2e-5, 1e9, 5e9),
        _ => (1e-5, 1e10, 1e11),
    };
    launch + traffic.bytes() / bytes + traffic.flops / flops
}

/// A submit that the device may still be busy with.
struct UnderWay {
    pipelines: Arc<[Arc<Pipeline>]>,
    launches: Range<usize>,
    /// Seconds that it was expected to take.
    expected: f64,
    /// When it was about to be handed over, and when the host last looked: it was not done then, or just so.
    begun: Instant,
    looked: Instant,
    index: wgpu::SubmissionIndex,
}

/// What submits took so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Submits {
    /// How many.
    pub count: usize,
    /// Those that took longer than the bound, of the ones whose time is known.
    pub over: usize,
    /// Seconds of the longest.
    pub longest: f64,
}

#[derive(Default)]
struct State {
    under_way: VecDeque<UnderWay>,
    /// When the device was done with the last one, where that is known.
    free: Option<Instant>,
    submits: Submits,
}

/// What is under way on a device, and for how long it may be.
pub struct Pace {
    bound: f64,
    state: Mutex<State>,
}

impl Pace {
    pub fn new(bound: Duration) -> Self {
        Self { bound: bound.as_secs_f64(), state: Mutex::default() }
    }

    /// Seconds that a submit should take at most.
    pub fn aim(&self) -> f64 {
        self.bound * AIM
    }
}

/// What a submit is expected to take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expected {
    pub seconds: f64,
    /// Whether every kernel in it was measured before.
    pub measured: bool,
}

impl Context {
    /// What a launch of `pipeline` is expected to take.
    pub(super) fn expected(&self, pipeline: &Pipeline, traffic: Traffic) -> Expected {
        let known = pipeline.speed.known();
        let seconds = guess(self.adapter().caps.kind, traffic) * known.unwrap_or(1.0);
        Expected { seconds, measured: known.is_some() }
    }

    /// Hands a command buffer over, once the device is near enough to its end of the queue.
    pub(super) fn submit_paced(
        &self,
        commands: wgpu::CommandBuffer,
        pipelines: &Arc<[Arc<Pipeline>]>,
        launches: Range<usize>,
        expected: Expected,
    ) -> Result<wgpu::SubmissionIndex> {
        while self.queued() > self.pace().bound {
            self.observe(true)?;
        }
        let begun = Instant::now();
        let index = self.queue().submit([commands]);
        lock(&self.pace().state).under_way.push_back(UnderWay {
            pipelines: pipelines.clone(),
            launches,
            expected: expected.seconds,
            begun,
            looked: Instant::now(),
            index: index.clone(),
        });
        // What was never measured is, before more of it is asked for.
        while self.observe(!expected.measured)? {}
        Ok(index)
    }

    /// Seconds of work that the device was given and is not known to have done.
    fn queued(&self) -> f64 {
        lock(&self.pace().state).under_way.iter().map(|submit| submit.expected).sum()
    }

    /// What submits took so far.
    pub fn submits(&self) -> Submits {
        lock(&self.pace().state).submits
    }

    /// Takes note of the oldest submit if it is done, or waits for it. Answers whether it was noted.
    pub(super) fn observe(&self, wait: bool) -> Result<bool> {
        let state = &self.pace().state;
        let Some(mut submit) = lock(state).under_way.pop_front() else { return Ok(false) };
        let mut exact = false;
        if !self.done(&submit.index, Some(Duration::ZERO))? {
            if !wait {
                submit.looked = Instant::now();
                lock(state).under_way.push_front(submit);
                return Ok(false);
            }
            self.done(&submit.index, None)?;
            exact = true;
        }
        let done = Instant::now();
        let state = &mut *lock(state);
        let start = state.free.map_or(submit.begun, |free| free.max(submit.begun));
        let seconds = (done - start).as_secs_f64();
        // A host that looks late only learns that it took no longer than this.
        exact |= (done - submit.looked).as_secs_f64() <= seconds / 4.0;
        state.free = exact.then_some(done);
        state.submits.count += 1;
        if exact {
            state.submits.over += usize::from(seconds > self.pace().bound);
            state.submits.longest = state.submits.longest.max(seconds);
        }
        if exact || seconds < submit.expected {
            let ratio = seconds / submit.expected.max(1e-9);
            submit.pipelines[submit.launches].iter().for_each(|p| p.speed.learn(ratio));
        }
        Ok(true)
    }

    /// Whether the device is done with a submit, after waiting for so long, or until it is.
    pub(super) fn done(&self, index: &wgpu::SubmissionIndex, timeout: Option<Duration>) -> Result<bool> {
        match self.device().poll(wgpu::PollType::Wait { submission_index: Some(index.clone()), timeout }) {
            Ok(_) => Ok(true),
            Err(wgpu::PollError::Timeout) => Ok(false),
            Err(error) => Err(self.failed("waiting for the device", &error)),
        }
    }
}
