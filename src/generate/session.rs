//! A session: one sequence on the device, with its cache and the executables that extend it.

use std::ops::Range;
use std::time::Instant;

use crate::audit::{self, Audit, Effort, Findings};
use crate::caps::Caps;
use crate::dtype::{Activations, KvFormat};
use crate::error::{Error, Result};
use crate::generate::{Sampler, Sampling, TokenStream};
use crate::gpu::{Buffer, Buffers, Choices, Executable, Feed, StepTables};
use crate::graph::Batch;
use crate::kernels::sample::Choice;
use crate::kernels::{PAGE, Variant, tuning};
use crate::model::{Config, KvCache, Model, kv};
use crate::plan::{Plan, PlanOptions, lower};
use crate::tokenizer::Specials;

/// How a session is set up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SessionOptions {
    /// Tokens that the context holds; by default what the model was trained for, at most 4096.
    pub context: Option<usize>,
    /// Format of cached keys and values.
    pub kv: KvFormat,
    /// How activations meet weights.
    pub activations: Activations,
    /// The most prompt tokens in one step; by default what suits the adapter and what it can hold.
    pub chunk: Option<usize>,
    /// Steps that a [`TokenStream`] has under way beyond the one whose token it waits for; by
    /// default 2. The device chooses the tokens, and need not wait for the host to see them. Steps
    /// that take long are not run ahead.
    pub ahead: Option<usize>,
    /// Compares the results of all launches of every step with the CPU, at a hundredth of the speed. The first
    /// that differs is an [`Error::WrongResult`].
    pub check: bool,
}

/// A context of the default size is no longer than this.
const DEFAULT_CONTEXT: usize = 4096;
const DEFAULT_AHEAD: usize = 2;

/// More steps than this are never under way.
const MOST_AHEAD: usize = 64;

/// Tokens of a trial of kernels: more than a tile's rows, and no multiple of anything.
const TRIAL_TOKENS: usize = 17;

/// Positions are counted in 32 bits, with some room.
const MAX_CONTEXT: usize = 1 << 30;

impl SessionOptions {
    /// Tokens that the context of a session will hold; an error for options that make no
    /// sense, before any model is loaded.
    pub fn context_for(&self, config: &Config) -> Result<usize> {
        let trained = config.max_position_embeddings;
        let context = self.context.unwrap_or(trained.min(DEFAULT_CONTEXT));
        if !(1..=MAX_CONTEXT).contains(&context) {
            return Err(Error::option("ctx", format!("expected 1 to {MAX_CONTEXT} tokens, found {context}")));
        }
        if self.chunk == Some(0) {
            return Err(Error::option("chunk", "expected 1 or more tokens, found 0"));
        }
        Ok(context)
    }

    /// The most tokens of a step, on an adapter, in a context of a size.
    fn most_tokens(&self, caps: &Caps, context: usize) -> usize {
        self.chunk.unwrap_or(tuning::chunk(caps)).min(context.min(caps.max_groups as usize))
    }

    /// Positions beyond a window that its layers hold: those of a step, and those that a stream fed and
    /// gave up again.
    pub fn slack(&self, caps: &Caps, context: usize) -> usize {
        self.most_tokens(caps, context) + MOST_AHEAD
    }
}

/// Which of a session's plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// One token.
    Decode,
    /// A chunk of the prompt, with the logits of its last token.
    Prefill,
}

/// One sequence: what was fed so far, and the logits of what comes next.
pub struct Session {
    base: Base,
    cache: KvCache,
    chunk: usize,
    decode: Executable,
    prefill: Option<Executable>,
    /// As `prefill`, with the logits of every token.
    all: Option<Executable>,
    ids: Vec<u32>,
    /// Of those, the first ones that the cache knows: what follows them must be fed once more.
    known: usize,
    /// Which rotations the tables hold: see [`Rope::regime`].
    regimes: Vec<usize>,
    logits: Vec<f32>,
    choices: Choices,
    ahead: usize,
    /// The prompt that the stream goes on from.
    begun: Range<usize>,
    /// Tokens fed, with those that the device chose and the host has not seen yet.
    fed: usize,
    /// The batch of one token that goes on with what was chosen, and its answer.
    next: Batch,
    chosen: Vec<u32>,
    /// What was compared with the CPU, and what chooses there.
    findings: Findings,
    judge: Option<Sampler>,
    judged: Option<u32>,
}

