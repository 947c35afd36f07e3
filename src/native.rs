//! What only native platforms have, in one place: threads, and stacks of a size. The rest of the engine does
//! without, so that it can run in a browser.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// Applies `work` to all of `items`, on as many threads as there are cores.
pub fn parallel<I: Copy + Sync + Send, O: Send>(items: &[I], work: impl Fn(&I) -> O + Sync) -> Vec<(I, O)> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    if threads <= 1 {
        return items.iter().map(|item| (*item, work(item))).collect();
    }
    let work = &work;
    std::thread::scope(|scope| {
        let run = |chunk| {
            scope.spawn(move || -> Vec<(I, O)> {
                let chunk: &[I] = chunk;
                chunk.iter().map(|item| (*item, work(item))).collect()
            })
        };
        let handles: Vec<_> = items.chunks(items.len().div_ceil(threads)).map(run).collect();
        handles.into_iter().filter_map(|h| h.join().ok()).flatten().collect()
    })
}

/// Why work has no result.
pub enum Unfinished {
    /// It takes longer than it may, and goes on by itself.
    Late,
    /// There is no thread for it, or it did not come to an end.
    Failed,
}

/// Runs `work` with a stack of `size` bytes, of which only what is used takes memory, for no longer than `limit`. A
/// browser has no such threads: deep work traps there, and long work takes its time.
pub fn with_stack<T: Send + 'static>(
    size: usize,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    if cfg!(target_family = "wasm") {
        return Ok(work());
    }
    let (sender, receiver) = mpsc::channel();
    // Nobody may be there any more to take the result.
    let thread = std::thread::Builder::new().stack_size(size).spawn(move || drop(sender.send(work())));
    thread.map_err(|_| Unfinished::Failed)?;
    receiver.recv_timeout(limit).map_err(|error| match error {
        RecvTimeoutError::Timeout => Unfinished::Late,
        RecvTimeoutError::Disconnected => Unfinished::Failed,
    })
}
