//! The tests of `bench`: each is run once to warm up and then several times.

use std::time::Instant;

use wgllama::graph::{Batch, Token};
use wgllama::model::Config;
use wgllama::plan::{Plan, Traffic};
use wgllama::shape::Rows;
use wgllama::{Group, Model, Phase, Result, Sampler, Sampling, Session, SessionOptions, host};

use super::Args;
use super::kernels::{self, Kernel};
use crate::cli::tell;

/// One line of the result.
pub struct Row {
    pub test: String,
    /// Sequences that run together.
    pub sequences: usize,
    /// Tokens that a run feeds, over all sequences.
    pub tokens: usize,
    /// Seconds of each run.
    pub seconds: Vec<f64>,
    /// What a run moves and computes at the least.
    pub traffic: Traffic,
    /// Launches for a token.
    pub launches: f64,
    /// Seconds that the CPU encodes for a token.
    pub encode: f64,
    /// Seconds to the first token.
    pub first: f64,
    /// Bytes on the device: weights, cache and scratch memory.
    pub device_bytes: f64,
    /// The most memory that the process has held so far.
    pub host_bytes: Option<u64>,
    /// Where the time of a step goes, if that was asked for.
    pub kernels: Vec<Kernel>,
}

impl Row {
    /// Tokens per second: mean and standard deviation.
    pub fn rate(&self) -> (f64, f64) {
        let rates: Vec<f64> = self.seconds.iter().map(|s| self.tokens as f64 / s).collect();
        let mean = rates.iter().sum::<f64>() / rates.len() as f64;
        let squares: f64 = rates.iter().map(|r| (r - mean).powi(2)).sum();
        (mean, (squares / (rates.len() as f64 - 1.0).max(1.0)).sqrt())
    }

    /// Bytes of weights and cache per second. Activations mostly stay in an adapter's caches.
    pub fn bytes_per_second(&self) -> f64 {
        (self.traffic.weights + self.traffic.cache) * self.rate().0 / self.tokens as f64
    }

    /// f32 operations per second.
    pub fn flops_per_second(&self) -> f64 {
        self.traffic.flops * self.rate().0 / self.tokens as f64
    }

    /// The row of a model with `factor` times the layers: `self` has all that one layer costs,
    /// `rest` none of it.
    pub fn scaled(self, rest: &Self, factor: f64) -> Self {
        let line = |slice: f64, rest: f64| rest + (slice - rest) * factor;
        let mut traffic = self.traffic.times(factor);
        traffic += rest.traffic.times(1.0 - factor);
        Self {
            seconds: self.seconds.iter().zip(&rest.seconds).map(|(s, r)| line(*s, *r)).collect(),
            traffic,
            launches: line(self.launches, rest.launches),
            encode: line(self.encode, rest.encode),
            first: line(self.first, rest.first),
            device_bytes: line(self.device_bytes, rest.device_bytes),
            ..self
        }
    }
}

/// Runs all tests that `args` ask for.
pub fn all(args: &Args, model: &Model) -> Result<Vec<Row>> {
    let deepest = args.depths.iter().max().unwrap_or(&0);
    let longest = args.prompts.iter().chain(&args.generate).max().unwrap_or(&0);
    let context = Some(args.cache.ctx.unwrap_or(deepest + longest + 1));
    let options = SessionOptions { context, ..args.cache.session()? };
    let mut rows = Vec::new();
    let (prompts, generate) = (lengths(&args.prompts), lengths(&args.generate));
    let single = args.batch.contains(&1);
    if !prompts.is_empty() || single {
        let mut session = model.session(&options)?;
        for &depth in &args.depths {
            for &tokens in &prompts {
                tell(format_args!("prompt of {tokens} at {depth}"));
                rows.push(prompt(args, &mut session, tokens, depth)?);
            }
            for &tokens in generate.iter().filter(|_| single) {
                tell(format_args!("generation of {tokens} at {depth}"));
                rows.push(generation(args, &mut session, tokens, depth)?);
            }
        }
    }
    for &sequences in args.batch.iter().filter(|b| **b > 1 && !generate.is_empty()) {
        let mut group = model.group(&options, sequences)?;
        for &depth in &args.depths {
            for &tokens in &generate {
                tell(format_args!("generation of {tokens} at {depth} by {sequences} sequences"));
                rows.push(batched(args, model, &mut group, tokens, depth)?);
            }
        }
    }
    Ok(rows)
}

/// Lengths without the zeros that stand for none.
fn lengths(listed: &[usize]) -> Vec<usize> {
    listed.iter().copied().filter(|n| *n > 0).collect()
}

/// Ids that are no special tokens, and not all the same.
fn ids(config: &Config, n: usize) -> Vec<u32> {
    (0..n).map(|i| (1000 + i * 7919) as u32 % config.vocab_size as u32).collect()
}

fn name(kind: &str, tokens: usize, depth: usize, sequences: usize) -> String {
    let batch = if sequences == 1 { String::new() } else { format!(" x{sequences}") };
    let depth = if depth == 0 { String::new() } else { format!(" @ {depth}") };
    format!("{kind}{tokens}{batch}{depth}")
}

