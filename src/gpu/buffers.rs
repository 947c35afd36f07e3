//! Buffers: allocation with named errors, upload, and reading back.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use crate::error::{Error, Result};
use crate::gpu::context::{Context, lock};
use crate::gpu::executable::View;

/// Bytes in the device's memory.
#[derive(Debug, Clone)]
pub struct Buffer {
    pub(super) raw: wgpu::Buffer,
    _share: Arc<Share>,
}

/// Bytes that buffers take of what the device may give.
#[derive(Debug, Clone)]
pub struct Memory {
    used: Arc<AtomicU64>,
    limit: u64,
}

/// A buffer's part of it, given back with the last handle to the buffer.
#[derive(Debug)]
struct Share {
    memory: Memory,
    bytes: u64,
}

impl Memory {
    pub fn new(limit: Option<u64>) -> Self {
        Self { used: Arc::default(), limit: limit.unwrap_or(u64::MAX) }
    }

    /// Takes `bytes`, or says how many are left.
    fn take(&self, bytes: u64) -> Result<Share, u64> {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let share = Share { memory: self.clone(), bytes };
        if before.saturating_add(bytes) > self.limit {
            Err(self.limit.saturating_sub(before))
        } else {
            Ok(share)
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Buffer {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.raw.size()
    }
}

/// What an upload may leave waiting in host memory, in bytes.
const UPLOAD_WINDOW: u64 = 32 << 20;

impl Context {
    /// A zeroed buffer of `bytes` (rounded up to 16) that kernels can read and write.
    ///
    /// `what` names it in errors, `help` says what would need less.
    pub fn buffer(&self, what: &str, bytes: u64, help: &str) -> Result<Buffer> {
        use wgpu::BufferUsages as Usage;
        let usage = Usage::STORAGE | Usage::UNIFORM | Usage::COPY_DST | Usage::COPY_SRC;
        self.allocate(what, bytes, usage, help)
    }

    /// A buffer for reading `bytes` back.
    pub(super) fn staging(&self, what: &str, bytes: u64) -> Result<Buffer> {
        self.allocate(
            what,
            bytes,
            wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            "ask for fewer logits",
        )
    }

    fn allocate(&self, what: &str, bytes: u64, usage: wgpu::BufferUsages, help: &str) -> Result<Buffer> {
        let size = bytes.max(16).next_multiple_of(16);
        let too_large =
            |limit| Error::OutOfMemory { what: what.to_string(), need: size, limit, help: help.to_string() };
        if size > self.caps().max_buffer {
            return Err(too_large(self.caps().max_buffer));
        }
        let share = self.memory().take(size).map_err(too_large)?;
        let memory = self.device().push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = self.device().push_error_scope(wgpu::ErrorFilter::Validation);
        let raw = self.creator().create_buffer(&wgpu::BufferDescriptor {
            label: Some(what),
            size,
            usage,
            mapped_at_creation: false,
        });
        let invalid = pollster::block_on(validation.pop());
        if pollster::block_on(memory.pop()).is_some() {
            return Err(too_large(0));
        }
        if let Some(error) = invalid {
            return Err(Error::Gpu { message: format!("{what}: {error}") });
        }
        self.check()?;
        Ok(Buffer { raw, _share: Arc::new(share) })
    }

    /// Writes `bytes` (a multiple of 4) at `offset`.
    pub fn write(&self, buffer: &Buffer, offset: u64, bytes: &[u8]) {
        self.queue().write_buffer(&buffer.raw, offset, bytes);
    }

    /// Fills `len` bytes of `target` from `offset` on with repetitions of `pattern`, on the
    /// device.
    pub fn repeat(&self, target: &Buffer, offset: u64, len: u64, pattern: &Buffer) {
        let mut encoder = self.device().create_command_encoder(&Default::default());
        let mut at = 0;
        while at < len {
            let bytes = pattern.size().min(len - at);
            encoder.copy_buffer_to_buffer(&pattern.raw, 0, &target.raw, offset + at, bytes);
            at += bytes;
        }
        self.queue().submit([encoder.finish()]);
    }

    /// Copies pieces of `bytes` bytes inside of a buffer: from where, and to where.
    pub fn copy_within(&self, buffer: &Buffer, bytes: u64, pieces: &[(u64, u64)]) -> Result<()> {
        // No copy may have one buffer for both of its ends.
        let between = self.buffer("a copy", bytes * pieces.len() as u64, "give up sequences")?;
        let mut encoder = self.device().create_command_encoder(&Default::default());
        for (i, (from, _)) in pieces.iter().enumerate() {
            encoder.copy_buffer_to_buffer(&buffer.raw, *from, &between.raw, i as u64 * bytes, bytes);
        }
        for (i, (_, to)) in pieces.iter().enumerate() {
            encoder.copy_buffer_to_buffer(&between.raw, i as u64 * bytes, &buffer.raw, *to, bytes);
        }
        self.queue().submit([encoder.finish()]);
        self.check()
    }

    /// Writes parts of buffers one after the other without piling them up in host memory.
    pub fn uploader(&self) -> Uploader<'_> {
        Uploader { context: self, waiting: 0 }
    }

    /// Copies `words` 32-bit words from the start of `source` into host memory.
    pub async fn read(&self, source: &Buffer, words: usize) -> Result<Vec<u32>> {
        let bytes = (words * 4) as u64;
        let staging = self.staging("a read-back", bytes)?;
        let mut encoder = self.device().create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&source.raw, 0, &staging.raw, 0, bytes);
        self.queue().submit([encoder.finish()]);
        let mut out = vec![0u32; words];
        self.map(&staging, bytes, |view| bytemuck::cast_slice_mut(&mut out).copy_from_slice(view)).await?;
        Ok(out)
    }

