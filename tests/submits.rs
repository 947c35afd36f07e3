//! How long submits keep the device busy: a bound holds at a long context, and costs no bit of the result.

mod support;

use std::time::Duration;

use support::tiny::Tiny;
use support::{gpu, load, session_options};
use wgllama::{Context, ContextOptions, KvFormat};

/// The test device, whose submits take no longer than `bound`.
fn bounded(bound: Duration) -> Context {
    let device = std::env::var("WGLLAMA_TEST_DEVICE").ok();
    Context::new(&ContextOptions { device, longest_submit: Some(bound), ..Default::default() }).unwrap()
}

#[test]
fn submits_are_bounded_at_a_context_of_8k() {
    if gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write(folder.path()).unwrap();
    let ids: Vec<u32> = (0..8000).map(|i| 3 + i * 31 % 200).collect();
    let run = |bound: Duration| {
        let context = bounded(bound);
        let model = load(&context, folder.path());
        let mut session = model.session(&session_options(KvFormat::F16, 8192, 512)).unwrap();
        session.prefill(&ids).unwrap();
        (context.submits(), session.logits().unwrap().to_vec())
    };
    let (free, expected) = run(Duration::from_secs(60));
    println!("unbounded: {free:?}");
    // What is the default, or less where the machine does not need a bound.
    let bound = Duration::from_secs_f64((free.longest / 3.0).min(0.2));
    let (submits, logits) = run(bound);
    println!("bound {bound:?}: {submits:?}");
    // Steps and submits are cut at other places, and nothing else changes.
    assert_eq!(logits, expected);
    // Another process may take the cores of a software adapter for a while: of one submit, or two.
    assert!(submits.over * 20 <= submits.count, "bound {bound:?}: {submits:?}");
}
