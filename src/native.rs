//! What only native platforms have, in one place: threads, and stacks of a size. The rest of the engine does
//! without, so that it can run in a browser.

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

/// Runs `work` with a stack of `size` bytes, of which only what is used takes memory. None if there is no
/// such stack, or if the work did not come to an end. A browser's stack is what it is: deep work traps.
pub fn with_stack<T: Send>(size: usize, work: impl FnOnce() -> T + Send) -> Option<T> {
    if cfg!(target_family = "wasm") {
        return Some(work());
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(size).spawn_scoped(scope, work);
        thread.ok()?.join().ok()
    })
}
