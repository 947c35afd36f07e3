//! The cache of keys and values: per layer two buffers of pages on the device, shared by one
//! or several sequences, and the page table of each.

use crate::caps::AdapterKind;
use crate::dtype::KvFormat;
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Context};
use crate::graph::{Graph, Heads};
use crate::host;
use crate::kernels::{PAGE, ring_pages};
use crate::shape::stored_head_dim;

/// A cache for sequences of up to `capacity` tokens each.
pub struct KvCache {
    /// Keys by layer: `[pages, kv_heads, PAGE, head_dim]`.
    pub keys: Vec<Buffer>,
    /// Values by layer, likewise.
    pub values: Vec<Buffer>,
    /// Entries of a page table.
    pub pages: usize,
    /// Pages that each layer has for a sequence: as many, or fewer that are used in turn.
    layer_pages: Vec<usize>,
    tables: Vec<Vec<u32>>,
    /// Entries of each table that are in use.
    used: Vec<usize>,
    free: Vec<u32>,
    capacity: usize,
    /// Of layers whose pages are used in turn: the window, and the positions that they hold.
    rings: Vec<(usize, usize)>,
    /// Positions below this were written since a sequence began.
    written: Vec<usize>,
}

/// Bytes of one layer's keys for one token.
fn row_bytes(heads: Heads, kv: KvFormat) -> u64 {
    (heads.kv_heads * kv.head_bytes(stored_head_dim(heads.head_dim))) as u64
}

/// Bytes of the cache per token, over all layers, keys and values, as long as it fills no window.
pub fn bytes_per_token(caches: &[Heads], kv: KvFormat) -> u64 {
    caches.iter().map(|&h| 2 * row_bytes(h, kv)).sum()
}

/// Bytes of a cache for `sequences` sequences of `capacity` tokens each, where layers with windows hold
/// `slack` positions more than these.
pub fn cache_bytes(graph: &Graph, kv: KvFormat, sequences: usize, capacity: usize, slack: usize) -> u64 {
    let layer = |(i, heads): (usize, &Heads)| {
        let pages = sequences * pages_of(graph, i, capacity, slack);
        ((pages * PAGE) as u64).saturating_mul(2 * row_bytes(*heads, kv))
    };
    graph.caches.iter().enumerate().map(layer).fold(0, u64::saturating_add)
}

/// Pages of a layer for one sequence.
fn pages_of(graph: &Graph, layer: usize, capacity: usize, slack: usize) -> usize {
    ring_pages(graph.window(layer), slack, capacity).unwrap_or(capacity.div_ceil(PAGE))
}

impl KvCache {
    /// Allocates a cache for `sequences` sequences of `capacity` tokens each. Layers with windows hold
    /// `slack` positions more than these.
    pub fn new(
        context: &Context,
        graph: &Graph,
        kv: KvFormat,
        sequences: usize,
        capacity: usize,
        slack: usize,
    ) -> Result<Self> {
        let caches = &graph.caches;
        let pages = capacity.div_ceil(PAGE);
        let all = sequences * pages;
        check(context, graph, kv, sequences, capacity, slack)?;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (i, &heads) in caches.iter().enumerate() {
            let pages = sequences * pages_of(graph, i, capacity, slack);
            let bytes = (pages * PAGE) as u64 * row_bytes(heads, kv);
            // As many layers as were allocated before a failure tell what would fit.
            let help = would_fit(capacity * i / caches.len());
            keys.push(context.buffer(&format!("the keys of layer {i}"), bytes, &help)?);
            values.push(context.buffer(&format!("the values of layer {i}"), bytes, &help)?);
        }
        let ring = |layer| {
            let window = graph.window(layer);
            ring_pages(window, slack, capacity).zip(window).map(|(pages, window)| (window, pages * PAGE))
        };
        let mut rings: Vec<_> = (0..caches.len()).filter_map(ring).collect();
        rings.sort_unstable();
        rings.dedup();
        Ok(Self {
            rings,
            layer_pages: (0..caches.len()).map(|i| pages_of(graph, i, capacity, slack)).collect(),
            written: vec![0; sequences],
            keys,
            values,
            pages,
            tables: vec![vec![0; pages]; sequences],
            used: vec![0; sequences],
            // Taken from the end: pages are handed out in no particular order, and nothing
            // may depend on one.
            free: (0..all as u32).collect(),
            capacity,
        })
    }

