//! Several sequences that take their steps together: one ragged batch a step, over pages of
//! one cache. Weights are then read once for all of them.

use crate::audit::Findings;
use crate::error::{Error, Result};
use crate::generate::session::{Base, front, missing, numbers};
use crate::generate::{Sampler, SessionOptions};
use crate::gpu::{Executable, StepTables};
use crate::graph::{Batch, Token};
use crate::model::{KvCache, Model};
use crate::plan::Plan;

/// What there is of a sequence's logits.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// None.
    Empty,
    /// Those of the last token.
    Ready,
    /// Those of the token at a position are no numbers; it was not fed.
    Failed(usize),
}

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
    /// What there is of each.
    state: Vec<State>,
    /// Logits as they come from the device.
    read: Vec<f32>,
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
        let (ids, state) = (vec![Vec::new(); sequences], vec![State::Empty; sequences]);
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
            state,
            read: Vec::new(),
            findings: Findings::default(),
        })
    }
}

impl Group {
    /// Ids fed so far, by sequence.
    pub fn ids(&self) -> &[Vec<u32>] {
        &self.ids
    }

    /// What was compared with the CPU so far: see [`SessionOptions::check`].
    pub fn findings(&self) -> &Findings {
        &self.findings
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
        numbers(&last, self.ids[sequence].len() - 1)?;
        let vocab = last.len();
        self.logits[sequence * vocab..][..vocab].copy_from_slice(&last);
        self.state[sequence] = State::Ready;
        Ok(())
    }

    /// Feeds one of `ids` to each sequence, in one step, or in several where that would keep the
    /// device busy for too long. On an error none of them is fed; but where the logits of some sequences are no
    /// numbers, only these are not fed, and their [`logits`](Self::logits) say so.
    pub fn feed_each(&mut self, ids: &[u32]) -> Result<()> {
        if ids.len() != self.ids.len() {
            let message = format!("{} tokens for {} sequences", ids.len(), self.ids.len());
            return Err(Error::option("tokens", message));
        }
        let ids: Vec<(usize, u32)> = ids.iter().copied().enumerate().collect();
        self.feed_some(&ids)
    }

    /// As [`feed_each`](Self::feed_each), for some of the sequences: a token for each of those named.
    pub fn feed_some(&mut self, ids: &[(usize, u32)]) -> Result<()> {
        let all = self.next_batch(ids)?;
        // So that no part of it is refused later.
        all.check(self.base.model.config().vocab_size, self.cache.capacity(), self.ids.len())?;
        let mut fed = 0;
        self.feed_parts(&all, &mut fed).inspect_err(|_| {
            for token in &all.tokens[..fed] {
                self.truncate(token.sequence as usize, token.position as usize);
            }
        })
    }

    /// Feeds the tokens of `all`, as many in a step as keep the device busy for a bounded time, and counts them.
    fn feed_parts(&mut self, all: &Batch, fed: &mut usize) -> Result<()> {
        loop {
            let tables = StepTables(self.cache.tables());
            let rest = Batch { tokens: all.tokens[*fed..].to_vec(), outputs: Vec::new() }.with_all_outputs();
            let part = front(&self.decode, rest);
            self.base.compare(&mut self.decode, &part, tables, &mut self.findings)?;
            self.decode.run(&part, tables)?;
            let mut read = std::mem::take(&mut self.read);
            pollster::block_on(self.decode.read_logits(part.tokens.len(), &mut read))?;
            let vocab = self.base.model.config().vocab_size;
            for (token, row) in part.tokens.iter().zip(read.chunks_exact(vocab)) {
                self.take(*token, row);
            }
            self.read = read;
            *fed += part.tokens.len();
            if *fed == all.tokens.len() {
                return Ok(());
            }
        }
    }

    /// Takes note that a token was fed, or was not where its logits are no numbers.
    fn take(&mut self, token: Token, logits: &[f32]) {
        let (sequence, position) = (token.sequence as usize, token.position as usize);
        if numbers(logits, position).is_err() {
            self.truncate(sequence, position);
            self.state[sequence] = State::Failed(position);
            return;
        }
        self.ids[sequence].push(token.id);
        self.known[sequence] = position + 1;
        self.logits[sequence * logits.len()..][..logits.len()].copy_from_slice(logits);
        self.state[sequence] = State::Ready;
    }