/// The next of `ids` that the cache does not know (any more), without any logits.
pub(super) fn missing(ids: &[u32], known: usize, chunk: usize, sequence: u32) -> Batch {
    let end = ids.len().min(known + chunk);
    Batch { outputs: Vec::new(), ..Batch::sequence(&ids[known..end], known, sequence) }
}

/// Refuses logits of the token at `position` that are no finite numbers.
pub(super) fn numbers(logits: &[f32], position: usize) -> Result<()> {
    if logits.iter().all(|logit| logit.is_finite()) { Ok(()) } else { Err(Error::BadLogits { position }) }
}

/// As much of the front of `batch` as one step feeds in bounded time, with the outputs in there.
pub(super) fn front(run: &Executable, mut batch: Batch) -> Batch {
    let fits = run.fitting(&batch);
    batch.tokens.truncate(fits);
    batch.outputs.retain(|output| (*output as usize) < fits);
    batch
}

/// What every executable is made from.
pub(super) struct Base {
    pub model: Model,
    pub kv: KvFormat,
    pub activations: Activations,
    pub context: usize,
    pub slack: usize,
    pub ropes: Vec<Buffer>,
    /// Whether the launches of every step are compared with the CPU.
    pub check: bool,
    /// Whether plans with one output choose what follows it on the device.
    pub choose: bool,
}

impl Base {
    pub fn rope_bytes(&self) -> u64 {
        self.ropes.iter().map(Buffer::size).sum()
    }

    pub fn plan(&self, max_tokens: usize, max_outputs: usize, keep: &[&str]) -> Result<Plan> {
        let mut options = PlanOptions::new(max_tokens, max_outputs, self.kv);
        options.context = self.context;
        options.slack = Some(self.slack);
        options.activations = self.activations;
        options.keep = keep.iter().map(|k| (*k).to_string()).collect();
        options.choose = self.choose && max_outputs == 1;
        lower(self.model.graph(), &self.model.weights().layouts, &self.model.context().trusted(), &options)
    }

    /// An executable whose kernels were found to compute what the CPU does. Where they don't, or don't compile,
    /// it has others that need less of the adapter.
    pub fn executable(
        &self,
        cache: &KvCache,
        choices: Option<&Choices>,
        (max_tokens, max_outputs): (usize, usize),
        keep: &[&str],
    ) -> Result<Executable> {
        let context = self.model.context();
        loop {
            let plan = self.plan(max_tokens, max_outputs, keep)?;
            let variants: Vec<Variant> = plan.launches.iter().map(|l| l.dispatch.variant).collect();
            let outcome = self.try_out(&plan, cache.pages).and_then(|()| self.bind(plan, cache, choices));
            let error = match outcome {
                Ok(run) => return Ok(run),
                Err(error) => error,
            };
            let (Error::Pipeline { variant, .. } | Error::WrongResult { variant, .. }) = &error else {
                return Err(error);
            };
            if context.options().skip_self_check {
                return Err(error);
            }
            let named: Vec<&str> = variant.split(" + ").collect();
            let blamed = variants.iter().filter(|v| named.contains(&v.to_string().as_str()));
            let blamed = blamed.max_by_key(|v| (v.needs_coop(), v.needs_subgroup()));
            match blamed.and_then(|variant| tuning::without(context.caps(), &context.trusted(), variant)) {
                Some(caps) => context.distrust(caps, &error),
                None => return Err(error),
            }
        }
    }

