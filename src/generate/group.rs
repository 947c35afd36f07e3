//! Several sequences that take their steps together: one ragged batch a step, over pages of
//! one cache. Weights are then read once for all of them.

use crate::audit::Findings;
use crate::error::{Error, Result};
use crate::generate::session::{Base, front, missing};
use crate::generate::{Sampler, SessionOptions};
use crate::gpu::{Executable, StepTables};
use crate::graph::{Batch, Token};
use crate::model::{KvCache, Model};
use crate::plan::Plan;

/// Sequences of one model, of any lengths, that share a cache.
pub struct Group {
    base: Base,
    cache: KvCache,
    chunk: usize,
    /// A token of each sequence.
    decode: Executable,
    /// A chunk of one sequence.
    prefill: Option<Executable>,
    /// Ids fed so far, by sequence.
    ids: Vec<Vec<u32>>,
    /// Of those, the first ones that the cache knows: what follows them must be fed once more.
    known: Vec<usize>,
    /// What follows each sequence, `[sequences, vocab]`.
    logits: Vec<f32>,
    /// Whether a sequence has logits.
    ready: Vec<bool>,
    /// What was compared with the CPU.
    findings: Findings,
}

impl Model {
    /// A group of `sequences` empty sequences; the context of `options` is that of each.
    pub fn group(&self, options: &SessionOptions, sequences: usize) -> Result<Group> {
        let most = self.context().caps().max_groups as usize;
        if !(1..=most).contains(&sequences) {
            let message = format!("expected 1 to {most} sequences, found {sequences}");
            return Err(Error::option("batch", message));
        }
        let (base, cache, chunk) = self.set_up(options, sequences)?;
        let decode = base.executable(&cache, None, (sequences, sequences), &[])?;
        let logits = vec![0.0; sequences * self.config().vocab_size];
        let (ids, ready) = (vec![Vec::new(); sequences], vec![false; sequences]);
        let known = vec![0; sequences];
        Ok(Group {
            base,
            cache,
            chunk,
            decode,
            prefill: None,
            ids,
            known,
            logits,
            ready,
            findings: Findings::default(),
        })
    }
}

impl Group {
    /// Ids fed so far, by sequence.
    pub fn ids(&self) -> &[Vec<u32>] {
        &self.ids
    }

    /// The plan of a step.
    pub fn plan(&self) -> &Plan {
        self.decode.plan()
    }

    /// Bytes of cache, rotations and scratch memory on the device.
    pub fn bytes(&self) -> u64 {
        let scratch = self.decode.bytes() + self.prefill.as_ref().map_or(0, Executable::bytes);
        self.cache.bytes() + self.base.rope_bytes() + scratch
    }

    /// Feeds `ids` to one sequence. On an error none of them is fed.
    pub fn prefill(&mut self, sequence: usize, ids: &[u32]) -> Result<()> {
        self.check(sequence, ids)?;
        let start = self.ids[sequence].len();
        self.feed(sequence, ids).inspect_err(|_| self.truncate(sequence, start))
    }

    /// Feeds once more what the cache does not know (any more) of a sequence.
    fn recall(&mut self, sequence: usize) -> Result<()> {
        let known = &mut self.known[sequence];
        while *known < self.ids[sequence].len() {
            let run = self.base.ensure(&mut self.prefill, &self.cache, None, self.chunk, 1)?;
            let batch = front(run, missing(&self.ids[sequence], *known, self.chunk, sequence as u32));
            self.cache.reserve(sequence, *known + batch.tokens.len())?;
            self.base.compare(run, &batch, StepTables(self.cache.tables()), &mut self.findings)?;
            run.run(&batch, StepTables(self.cache.tables()))?;
            *known += batch.tokens.len();
        }
        Ok(())
    }

