//! Choosing tokens on the device: how each sequence chooses, what was chosen last, which the
//! next step reads there, and the ring through which the host hears of it later.

use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::gpu::buffers::Buffer;
use crate::gpu::context::{Context, lock};
use crate::gpu::pace::Submission;
use crate::kernels::sample::Choice;

/// A sequence's choice as `sample` leaves it: a token's record of the next step.
type Next = [u32; 4];

/// The outcome of mapping a staging buffer, once it is known.
type Answer = Arc<Mutex<Option<Result<(), wgpu::BufferAsyncError>>>>;

/// A choice on its way to the host.
struct Slot {
    staging: Buffer,
    rows: usize,
    submission: Option<Submission>,
    answer: Answer,
}

/// What choosing needs on the device, for the sequences of a cache.
pub struct Choices {
    context: Context,
    pub(super) records: Buffer,
    pub(super) counts: Buffer,
    pub(super) next: Buffer,
    ring: Vec<Slot>,
    /// Place of the oldest choice in the ring, and how many there are.
    oldest: usize,
    waiting: usize,
    sequences: usize,
    vocab: usize,
}

impl Choices {
    /// For `sequences` sequences, of which up to `waiting` steps may have chosen without the
    /// host having taken the ids.
    pub fn new(context: &Context, sequences: usize, vocab: usize, waiting: usize) -> Result<Self> {
        let help = "choose a smaller model or another device";
        let buffer = |what, bytes: usize| context.buffer(what, bytes as u64, help);
        let bytes = sequences * size_of::<Next>();
        let slot = |_| {
            let staging = context.staging("the chosen ids", bytes as u64)?;
            Ok(Slot { staging, rows: 0, submission: None, answer: Answer::default() })
        };
        Ok(Self {
            context: context.clone(),
            records: buffer("how to choose", sequences * size_of::<Choice>())?,
            counts: buffer("the counts of tokens", sequences * vocab * 4)?,
            next: buffer("the chosen tokens", bytes)?,
            ring: (0..waiting.max(1)).map(slot).collect::<Result<_>>()?,
            oldest: 0,
            waiting: 0,
            sequences,
            vocab,
        })
    }

    /// Sets how `sequence` chooses; `counts` of its tokens, one for each id, where penalties ask
    /// for them.
    pub fn set(&self, sequence: usize, choice: &Choice, counts: Option<&[u32]>) -> Result<()> {
        if sequence >= self.sequences || counts.is_some_and(|c| c.len() != self.vocab) {
            let message = format!("expected one of {} with {} counts", self.sequences, self.vocab);
            return Err(Error::shape("choices", message));
        }
        let at = (sequence * size_of::<Choice>()) as u64;
        self.context.write(&self.records, at, bytemuck::bytes_of(choice));
        if let Some(counts) = counts {
            let at = (sequence * self.vocab * 4) as u64;
            self.context.write(&self.counts, at, bytemuck::cast_slice(counts));
        }
        Ok(())
    }

    /// Steps whose ids were not taken yet.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether another step may choose before one is taken.
    pub fn has_room(&self) -> bool {
        self.waiting < self.ring.len()
    }

    /// Copies the choices of `rows` outputs to where the host can read them.
    pub(super) fn copy(&self, encoder: &mut wgpu::CommandEncoder, rows: usize) {
        let slot = &self.ring[(self.oldest + self.waiting) % self.ring.len()];
        let bytes = (rows * size_of::<Next>()) as u64;
        encoder.copy_buffer_to_buffer(&self.next.raw, 0, &slot.staging.raw, 0, bytes);
    }

    /// Asks for what was copied in `submission`.
    pub(super) fn submitted(&mut self, rows: usize, submission: Submission) {
        let at = (self.oldest + self.waiting) % self.ring.len();
        let slot = &mut self.ring[at];
        (slot.rows, slot.submission) = (rows, Some(submission));
        *lock(&slot.answer) = None;
        let answer = slot.answer.clone();
        let bytes = (rows * size_of::<Next>()) as u64;
        slot.staging.raw.map_async(wgpu::MapMode::Read, 0..bytes, move |result| {
            *lock(&answer) = Some(result);
        });
        self.waiting += 1;
    }

    /// Waits for the oldest step that was not taken, and writes what each of its outputs chose
    /// to `ids`. [`Choice::NOT_A_NUMBER`] stands for logits that are no numbers.
    pub fn take(&mut self, ids: &mut Vec<u32>) -> Result<()> {
        ids.clear();
        if self.waiting == 0 {
            return Err(Error::shape("choices", "no step is waiting"));
        }
        let at = self.oldest;
        self.oldest = (at + 1) % self.ring.len();
        self.waiting -= 1;
        let slot = &mut self.ring[at];
        let context = &self.context;
        let failed = |error: &dyn std::fmt::Display| context.failed("reading the chosen ids", error);
        if let Some(submission) = slot.submission.take() {
            context.wait_for(&submission)?;
        }
        context.check()?;
        match lock(&slot.answer).take() {
            Some(result) => result.map_err(|e| failed(&e))?,
            None => return Err(failed(&"the device did not answer")),
        }
        let bytes = (slot.rows * size_of::<Next>()) as u64;
        let view = slot.staging.raw.get_mapped_range(0..bytes).map_err(|e| failed(&e))?;
        let records: &[Next] = bytemuck::cast_slice(&view);
        ids.extend(records.iter().map(|record| record[0]));
        drop(view);
        slot.staging.raw.unmap();
        Ok(())
    }
}