    /// Compares with the CPU what no session has relied on yet, on a cache of its own.
    fn try_out(&self, plan: &Plan, pages: usize) -> Result<()> {
        let context = self.model.context();
        let begun = Instant::now();
        let mut tried = context.tried();
        let before = tried.len();
        let known = plan.launches.iter().all(|l| tried.contains(&l.dispatch.variant));
        if known || context.options().skip_self_check {
            return Ok(());
        }
        let options = &plan.options;
        let tokens = options.max_tokens.min(TRIAL_TOKENS).min(self.context);
        let start = audit::TRIAL_START.min(self.context - tokens);
        let vocab = self.model.config().vocab_size;
        let ids: Vec<u32> = (0..tokens).map(|i| (i * vocab / tokens) as u32).collect();
        let mut batch = Batch::sequence(&ids, start, 0);
        batch.outputs = (0..tokens as u32).rev().take(options.max_outputs).collect();
        let tables = [(0..pages as u32).collect()];
        let seen = (audit::TRIAL_START + TRIAL_TOKENS).div_ceil(PAGE);
        let [keys, values] = kv::some_pages(context, self.model.graph(), self.kv, seen)?;
        let choices = match options.choose {
            true => Some(Choices::new(context, 1, vocab, 1)?),
            false => None,
        };
        let buffers = Buffers { keys: &keys, values: &values, choices: choices.as_ref(), ..self.buffers() };
        let mut run = Executable::bind(context, plan.clone(), buffers, 1, pages)?;
        let layouts = &self.model.weights().layouts;
        let audit = Audit::new(context, &mut run, layouts, &batch, StepTables(&tables), Effort::TRIAL);
        let findings = pollster::block_on(audit.trial(&mut tried))?;
        log::info!(
            "self-check of {} variants in {:.1} ms: {} values",
            tried.len() - before,
            1e3 * begun.elapsed().as_secs_f64(),
            findings.summary().0
        );
        context.add_tried(tried);
        Ok(())
    }

    /// What plans refer to, without any cache.
    fn buffers(&self) -> Buffers<'_> {
        let weights = self.model.weights();
        Buffers {
            weights: &weights.matrices,
            vectors: &weights.vectors,
            ropes: &self.ropes,
            keys: &[],
            values: &[],
            choices: None,
        }
    }

    /// Compares the launches of a step with the CPU, where that is asked for.
    pub fn compare(
        &self,
        run: &mut Executable,
        batch: &Batch,
        tables: StepTables<'_>,
        findings: &mut Findings,
    ) -> Result<()> {
        if self.check {
            let (context, layouts) = (self.model.context(), &self.model.weights().layouts);
            let audit = Audit::new(context, run, layouts, batch, tables, Effort::CHECK);
            findings.add(pollster::block_on(audit.step())?);
        }
        Ok(())
    }

    fn bind(&self, plan: Plan, cache: &KvCache, choices: Option<&Choices>) -> Result<Executable> {
        let buffers = Buffers { keys: &cache.keys, values: &cache.values, choices, ..self.buffers() };
        Executable::bind(self.model.context(), plan, buffers, cache.tables().len(), cache.pages)
    }

    /// The executable in `place`, made on first use.
    pub fn ensure<'a>(
        &self,
        place: &'a mut Option<Executable>,
        cache: &KvCache,
        choices: Option<&Choices>,
        max_tokens: usize,
        max_outputs: usize,
    ) -> Result<&'a mut Executable> {
        Ok(match place {
            Some(run) => run,
            None => place.insert(self.executable(cache, choices, (max_tokens, max_outputs), &[])?),
        })
    }
}

impl Model {
    /// A session with an empty context.
    pub fn session(&self, options: &SessionOptions) -> Result<Session> {
        let (base, cache, chunk) = self.set_up(options, 1)?;
        let ahead = options.ahead.unwrap_or(DEFAULT_AHEAD).min(MOST_AHEAD);
        let choices = Choices::new(self.context(), 1, self.config().vocab_size, ahead + 1)?;
        let base = Base { choose: true, ..base };
        let decode = base.executable(&cache, Some(&choices), (1, 1), &[])?;
        let ids = Vec::with_capacity(base.context);
        let regimes = self.graph().ropes.iter().map(|rope| rope.regime(base.context)).collect();
        Ok(Session {
            known: 0,
            regimes,
            base,
            cache,
            chunk,
            decode,
            prefill: None,
            all: None,
            ids,
            logits: Vec::new(),
            choices,
            ahead,
            begun: 0..0,
            fed: 0,
            next: Batch::sequence(&[0], 0, 0),
            chosen: Vec::new(),
            findings: Findings::default(),
            judge: None,
            judged: None,
        })
    }