    fn feed(&mut self, sequence: usize, ids: &[u32]) -> Result<()> {
        self.recall(sequence)?;
        let mut last = Vec::new();
        let mut rest = ids;
        while !rest.is_empty() {
            let start = self.ids[sequence].len();
            let run = self.base.ensure(&mut self.prefill, &self.cache, None, self.chunk, 1)?;
            let piece = &rest[..rest.len().min(self.chunk)];
            let mut batch = front(run, Batch::sequence(piece, start, sequence as u32));
            let fed = batch.tokens.len();
            self.cache.reserve(sequence, start + fed)?;
            if fed < rest.len() {
                batch.outputs.clear();
            }
            self.base.compare(run, &batch, StepTables(self.cache.tables()), &mut self.findings)?;
            run.run(&batch, StepTables(self.cache.tables()))?;
            pollster::block_on(run.read_logits(batch.outputs.len(), &mut last))?;
            self.ids[sequence].extend_from_slice(&rest[..fed]);
            rest = &rest[fed..];
            self.known[sequence] = self.ids[sequence].len();
        }
        let vocab = last.len();
        self.logits[sequence * vocab..][..vocab].copy_from_slice(&last);
        self.ready[sequence] = true;
        Ok(())
    }

    /// Feeds one of `ids` to each sequence, in one step. On an error none of them is fed.
    pub fn feed_each(&mut self, ids: &[u32]) -> Result<()> {
        let (run, batch, tables) = self.next_step(ids)?;
        run.run(&batch, tables)?;
        pollster::block_on(self.decode.read_logits(ids.len(), &mut self.logits))?;
        for (fed, id) in self.ids.iter_mut().zip(ids) {
            fed.push(*id);
        }
        self.known.iter_mut().zip(&self.ids).for_each(|(known, ids)| *known = ids.len());
        self.ready.fill(true);
        Ok(())
    }

    /// Chooses the next token of each sequence and feeds them, in one step.
    pub fn step(&mut self, sampler: &mut Sampler) -> Result<Vec<u32>> {
        let ids =
            (0..self.ids.len()).map(|s| sampler.sample(self.logits(s)?, self.ids[s].len().saturating_sub(1)));
        let ids = ids.collect::<Result<Vec<_>>>()?;
        self.feed_each(&ids)?;
        Ok(ids)
    }

    /// The logits of the token that follows what was fed to a sequence, `[vocab]`.
    pub fn logits(&self, sequence: usize) -> Result<&[f32]> {
        let vocab = self.base.model.config().vocab_size;
        match self.ready.get(sequence) {
            Some(true) => Ok(&self.logits[sequence * vocab..][..vocab]),
            _ => Err(Error::option("group", format!("feed a prompt to sequence {sequence} first"))),
        }
    }

    /// Forgets all but the first `len` tokens of a sequence; its logits are gone.
    pub fn truncate(&mut self, sequence: usize, len: usize) {
        if let Some(ids) = self.ids.get_mut(sequence) {
            ids.truncate(len);
            let known = &mut self.known[sequence];
            *known = (*known).min(self.cache.truncate(sequence, ids.len()));
            self.ready[sequence] = false;
        }
    }

    /// The step that feeds one of `ids` to each sequence next, and what runs it.
    pub(super) fn next_step(&mut self, ids: &[u32]) -> Result<(&mut Executable, Batch, StepTables<'_>)> {
        if ids.len() != self.ids.len() {
            let message = format!("{} tokens for {} sequences", ids.len(), self.ids.len());
            return Err(Error::option("tokens", message));
        }
        for sequence in 0..self.ids.len() {
            self.recall(sequence)?;
        }
        for (sequence, fed) in self.ids.iter().enumerate() {
            self.cache.reserve(sequence, fed.len() + 1)?;
        }
        let token = |(sequence, (fed, id)): (usize, (&Vec<u32>, &u32))| Token {
            id: *id,
            position: fed.len() as u32,
            sequence: sequence as u32,
        };
        let tokens = self.ids.iter().zip(ids).enumerate().map(token).collect();
        let batch = Batch { tokens, outputs: Vec::new() }.with_all_outputs();
        Ok((&mut self.decode, batch, StepTables(self.cache.tables())))
    }

    fn check(&self, sequence: usize, ids: &[u32]) -> Result<()> {
        let Some(fed) = self.ids.get(sequence) else {
            let message = format!("expected a sequence below {}, found {sequence}", self.ids.len());
            return Err(Error::option("sequence", message));
        };
        if ids.is_empty() {
            return Err(Error::option("prompt", "it has no tokens"));
        }
        let room = self.cache.capacity() - fed.len();
        if ids.len() > room {
            return Err(Error::PromptTooLong { len: ids.len(), room });
        }
        Ok(())
    }
}