/// The middle of several measurements: encoding is over so fast that one says little.
fn encode_time(mut once: impl FnMut() -> Result<std::time::Duration>) -> Result<f64> {
    let mut times = (0..15).map(|_| Ok(once()?.as_secs_f64())).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// A context of `depth` tokens.
fn fill(session: &mut Session, depth: usize) -> Result<()> {
    session.truncate(0);
    if depth > 0 {
        session.prefill(&ids(session.model().config(), depth))?;
    }
    Ok(())
}

/// A step of one token of each sequence at `position`.
fn decode_batch(sequences: usize, position: usize) -> Batch {
    let token = |sequence: usize| Token { id: 0, position: position as u32, sequence: sequence as u32 };
    Batch { tokens: (0..sequences).map(token).collect(), outputs: Vec::new() }.with_all_outputs()
}

/// What `tokens` steps from position `start` on move: it grows evenly with the position.
fn decode_traffic(plan: &Plan, sequences: usize, start: usize, tokens: usize) -> Traffic {
    let mut both = plan.traffic(&decode_batch(sequences, start));
    both += plan.traffic(&decode_batch(sequences, start + tokens - 1));
    both.times(tokens as f64 / 2.0)
}

fn prompt(args: &Args, session: &mut Session, tokens: usize, depth: usize) -> Result<Row> {
    let ids = ids(session.model().config(), tokens);
    let mut seconds = Vec::new();
    fill(session, depth)?;
    for _ in 0..=args.repeat {
        session.truncate(depth);
        let start = Instant::now();
        session.prefill(&ids)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.remove(0);
    session.truncate(depth);
    let (prefill, decode) = (session.plan(Phase::Prefill)?, session.plan(Phase::Decode)?);
    let (mut traffic, mut launches) = (Traffic::default(), 0);
    let chunk = prefill.options.max_tokens;
    for start in (0..tokens).step_by(chunk) {
        let piece = &ids[start..tokens.min(start + chunk)];
        let plan = if piece.len() == 1 { &decode } else { &prefill };
        let mut batch = Batch::sequence(piece, depth + start, 0);
        if start + piece.len() < tokens {
            batch.outputs.clear();
        }
        traffic += plan.traffic(&batch);
        // Only the last chunk has logits.
        let runs = |rows: Rows| rows == Rows::Tokens || !batch.outputs.is_empty();
        launches += plan.launches.iter().filter(|l| runs(l.dispatch.rows)).count();
    }
    let first_chunk = &ids[..tokens.min(chunk)];
    let encode = encode_time(|| session.encode_time(first_chunk))? / first_chunk.len() as f64;
    let kernels = kernels::measure(args, || session.profile(first_chunk))?;
    Ok(Row {
        test: name("pp", tokens, depth, 1),
        sequences: 1,
        tokens,
        traffic,
        launches: launches as f64 / tokens as f64,
        encode,
        first: seconds.iter().copied().fold(f64::INFINITY, f64::min),
        device_bytes: (session.model().weights().bytes() + session.bytes()) as f64,
        host_bytes: host::peak_memory(),
        seconds,
        kernels,
    })
}

fn generation(args: &Args, session: &mut Session, tokens: usize, depth: usize) -> Result<Row> {
    let one = ids(session.model().config(), 1);
    let (mut seconds, mut first) = (Vec::new(), f64::INFINITY);
    fill(session, depth)?;
    for _ in 0..=args.repeat {
        session.truncate(depth);
        let start = Instant::now();
        // The first of its steps feeds `one`.
        let sampling = Sampling::default().max_tokens(tokens).ignore_eos(true);
        let mut stream = session.generate_ids(&one, &sampling)?;
        stream.next().transpose()?;
        first = first.min(start.elapsed().as_secs_f64());
        for piece in stream {
            piece?;
        }
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.remove(0);
    session.truncate(depth + tokens / 2);
    let encode = encode_time(|| session.encode_time(&one))?;
    let kernels = kernels::measure(args, || session.profile(&one))?;
    let plan = session.plan(Phase::Decode)?;
    Ok(Row {
        test: name("tg", tokens, depth, 1),
        sequences: 1,
        tokens,
        seconds,
        traffic: decode_traffic(&plan, 1, depth, tokens),
        launches: plan.launches.len() as f64,
        encode,
        first,
        device_bytes: (session.model().weights().bytes() + session.bytes()) as f64,
        host_bytes: host::peak_memory(),
        kernels,
    })
}

fn batched(args: &Args, model: &Model, group: &mut Group, tokens: usize, depth: usize) -> Result<Row> {
    let sequences = group.ids().len();
    let ids = ids(model.config(), depth + sequences);
    let each = &ids[depth..];
    let mut sampler = Sampler::new(&Sampling::default())?;
    let (mut seconds, mut first) = (Vec::new(), f64::INFINITY);
    for sequence in 0..sequences {
        group.truncate(sequence, 0);
        if depth > 0 {
            group.prefill(sequence, &ids[..depth])?;
        }
    }
    for _ in 0..=args.repeat {
        (0..sequences).for_each(|s| group.truncate(s, depth));
        let start = Instant::now();
        group.feed_each(each)?;
        first = first.min(start.elapsed().as_secs_f64());
        let start = Instant::now();
        for _ in 0..tokens {
            group.step(&mut sampler)?;
        }
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.remove(0);
    (0..sequences).for_each(|s| group.truncate(s, depth + 1 + tokens / 2));
    let encode = encode_time(|| group.encode_time(each))? / sequences as f64;
    let kernels = kernels::measure(args, || group.profile(each))?;
    Ok(Row {
        test: name("tg", tokens, depth, sequences),
        sequences,
        tokens: tokens * sequences,
        seconds,
        traffic: decode_traffic(group.plan(), sequences, depth + 1, tokens),
        launches: group.plan().launches.len() as f64 / sequences as f64,
        encode,
        first,
        device_bytes: (model.weights().bytes() + group.bytes()) as f64,
        host_bytes: host::peak_memory(),
        kernels,
    })
}