    /// What sessions of `sequences` sequences have in common: the base of their executables,
    /// the cache, and the most tokens of a step.
    pub(super) fn set_up(
        &self,
        options: &SessionOptions,
        sequences: usize,
    ) -> Result<(Base, KvCache, usize)> {
        let context = options.context_for(self.config())?;
        let trained = self.config().max_position_embeddings;
        if context > trained {
            log::warn!("the model was trained for {trained} positions, the context holds {context}");
        }
        let slack = options.slack(self.context().caps(), context);
        let cache = KvCache::new(self.context(), self.graph(), options.kv, sequences, context, slack)?;
        let base = Base {
            model: self.clone(),
            kv: options.kv,
            activations: options.activations,
            context,
            slack,
            ropes: self.rope_tables(context)?,
            check: options.check,
            choose: false,
        };
        let mut chunk = options.most_tokens(self.context().caps(), context);
        // A chunk that was not asked for shrinks to what the device's bindings hold.
        while options.chunk.is_none() && chunk > 1 && base.plan(chunk, 1, &[]).is_err() {
            chunk /= 2;
        }
        Ok((base, cache, chunk))
    }
}

impl Session {
    /// The model.
    pub fn model(&self) -> &Model {
        &self.base.model
    }

    /// Ids fed so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Tokens that the context holds.
    pub fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    /// Bytes of the cache on the device.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// Bytes of cache, rotations and scratch memory on the device.
    pub fn bytes(&self) -> u64 {
        let executables = [Some(&self.decode), self.prefill.as_ref(), self.all.as_ref()];
        let scratch: u64 = executables.into_iter().flatten().map(Executable::bytes).sum();
        self.cache_bytes() + self.base.rope_bytes() + scratch
    }

    /// The plan of a phase; prints as text.
    pub fn plan(&self, phase: Phase) -> Result<Plan> {
        Ok(match phase {
            Phase::Decode => self.decode.plan().clone(),
            Phase::Prefill => self.base.plan(self.chunk, 1, &[])?,
        })
    }

    /// Compiles what prompts need, which the first prompt would do otherwise.
    pub fn prepare(&mut self) -> Result<()> {
        self.base.ensure(&mut self.prefill, &self.cache, Some(&self.choices), self.chunk, 1).map(|_| ())
    }