    /// Chooses the next token of each sequence and feeds them, in one step; none for a sequence whose logits
    /// are no numbers. An error if no other is left.
    pub fn step(&mut self, sampler: &mut Sampler) -> Result<Vec<Option<u32>>> {
        let failed = |state: &State| matches!(state, State::Failed(_));
        let over = self.state.iter().all(failed);
        let choose = |sequence: usize| {
            if failed(&self.state[sequence]) && !over {
                return Ok(None);
            }
            let position = self.ids[sequence].len().saturating_sub(1);
            sampler.sample(self.logits(sequence)?, position).map(Some)
        };
        let chosen = (0..self.ids.len()).map(choose).collect::<Result<Vec<_>>>()?;
        let ids = chosen.iter().enumerate().filter_map(|(sequence, id)| Some((sequence, (*id)?)));
        self.feed_some(&ids.collect::<Vec<_>>())?;
        Ok(chosen)
    }

    /// The logits of the token that follows what was fed to a sequence, `[vocab]`.
    pub fn logits(&self, sequence: usize) -> Result<&[f32]> {
        let vocab = self.base.model.config().vocab_size;
        match self.state.get(sequence) {
            Some(State::Ready) => Ok(&self.logits[sequence * vocab..][..vocab]),
            Some(State::Failed(position)) => Err(Error::BadLogits { position: *position }),
            _ => Err(Error::option("group", format!("feed a prompt to sequence {sequence} first"))),
        }
    }

    /// Forgets all but the first `len` tokens of a sequence; its logits are gone.
    pub fn truncate(&mut self, sequence: usize, len: usize) {
        if let Some(ids) = self.ids.get_mut(sequence) {
            ids.truncate(len);
            let known = &mut self.known[sequence];
            *known = (*known).min(self.cache.truncate(sequence, ids.len()));
            self.state[sequence] = State::Empty;
        }
    }

    /// Makes sequence `to` what `from` is: both can then go on with different tokens.
    pub fn fork(&mut self, from: usize, to: usize) -> Result<()> {
        let count = self.ids.len();
        if from == to || from.max(to) >= count {
            let message = format!("expected two below {count}, found {from} and {to}");
            return Err(Error::option("sequence", message));
        }
        self.truncate(to, 0);
        self.cache.fork(self.base.model.context(), from, to, self.known[from])?;
        self.ids[to] = self.ids[from].clone();
        self.known[to] = self.known[from];
        self.state[to] = self.state[from];
        let vocab = self.base.model.config().vocab_size;
        self.logits.copy_within(from * vocab..(from + 1) * vocab, to * vocab);
        Ok(())
    }

    /// The step that feeds one of `ids` to each sequence next, and what runs it.
    pub(super) fn next_step(&mut self, ids: &[u32]) -> Result<(&mut Executable, Batch, StepTables<'_>)> {
        let ids: Vec<(usize, u32)> = ids.iter().copied().enumerate().collect();
        let batch = self.next_batch(&ids)?;
        Ok((&mut self.decode, batch, StepTables(self.cache.tables())))
    }

    /// The batch that feeds a token to each of the sequences named, which are ready for it.
    fn next_batch(&mut self, ids: &[(usize, u32)]) -> Result<Batch> {
        for (i, (sequence, _)) in ids.iter().enumerate() {
            if *sequence >= self.ids.len() || ids[..i].iter().any(|(other, _)| other == sequence) {
                let message = format!("expected each below {} once, found {sequence}", self.ids.len());
                return Err(Error::option("sequence", message));
            }
            self.recall(*sequence)?;
        }
        for (sequence, _) in ids {
            self.cache.reserve(*sequence, self.ids[*sequence].len() + 1)?;
        }
        let token = |(sequence, id): &(usize, u32)| Token {
            id: *id,
            position: self.ids[*sequence].len() as u32,
            sequence: *sequence as u32,
        };
        let tokens = ids.iter().map(token).collect();
        Ok(Batch { tokens, outputs: Vec::new() }.with_all_outputs())
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