    /// Copies pieces of views into host memory, each from a byte on, and so many bytes (multiples of 4).
    pub async fn read_views(&self, pieces: &[(&View, u64, u64)]) -> Result<Vec<Vec<u8>>> {
        let total: u64 = pieces.iter().map(|(.., bytes)| bytes).sum();
        let staging = self.staging("a read-back", total)?;
        let mut encoder = self.device().create_command_encoder(&Default::default());
        let mut to = 0;
        for (view, from, bytes) in pieces {
            if from + bytes > view.size {
                let message = format!("bytes {from} to {} of {}", from + bytes, view.size);
                return Err(Error::shape("a read-back", message));
            }
            encoder.copy_buffer_to_buffer(&view.buffer.raw, view.offset + from, &staging.raw, to, *bytes);
            to += bytes;
        }
        self.queue().submit([encoder.finish()]);
        let mut out = Vec::with_capacity(pieces.len());
        let take = |mut view: &[u8]| {
            for (.., bytes) in pieces {
                let (piece, rest) = view.split_at(*bytes as usize);
                out.push(piece.to_vec());
                view = rest;
            }
        };
        self.map(&staging, total, take).await?;
        Ok(out)
    }

    /// Writes the start of a view.
    pub fn write_view(&self, view: &View, bytes: &[u8]) {
        self.write(&view.buffer, view.offset, bytes);
    }

    /// Maps the first `bytes` of a staging buffer and hands them to `take`.
    pub(super) async fn map(&self, staging: &Buffer, bytes: u64, take: impl FnOnce(&[u8])) -> Result<()> {
        type Answer = (Option<Result<(), wgpu::BufferAsyncError>>, Option<Waker>);
        let answer: Arc<Mutex<Answer>> = Arc::default();
        let sender = answer.clone();
        staging.raw.map_async(wgpu::MapMode::Read, 0..bytes, move |result| {
            let mut answer = lock(&sender);
            answer.0 = Some(result);
            if let Some(waker) = answer.1.take() {
                waker.wake();
            }
        });
        // Natively nothing happens unless the device is polled; in a browser it polls itself.
        self.wait()?;
        let mapped = poll_fn(|task| {
            let mut answer = lock(&answer);
            match answer.0.take() {
                Some(result) => Poll::Ready(result),
                None => {
                    answer.1 = Some(task.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        mapped.map_err(|e| self.failed("reading back", &e))?;
        let view = staging.raw.get_mapped_range(0..bytes).map_err(|e| self.failed("reading back", &e))?;
        take(&view);
        drop(view);
        staging.raw.unmap();
        Ok(())
    }
}

/// Uploads with a bound on what waits in host memory.
pub struct Uploader<'a> {
    context: &'a Context,
    waiting: u64,
}

impl Uploader<'_> {
    /// Writes `bytes` (a multiple of 4) at `offset`.
    pub fn write(&mut self, buffer: &Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        self.context.write(buffer, offset, bytes);
        self.waiting += bytes.len() as u64;
        if self.waiting > UPLOAD_WINDOW {
            self.flush()?;
        }
        Ok(())
    }

    /// Waits until all is on the device.
    pub fn flush(&mut self) -> Result<()> {
        self.waiting = 0;
        self.context.queue().submit([]);
        self.context.wait()
    }
}
