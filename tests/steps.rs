//! What a step costs the host: nothing is made on the device, and nothing grows, however many
//! steps are run.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use support::tiny::Tiny;
use support::{gpu, load};
use wgllama::{Sampling, SessionOptions};

/// Counts what every thread takes from the heap.
struct Counting;

static LIVE: AtomicI64 = AtomicI64::new(0);
static TAKEN: AtomicU64 = AtomicU64::new(0);

#[expect(unsafe_code, reason = "an allocator is unsafe by its nature; this one only counts")]
// SAFETY: every call is handed on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as i64, Relaxed);
        TAKEN.fetch_add(1, Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as i64, Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

/// The only test of this file: others beside it would take from the same heap.
#[test]
fn steps_make_nothing_and_nothing_grows() {
    let Some(gpu) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write(folder.path()).unwrap();
    // Without a tokenizer no token ends the text, and none becomes text.
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let model = load(&gpu, folder.path());
    let options = SessionOptions { context: Some(512), ..Default::default() };
    let mut session = model.session(&options).unwrap();
    let sampling = Sampling { temperature: 0.8, top_k: 20, frequency_penalty: 0.1, ..Sampling::default() };
    let mut stream = session.generate_ids(&[1, 70, 71], &sampling.max_tokens(480)).unwrap();
    // The least that was live after any of `n` steps, and how often the heap was taken from: wgpu
    // holds some bytes for what is under way, more or fewer at each moment, and gives them back.
    let mut steps = |n: usize| {
        let taken = TAKEN.load(Relaxed);
        let least = (0..n).map(|_| {
            stream.next().unwrap().unwrap();
            LIVE.load(Relaxed)
        });
        (least.min().unwrap(), TAKEN.load(Relaxed) - taken)
    };
    steps(64);
    let created = gpu.created();
    let (early, taken) = steps(96);
    steps(208);
    let (late, taken_later) = steps(96);
    assert_eq!(gpu.created(), created, "buffers, bind groups or pipelines of a step");
    // The two moments may differ by a submission's bookkeeping, about 5 KB. Whatever a step kept
    // would be kept 304 times.
    assert!(late - early < 304 * 64, "304 steps keep {} bytes", late - early);
    // wgpu takes a command encoder's parts from the heap and gives them back, the same each step.
    assert!(taken_later <= taken + taken / 2, "{taken} times in 96 steps, {taken_later} in 96 later ones");
}
