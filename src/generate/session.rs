//! A session: one sequence on the device, with its cache and the executables that extend it.

use crate::dtype::KvFormat;
use crate::error::{Error, Result};
use crate::generate::{Sampler, Sampling, TokenStream};
use crate::gpu::{Buffer, Buffers, Executable, StepTables};
use crate::graph::Batch;
use crate::model::{KvCache, Model};
use crate::plan::{Plan, PlanOptions, lower};
use crate::tokenizer::Specials;

/// How a session is set up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SessionOptions {
    /// Tokens that the context holds; by default what the model was trained for, at most 4096.
    pub context: Option<usize>,
    /// Format of cached keys and values.
    pub kv: KvFormat,
    /// The most prompt tokens in one step; by default 512.
    pub chunk: Option<usize>,
}

/// A context of the default size is no longer than this.
const DEFAULT_CONTEXT: usize = 4096;
const DEFAULT_CHUNK: usize = 512;

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
    model: Model,
    options: SessionOptions,
    rope: Buffer,
    cache: KvCache,
    decode: Executable,
    prefill: Option<Executable>,
    all: Option<Executable>,
    ids: Vec<u32>,
    logits: Vec<f32>,
}

impl Model {
    /// A session with an empty context.
    pub fn session(&self, options: &SessionOptions) -> Result<Session> {
        let trained = self.config().max_position_embeddings;
        let context = options.context.unwrap_or(trained.min(DEFAULT_CONTEXT));
        let chunk = options.chunk.unwrap_or(DEFAULT_CHUNK);
        if context == 0 || context > u32::MAX as usize / 2 {
            return Err(Error::option("ctx", format!("expected 1 or more tokens, found {context}")));
        }
        if chunk == 0 {
            return Err(Error::option("chunk", "expected 1 or more tokens, found 0"));
        }
        if context > trained {
            log::warn!("the model was trained for {trained} positions, the context holds {context}");
        }
        let options =
            SessionOptions { context: Some(context), chunk: Some(chunk.min(context)), kv: options.kv };
        let cache = KvCache::new(self.context(), &self.graph().caches, options.kv, context)?;
        let rope = self.rope_tables(context)?;
        let plan = lower(
            self.graph(),
            &self.weights().layouts,
            self.context().caps(),
            &PlanOptions::new(1, 1, options.kv),
        )?;
        let decode = bind(self, plan, &rope, &cache)?;
        Ok(Session {
            model: self.clone(),
            options,
            rope,
            cache,
            decode,
            prefill: None,
            all: None,
            ids: Vec::new(),
            logits: Vec::new(),
        })
    }
}

fn bind(model: &Model, plan: Plan, rope: &Buffer, cache: &KvCache) -> Result<Executable> {
    let weights = model.weights();
    let buffers = Buffers {
        weights: &weights.matrices,
        vectors: &weights.vectors,
        rope,
        keys: &cache.keys,
        values: &cache.values,
    };
    Executable::bind(model.context(), plan, buffers, cache.tables().len(), cache.pages)
}

impl Session {
    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
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

    /// The plan of a phase, as text.
    pub fn plan(&self, phase: Phase) -> Result<String> {
        Ok(match phase {
            Phase::Decode => self.decode.plan().to_string(),
            Phase::Prefill => self.lower(self.chunk(), 1, &[])?.to_string(),
        })
    }

    fn chunk(&self) -> usize {
        self.options.chunk.unwrap_or(DEFAULT_CHUNK)
    }

    fn lower(&self, max_tokens: usize, max_outputs: usize, keep: &[&str]) -> Result<Plan> {
        let mut options = PlanOptions::new(max_tokens, max_outputs, self.options.kv);
        options.keep = keep.iter().map(|k| (*k).to_string()).collect();
        lower(self.model.graph(), &self.model.weights().layouts, self.model.context().caps(), &options)
    }