    /// Tokens of a sequence that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.keys.iter().chain(&self.values).map(Buffer::size).sum()
    }

    /// The page tables by sequence slot.
    pub fn tables(&self) -> &[Vec<u32>] {
        &self.tables
    }

    /// Makes sure that positions below `tokens` of a sequence have pages.
    pub fn reserve(&mut self, sequence: usize, tokens: usize) -> Result<()> {
        if tokens > self.capacity {
            return Err(Error::ContextFull { max: self.capacity });
        }
        self.written[sequence] = self.written[sequence].max(tokens);
        let used = &mut self.used[sequence];
        while *used * PAGE < tokens {
            let page = self.free.pop().ok_or(Error::ContextFull { max: self.capacity })?;
            self.tables[sequence][*used] = page;
            *used += 1;
        }
        Ok(())
    }

    /// Gives back the pages of a sequence that hold no position below `tokens`. Answers how many
    /// tokens it still knows: `tokens`, or none where what a window now shows was overwritten by what
    /// followed.
    #[must_use]
    pub fn truncate(&mut self, sequence: usize, tokens: usize) -> usize {
        let keep = tokens.div_ceil(PAGE);
        let used = &mut self.used[sequence];
        while *used > keep {
            *used -= 1;
            self.free.push(self.tables[sequence][*used]);
        }
        // The next token sees this position and those after it.
        let shows = |window: usize| (tokens + 1).saturating_sub(window);
        let known = |&(window, holds): &(usize, usize)| self.written[sequence] <= shows(window) + holds;
        if tokens > 0 && self.rings.iter().all(known) {
            return tokens;
        }
        self.written[sequence] = 0;
        0
    }
}

/// Keys and values of `pages` pages for each layer, for running a plan on its first positions.
pub fn some_pages(context: &Context, graph: &Graph, kv: KvFormat, pages: usize) -> Result<[Vec<Buffer>; 2]> {
    let layer =
        |heads: &Heads| context.buffer("a trial's cache", (pages * PAGE) as u64 * row_bytes(*heads, kv), "");
    let all = || graph.caches.iter().map(layer).collect::<Result<Vec<_>>>();
    Ok([all()?, all()?])
}

impl KvCache {
    /// Gives sequence `to`, which is empty, what `from` holds for its first `tokens` positions.
    pub fn fork(&mut self, context: &Context, from: usize, to: usize, tokens: usize) -> Result<()> {
        self.reserve(to, tokens)?;
        self.written[to] = self.written[from];
        let pages = 0..tokens.div_ceil(PAGE);
        let tables: Vec<_> = pages.map(|n| [from, to].map(|s| self.tables[s][n] as usize)).collect();
        for (layer, &own) in self.layer_pages.iter().enumerate() {
            let rings: Vec<_> = (0..own).map(|n| [from, to].map(|s| s * own + n)).collect();
            let pairs = if own < self.pages { &rings } else { &tables };
            for buffer in [&self.keys[layer], &self.values[layer]] {
                let bytes = buffer.size() / (self.tables.len() * own) as u64;
                let pieces: Vec<_> =
                    pairs.iter().map(|pair| (pair[0] as u64 * bytes, pair[1] as u64 * bytes)).collect();
                context.copy_within(buffer, bytes, &pieces)?;
            }
        }
        Ok(())
    }
}

/// Refuses a context that can't fit, and says what would.
fn check(
    context: &Context,
    graph: &Graph,
    kv: KvFormat,
    sequences: usize,
    capacity: usize,
    slack: usize,
) -> Result<()> {
    let caps = context.caps();
    // What grows with the context.
    let whole = |i: &usize| ring_pages(graph.window(*i), slack, capacity).is_none();
    let caches: Vec<Heads> = (0..graph.caches.len()).filter(whole).map(|i| graph.caches[i]).collect();
    let caches = &caches;
    let widest = caches.iter().map(|&h| row_bytes(h, kv)).max().unwrap_or(0);
    let mut limits = vec![("the keys of one layer", widest, caps.max_storage_binding.min(caps.max_buffer))];
    // Other adapters' free memory is not told; a software adapter's is the machine's.
    if let Some(available) = host::available_memory().filter(|_| caps.kind == AdapterKind::Cpu) {
        limits.push(("the cache", bytes_per_token(caches, kv), available));
    }
    let tokens = (sequences * capacity.div_ceil(PAGE) * PAGE) as u64;
    let Some(&(what, bytes, limit)) = limits.iter().find(|(_, bytes, limit)| tokens * bytes > *limit) else {
        return Ok(());
    };
    let fits = limits.iter().map(|(_, bytes, limit)| limit / (*bytes).max(1)).min().unwrap_or(0);
    Err(Error::OutOfMemory {
        what: match sequences {
            1 => format!("{what} of a context of {capacity} tokens"),
            _ => format!("{what} of {sequences} contexts of {capacity} tokens"),
        },
        need: tokens * bytes,
        limit,
        help: would_fit(fits as usize / sequences.max(1)),
    })
}

/// Advice for when a context does not fit.
fn would_fit(tokens: usize) -> String {
    match tokens / PAGE * PAGE {
        0 => "no context fits: choose a smaller model or another device".to_string(),
        tokens => format!("a context of {tokens} tokens would fit (--ctx {tokens})"),
    }
}