    /// Feeds `ids`, in chunks; the logits of the last one are then in [`logits`](Self::logits).
    /// On an error none of them is fed.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<()> {
        self.check(ids)?;
        let start = self.ids.len();
        self.feed(ids, false).inspect_err(|_| self.truncate(start))
    }

    /// Whether a text of `length` positions has other rotations than those by which what is in the cache
    /// was turned, so that all of it has to be fed once more.
    fn turns_anew(&self, length: usize) -> bool {
        let ropes = self.base.model.graph().ropes.iter().zip(&self.regimes);
        self.known > 0 && ropes.into_iter().any(|(rope, now)| rope.is_long() && rope.regime(length) != *now)
    }

    /// Makes the rotations those of a text of `length` positions, and feeds once more what the cache does
    /// not know (any more).
    fn extend_to(&mut self, length: usize) -> Result<()> {
        let anew = self.turns_anew(length);
        let graph = self.base.model.graph();
        if graph.ropes.iter().zip(&self.regimes).any(|(rope, now)| rope.regime(length) != *now) {
            self.base.model.turn_by(&self.base.ropes, length, self.base.context);
            self.regimes.clear();
            self.regimes.extend(graph.ropes.iter().map(|rope| rope.regime(length)));
        }
        if anew {
            self.known = 0;
        }
        while self.known < self.ids.len() {
            let choices = Some(&self.choices);
            let run = self.base.ensure(&mut self.prefill, &self.cache, choices, self.chunk, 1)?;
            let batch = front(run, missing(&self.ids, self.known, self.chunk, 0));
            self.cache.reserve(0, self.known + batch.tokens.len())?;
            self.base.compare(run, &batch, StepTables(self.cache.tables()), &mut self.findings)?;
            run.run(&batch, StepTables(self.cache.tables()))?;
            self.known += batch.tokens.len();
        }
        Ok(())
    }

    /// Feeds `ids`; what follows the last is then read as logits, or chosen on the device.
    fn feed(&mut self, ids: &[u32], choose: bool) -> Result<()> {
        self.extend_to(self.ids.len() + ids.len())?;
        let end = self.ids.len() + ids.len();
        // Which plan feeds a token does not depend on how long steps take.
        for piece in ids.chunks(self.chunk) {
            self.feed_piece(piece, end, choose)?;
        }
        Ok(())
    }

    /// Feeds a chunk, or less, of what ends at `end`.
    fn feed_piece(&mut self, ids: &[u32], end: usize, choose: bool) -> Result<()> {
        let mut rest = ids;
        while !rest.is_empty() {
            let run = match ids.len() {
                1 => &mut self.decode,
                _ => self.base.ensure(&mut self.prefill, &self.cache, Some(&self.choices), self.chunk, 1)?,
            };
            let mut batch = front(run, Batch::sequence(rest, self.ids.len(), 0));
            let piece;
            (piece, rest) = rest.split_at(batch.tokens.len());
            let last = self.ids.len() + piece.len() == end;
            if !last {
                batch.outputs.clear();
            }
            self.cache.reserve(0, self.ids.len() + piece.len())?;
            let tables = StepTables(self.cache.tables());
            self.base.compare(run, &batch, tables, &mut self.findings)?;
            if last && choose {
                run.run_choosing(&batch, tables, Feed::Batch, &mut self.choices)?;
                self.logits.clear();
                if let Some(judge) = &mut self.judge {
                    let logits = pollster::block_on(run.read_output())?;
                    self.judged = Some(judge.sample(&logits, end - 1)?);
                }
            } else {
                run.run(&batch, tables)?;
            }
            if last && !choose {
                pollster::block_on(run.read_logits(1, &mut self.logits))?;
                numbers(&self.logits, end - 1)?;
            }
            self.ids.extend_from_slice(piece);
            self.known = self.ids.len();
        }
        Ok(())
    }

    /// Feeds `ids`, and lets the device choose what follows by `sampling`.
    fn begin(&mut self, ids: &[u32], sampling: &Sampling) -> Result<()> {
        self.check(ids)?;
        // A stream that was leaked may have left steps under way.
        self.settle();
        let vocab = self.model().config().vocab_size;
        let counts = sampling.has_penalties().then(|| Sampling::counts(vocab, self.ids.iter().chain(ids)));
        self.choices.set(0, &sampling.choice(), counts.as_deref())?;
        self.judge = if self.base.check { Some(Sampler::new(sampling)?) } else { None };
        if let Some(judge) = &mut self.judge {
            judge.start(&[self.ids.as_slice(), ids].concat());
        }
        let start = self.ids.len();
        self.feed(ids, true).inspect_err(|_| {
            self.truncate(start);
            self.settle();
        })?;
        self.fed = self.ids.len();
        self.begun = start..self.fed;
        Ok(())
    }

    /// Starts steps that feed what the device chose last, until as many are under way as should
    /// be; `left` at most. `last` is the last token that was taken, which the device has not been fed
    /// with if none are under way.
    pub(super) fn run_ahead(&mut self, left: usize, last: &mut Option<u32>) -> Result<()> {
        for _ in 0..left {
            let waiting = self.choices.waiting();
            if waiting > self.ahead || self.fed == self.capacity() {
                break;
            }
            self.next.tokens[0].position = self.fed as u32;
            // A token that is there is not kept back by a step that the host waits for.
            if waiting > 0 && self.decode.is_waited_for(&self.next) {
                break;
            }
            if self.turns_anew(self.fed + 1) || self.base.check {
                // The host has to know all tokens to feed them once more, or to compare.
                if self.choices.waiting() == 0
                    && let Some(last) = last.take()
                {
                    self.feed(&[last], true)?;
                    self.fed = self.ids.len();
                }
                break;
            }
            self.extend_to(self.fed + 1)?;
            self.cache.reserve(0, self.fed + 1)?;
            let tables = StepTables(self.cache.tables());
            self.decode.run_choosing(&self.next, tables, Feed::Chosen, &mut self.choices)?;
            self.fed += 1;
        }
        Ok(())
    }

    /// Tokens that the device was asked for and the host has not taken.
    pub(super) fn under_way(&self) -> usize {
        self.choices.waiting()
    }

    /// Waits for the next token that the device chose.
    pub(super) fn chosen(&mut self) -> Result<u32> {
        self.choices.take(&mut self.chosen)?;
        match self.chosen.first() {
            Some(&Choice::NOT_A_NUMBER) => {
                let position = self.fed - 1 - self.choices.waiting();
                // What is no number stays none for all that attends to it. Of a prompt, any token may be to blame.
                self.settle();
                self.truncate(if position < self.begun.end { self.begun.start } else { position });
                Err(Error::BadLogits { position })
            }
            Some(&id) => {
                if let Some(judged) = self.judged.take() {
                    let context = self.base.model.context();
                    audit::compare_choice(context, self.decode.plan(), id, judged, &mut self.findings)?;
                }
                Ok(id)
            }
            None => Err(Error::shape("choices", "a step without outputs")),
        }
    }

    /// What was compared with the CPU so far: see [`SessionOptions::check`].
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Says that a chosen token is now part of the sequence, having been fed on the device.
    pub(super) fn accept(&mut self, id: u32) {
        self.ids.push(id);
        self.known = self.ids.len();
    }

    /// Ends what `begin` began: what was fed without having been accepted is forgotten.
    pub(super) fn settle(&mut self) {
        while self.choices.waiting() > 0 && self.choices.take(&mut self.chosen).is_ok() {}
        self.known = self.known.min(self.cache.truncate(0, self.ids.len()));
        self.fed = self.ids.len();
    }

    /// Feeds `ids` and answers the logits of every one of them, `[ids, vocab]`.
    pub fn prefill_all(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(ids.len() * self.model().config().vocab_size);
        self.prefill_with(ids, |logits| {
            all.extend_from_slice(logits);
            Ok(())
        })?;
        Ok(all)
    }

    /// Feeds `ids` and hands the logits of every one of them to `take`, a chunk at a time,
    /// `[ids of the chunk, vocab]`. On an error none of them is fed.
    pub fn prefill_with(&mut self, ids: &[u32], mut take: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        self.check(ids)?;
        let start = self.ids.len();
        self.feed_with(ids, &mut take).inspect_err(|_| self.truncate(start))
    }

    fn feed_with(&mut self, ids: &[u32], take: &mut impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let vocab = self.model().config().vocab_size;
        let mut logits = Vec::new();
        self.extend_to(self.ids.len() + ids.len())?;
        let mut rest = ids;
        while !rest.is_empty() {
            let piece = &rest[..rest.len().min(self.chunk)];
            let choices = Some(&self.choices);
            let run = self.base.ensure(&mut self.all, &self.cache, choices, self.chunk, self.chunk)?;
            let batch = front(run, Batch::sequence(piece, self.ids.len(), 0).with_all_outputs());
            let piece;
            (piece, rest) = rest.split_at(batch.tokens.len());
            self.cache.reserve(0, self.ids.len() + piece.len())?;
            let tables = StepTables(self.cache.tables());
            self.base.compare(run, &batch, tables, &mut self.findings)?;
            run.run(&batch, tables)?;
            pollster::block_on(run.read_logits(piece.len(), &mut logits))?;
            for (i, row) in logits.chunks_exact(vocab).enumerate() {
                numbers(row, self.ids.len() + i)?;
            }
            take(&logits)?;
            self.ids.extend_from_slice(piece);
            self.known = self.ids.len();
        }
        self.logits.clear();
        self.logits.extend_from_slice(&logits[logits.len() - vocab..]);
        Ok(())
    }

    /// The logits of the token that follows what was fed, `[vocab]`.
    pub fn logits(&self) -> Result<&[f32]> {
        if self.logits.is_empty() {
            return Err(Error::option("session", "feed a prompt first"));
        }
        Ok(&self.logits)
    }

    /// Chooses the next token from the logits, on the host, and feeds it.
    pub fn step(&mut self, sampler: &mut Sampler) -> Result<u32> {
        let position = self.ids.len().saturating_sub(1);
        let id = sampler.sample(self.logits()?, position)?;
        self.prefill(&[id])?;
        Ok(id)
    }

    /// Forgets all but the first `len` tokens. The logits are then those of no token, until
    /// something is fed.
    pub fn truncate(&mut self, len: usize) {
        if len < self.ids.len() {
            self.ids.truncate(len);
            self.logits.clear();
        }
        self.known = self.known.min(self.cache.truncate(0, self.ids.len()));
    }

    /// Feeds `ids` (at most a chunk) and answers what the nodes called `names` computed for
    /// them, each `[ids, width]`: `layers.0.attn`, `layers.0.out`, `embed`, ... The final norm
    /// and the logits are computed for the last of them only.
    pub fn capture(&mut self, ids: &[u32], names: &[&str]) -> Result<Vec<Vec<f32>>> {
        self.check(ids)?;
        if ids.len() > self.chunk {
            return Err(Error::option(
                "capture",
                format!("{} tokens are more than a chunk of {}", ids.len(), self.chunk),
            ));
        }
        self.extend_to(self.ids.len() + ids.len())?;
        let mut run = self.base.executable(&self.cache, Some(&self.choices), (ids.len(), 1), names)?;
        self.cache.reserve(0, self.ids.len() + ids.len())?;
        let batch = Batch::sequence(ids, self.ids.len(), 0);
        run.run(&batch, StepTables(self.cache.tables()))?;
        let kept = names.iter().map(|name| pollster::block_on(run.read_kept(name, &batch)));
        let kept = kept.collect::<Result<Vec<_>>>()?;
        pollster::block_on(run.read_logits(1, &mut self.logits))?;
        self.ids.extend_from_slice(ids);
        self.known = self.ids.len();
        Ok(kept)
    }

    /// Fills all scratch memory with `word`: nothing may depend on what it held before.
    pub fn poison(&self, word: u32) {
        for run in [Some(&self.decode), self.prefill.as_ref(), self.all.as_ref()].into_iter().flatten() {
            run.fill_activations(word);
        }
    }

    /// Encodes `prompt` as it stands (no chat template) and streams what follows.
    pub fn generate(&mut self, prompt: &str, sampling: &Sampling) -> Result<TokenStream<'_>> {
        let tokenizer = self.model().tokenizer()?;
        let ids = if self.ids.is_empty() {
            tokenizer.encode_prompt(prompt, Specials::Text)?
        } else {
            tokenizer.encode(prompt, Specials::Text)?
        };
        self.generate_ids(&ids, sampling)
    }

    /// Feeds `ids` and streams what follows. The device chooses the tokens; the host sees their
    /// ids, and no logits.
    pub fn generate_ids(&mut self, ids: &[u32], sampling: &Sampling) -> Result<TokenStream<'_>> {
        sampling.check()?;
        self.begin(ids, sampling)?;
        Ok(TokenStream::new(self, sampling))
    }

    /// The step that feeds `ids` (at most a chunk) next, and what runs it, for measuring it.
    pub(super) fn next_step(&mut self, ids: &[u32]) -> Result<(&mut Executable, Batch, StepTables<'_>)> {
        self.check(ids)?;
        self.extend_to(self.ids.len() + ids.len())?;
        self.cache.reserve(0, self.ids.len() + ids.len())?;
        let batch = Batch::sequence(ids, self.ids.len(), 0);
        let run = match ids.len() {
            1 => &mut self.decode,
            _ => self.base.ensure(&mut self.prefill, &self.cache, Some(&self.choices), self.chunk, 1)?,
        };
        Ok((run, batch, StepTables(self.cache.tables())))
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.model().config().vocab_size;
        if ids.is_empty() {
            return Err(Error::option("prompt", "it has no tokens"));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::option("tokens", format!("id {id} is not in the vocabulary of {vocab}")));
        }
        let left = self.capacity() - self.ids.len();
        if ids.len() > left {
            if left == 0 {
                return Err(Error::ContextFull { max: self.capacity() });
            }
            return Err(Error::PromptTooLong { len: ids.len(), room: left });
        }
        Ok(())
    }
}