    /// Feeds `ids`, in chunks; the logits of the last one are then in [`logits`](Self::logits).
    /// On an error the session is as it was.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<()> {
        self.check(ids)?;
        let start = self.ids.len();
        if let Err(error) = self.feed(ids) {
            self.truncate(start);
            return Err(error);
        }
        Ok(())
    }

    fn feed(&mut self, ids: &[u32]) -> Result<()> {
        for piece in ids.chunks(self.chunk()) {
            let batch = Batch::sequence(piece, self.ids.len(), 0);
            self.cache.reserve(self.ids.len() + piece.len())?;
            let tables = StepTables { tables: self.cache.tables(), pages: self.cache.pages };
            let run = if piece.len() == 1 {
                &mut self.decode
            } else {
                if self.prefill.is_none() {
                    let plan = lower(
                        self.model.graph(),
                        &self.model.weights().layouts,
                        self.model.context().caps(),
                        &PlanOptions::new(self.options.chunk.unwrap_or(DEFAULT_CHUNK), 1, self.options.kv),
                    )?;
                    self.prefill = Some(bind(&self.model, plan, &self.rope, &self.cache)?);
                }
                match &mut self.prefill {
                    Some(run) => run,
                    None => &mut self.decode,
                }
            };
            run.run(&batch, tables)?;
            pollster::block_on(run.read_logits(1, &mut self.logits))?;
            self.ids.extend_from_slice(piece);
        }
        Ok(())
    }

    /// Feeds `ids` and answers the logits of every one of them, `[ids, vocab]`.
    pub fn prefill_all(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.check(ids)?;
        if self.all.is_none() {
            let plan = self.lower(self.chunk(), self.chunk(), &[])?;
            self.all = Some(bind(&self.model, plan, &self.rope, &self.cache)?);
        }
        let mut out = Vec::with_capacity(ids.len() * self.model.config().vocab_size);
        for piece in ids.chunks(self.chunk()) {
            let batch = Batch::sequence(piece, self.ids.len(), 0).with_all_outputs();
            self.cache.reserve(self.ids.len() + piece.len())?;
            let tables = StepTables { tables: self.cache.tables(), pages: self.cache.pages };
            let Some(run) = &mut self.all else { break };
            run.run(&batch, tables)?;
            pollster::block_on(run.read_logits(piece.len(), &mut self.logits))?;
            self.ids.extend_from_slice(piece);
            out.extend_from_slice(&self.logits);
        }
        self.logits.drain(..self.logits.len() - self.model.config().vocab_size);
        Ok(out)
    }

    /// The logits of the token that follows what was fed, `[vocab]`.
    pub fn logits(&self) -> Result<&[f32]> {
        if self.logits.is_empty() {
            return Err(Error::option("session", "feed a prompt first"));
        }
        Ok(&self.logits)
    }

    /// Chooses the next token and feeds it.
    pub fn step(&mut self, sampler: &mut Sampler) -> Result<u32> {
        let id = sampler.sample(self.logits()?)?;
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
        self.cache.truncate(self.ids.len());
    }

    /// Feeds `ids` (at most a chunk) and answers what the nodes called `names` computed for
    /// them, each `[ids, width]`: `layers.0.attn`, `layers.0.out`, `embed`, ...
    pub fn capture(&mut self, ids: &[u32], names: &[&str]) -> Result<Vec<Vec<f32>>> {
        self.check(ids)?;
        let plan = self.lower(ids.len(), 1, names)?;
        let mut run = bind(&self.model, plan, &self.rope, &self.cache)?;
        self.cache.reserve(self.ids.len() + ids.len())?;
        let batch = Batch::sequence(ids, self.ids.len(), 0);
        run.run(&batch, StepTables { tables: self.cache.tables(), pages: self.cache.pages })?;
        let read = |name: &&str| {
            let outputs =
                run.plan().kept.iter().any(|k| k.name == **name && k.rows == crate::shape::Rows::Outputs);
            pollster::block_on(run.read_kept(name, if outputs { 1 } else { ids.len() }))
        };
        let kept = names.iter().map(read).collect::<Result<Vec<_>>>()?;
        pollster::block_on(run.read_logits(1, &mut self.logits))?;
        self.ids.extend_from_slice(ids);
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
        let tokenizer = self.model.tokenizer()?;
        let ids = if self.ids.is_empty() {
            tokenizer.encode_prompt(prompt, Specials::Text)?
        } else {
            tokenizer.encode(prompt, Specials::Text)?
        };
        self.generate_ids(&ids, sampling)
    }

    /// Feeds `ids` and streams what follows.
    pub fn generate_ids(&mut self, ids: &[u32], sampling: &Sampling) -> Result<TokenStream<'_>> {
        let sampler = Sampler::new(sampling)?;
        self.prefill(ids)?;
        Ok(TokenStream::new(self, sampler))
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.model.config().vocab_size;
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
            return Err(Error::PromptTooLong { len: ids.len(), max: left });
        }
        Ok(())
    }
}
