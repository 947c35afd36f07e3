//! The cache of keys and values: per layer two buffers of pages on the device, shared by one
//! or several sequences, and the page table of each.

use crate::caps::AdapterKind;
use crate::dtype::KvFormat;
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Context};
use crate::graph::Heads;
use crate::host;
use crate::kernels::PAGE;
use crate::shape::stored_head_dim;

/// A cache for sequences of up to `capacity` tokens each.
pub struct KvCache {
    /// Keys by layer: `[pages, kv_heads, PAGE, head_dim]`.
    pub keys: Vec<Buffer>,
    /// Values by layer, likewise.
    pub values: Vec<Buffer>,
    /// Entries of a page table.
    pub pages: usize,
    tables: Vec<Vec<u32>>,
    /// Entries of each table that are in use.
    used: Vec<usize>,
    free: Vec<u32>,
    capacity: usize,
}

/// Bytes of one layer's keys for one token.
fn row_bytes(heads: Heads, kv: KvFormat) -> u64 {
    (heads.kv_heads * kv.head_bytes(stored_head_dim(heads.head_dim))) as u64
}

/// Bytes of the cache per token, over all layers, keys and values.
pub fn bytes_per_token(caches: &[Heads], kv: KvFormat) -> u64 {
    caches.iter().map(|&h| 2 * row_bytes(h, kv)).sum()
}

impl KvCache {
    /// Allocates a cache for `sequences` sequences of `capacity` tokens each.
    pub fn new(
        context: &Context,
        caches: &[Heads],
        kv: KvFormat,
        sequences: usize,
        capacity: usize,
    ) -> Result<Self> {
        let pages = capacity.div_ceil(PAGE);
        let all = sequences * pages;
        check(context, caches, kv, sequences, capacity)?;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (i, &heads) in caches.iter().enumerate() {
            let bytes = (all * PAGE) as u64 * row_bytes(heads, kv);
            // As many layers as were allocated before a failure tell what would fit.
            let help = would_fit(capacity * i / caches.len());
            keys.push(context.buffer(&format!("the keys of layer {i}"), bytes, &help)?);
            values.push(context.buffer(&format!("the values of layer {i}"), bytes, &help)?);
        }
        Ok(Self {
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
        let used = &mut self.used[sequence];
        while *used * PAGE < tokens {
            let page = self.free.pop().ok_or(Error::ContextFull { max: self.capacity })?;
            self.tables[sequence][*used] = page;
            *used += 1;
        }
        Ok(())
    }

    /// Gives back the pages of a sequence that hold no position below `tokens`.
    pub fn truncate(&mut self, sequence: usize, tokens: usize) {
        let keep = tokens.div_ceil(PAGE);
        let used = &mut self.used[sequence];
        while *used > keep {
            *used -= 1;
            self.free.push(self.tables[sequence][*used]);
        }
    }
}

/// Refuses a context that can't fit, and says what would.
fn check(context: &Context, caches: &[Heads], kv: KvFormat, sequences: usize, capacity: usize) -> Result<()> {
    let caps = context.caps();
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
