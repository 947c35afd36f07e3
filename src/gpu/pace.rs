//! Submits that keep the device busy for a bounded time: drivers reset a device that is busy for two
//! seconds, and nothing else is drawn meanwhile. How long a launch takes is learnt from what submits took.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
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

/// A submit that took fewer seconds than this says little of its kernels: a host hears of its end late by a
/// part of this.
const SHORT: f64 = 4e-3;

/// Submits that are not long are measured no more often than one in so many.
const SELDOM: usize = 16;

/// How fast a kernel is on this device, as a factor of the time that [`guess`] expects.
#[derive(Debug, Default)]
pub struct Speed {
    /// Zero until it was measured.
    factor: AtomicU32,
    /// The submit from which it was learnt last: a kernel may be launched often in one.
    submit: AtomicUsize,
}

impl Speed {
    fn known(&self) -> Option<f64> {
        let factor = f32::from_bits(self.factor.load(Ordering::Relaxed));
        (factor > 0.0).then_some(f64::from(factor))
    }

    /// Moves towards what a submit took, as a factor of what was expected of it. Short ones are mostly the way
    /// there and back, from which nothing follows for longer ones but that kernels are no slower.
    fn learn(&self, submit: usize, ratio: f64, short: bool) {
        if self.submit.swap(submit, Ordering::Relaxed) == submit {
            return;
        }
        let ratio = if short { ratio.min(1.0) } else { ratio };
        let factor = match self.known() {
            None => ratio,
            // Several kernels share the blame: each takes part of it.
            Some(factor) => factor * ratio.sqrt().clamp(0.5, 2.0),
        };
        self.factor.store((factor.clamp(1e-6, 1e6) as f32).to_bits(), Ordering::Relaxed);
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

/// What measured submits took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Submits {
    /// How many: those that are expected to be short are measured now and then only.
    pub count: usize,
    /// Those that took longer than the bound.
    pub over: usize,
    /// Seconds of the longest.
    pub longest: f64,
}

#[derive(Default)]
struct State {
    /// Submits that the device may still be busy with, and the seconds that each is expected to take.
    under_way: VecDeque<(Submission, f64)>,
    /// Submits so far.
    count: usize,
    /// Submits since one was measured.
    unmeasured: usize,
    submits: Submits,
}

/// A submit that can be waited for.
#[derive(Debug, Clone)]
pub struct Submission {
    index: wgpu::SubmissionIndex,
    number: usize,
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

    /// Whether every submit like this is measured.
    pub(super) fn always_measures(&self, expected: Expected) -> bool {
        !expected.measured || expected.seconds > self.aim() / 4.0
    }

    /// Whether to measure a submit, for which the device has to be idle before and is waited for afterwards:
    /// that is dear for short ones, which need it least.
    fn measures(&self, expected: Expected) -> bool {
        let mut state = lock(&self.state);
        state.unmeasured += 1;
        let due = state.unmeasured > SELDOM && expected.seconds > SHORT;
        let measures = due || self.always_measures(expected);
        if measures {
            state.unmeasured = 0;
        }
        measures
    }

    /// Takes note of a measured submit, and answers its number.
    fn note(&self, seconds: f64) -> usize {
        let submits = &mut lock(&self.state).submits;
        submits.count += 1;
        submits.over += usize::from(seconds > self.bound);
        submits.longest = submits.longest.max(seconds);
        submits.count
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

    /// Hands over the launches of `pipelines`, once what is under way takes no longer than the bound.
    pub(super) fn submit_paced(
        &self,
        commands: wgpu::CommandBuffer,
        pipelines: &[Arc<Pipeline>],
        expected: Expected,
    ) -> Result<Submission> {
        let pace = self.pace();
        let measures = pace.measures(expected);
        let most = if measures { 0.0 } else { pace.bound };
        while let Some(oldest) = self.oldest_beyond(most) {
            self.wait_for(&oldest)?;
        }
        let begun = Instant::now();
        let index = self.queue().submit([commands]);
        let number = {
            let mut state = lock(&pace.state);
            state.count += 1;
            state.count
        };
        let submission = Submission { index, number };
        if measures {
            self.wait_for(&submission)?;
            let seconds = begun.elapsed().as_secs_f64();
            log::trace!("{} launches took {seconds:.6} s of {:.6}", pipelines.len(), expected.seconds);
            let (submit, ratio) = (pace.note(seconds), seconds / expected.seconds.max(1e-9));
            pipelines.iter().for_each(|pipeline| pipeline.speed.learn(submit, ratio, seconds < SHORT));
        } else {
            lock(&pace.state).under_way.push_back((submission.clone(), expected.seconds));
        }
        Ok(submission)
    }

    /// The oldest submit that is under way, if all together are expected to take more than `most` seconds.
    fn oldest_beyond(&self, most: f64) -> Option<Submission> {
        let state = lock(&self.pace().state);
        let queued: f64 = state.under_way.iter().map(|(_, seconds)| seconds).sum();
        state.under_way.front().filter(|_| queued > most).map(|(submission, _)| submission.clone())
    }

    /// What measured submits took so far.
    pub fn submits(&self) -> Submits {
        lock(&self.pace().state).submits
    }

    /// Waits until the device is done with a submit, and so with all before it.
    ///
    /// There is no look without waiting: wgpu-core (30.0.2) panics where one thread looks while another waits.
    pub(super) fn wait_for(&self, submission: &Submission) -> Result<()> {
        let index = Some(submission.index.clone());
        let waited = self.device().poll(wgpu::PollType::Wait { submission_index: index, timeout: None });
        waited.map_err(|e| self.failed("waiting for the device", &e))?;
        lock(&self.pace().state).under_way.retain(|(other, _)| other.number > submission.number);
        Ok(())
    }

    /// Takes note that the device is done with all that it was given.
    pub(super) fn idle(&self) {
        lock(&self.pace().state).under_way.clear();
    }
}
