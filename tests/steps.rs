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
    let mut steps = |n: usize| {
        let (live, taken) = (LIVE.load(Relaxed), TAKEN.load(Relaxed));
        for _ in 0..n {
            stream.next().unwrap().unwrap();
        }
        (LIVE.load(Relaxed) - live, TAKEN.load(Relaxed) - taken)
    };
    steps(64);
    let created = gpu.created();
    let (grown, taken) = steps(64);
    let (grown_later, taken_later) = steps(256);
    assert_eq!(gpu.created(), created, "buffers, bind groups or pipelines of a step");
    // What is under way differs from moment to moment, by no more than this.
    assert!(grown < 2048 && grown_later < 2048, "bytes that 64 and 256 steps keep: {grown}, {grown_later}");
    // wgpu takes a command encoder's parts from the heap and gives them back, the same each step.
    assert!(taken_later <= 4 * taken + 64, "{taken} times in 64 steps, {taken_later} in 256");
}
