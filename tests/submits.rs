//! How long submits keep the device busy: a bound holds at a long context, and costs no bit of the result.

mod support;

use std::time::{Duration, Instant};

use support::tiny::Tiny;
use support::{gpu, load, session_options};
use wgllama::{Context, ContextOptions, KvFormat, Sampling};

/// The test device, whose submits take no longer than `bound`.
fn bounded(bound: Duration) -> Context {
    Context::new(&ContextOptions { longest_submit: Some(bound), ..support::device() }).unwrap()
}

/// The tiny model, where there is a device to run it.
fn tiny() -> Option<tempfile::TempDir> {
    gpu()?;
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write(folder.path()).unwrap();
    Some(folder)
}

#[test]
fn submits_are_bounded_at_a_context_of_8k() {
    let Some(folder) = tiny() else { return };
    let ids: Vec<u32> = (0..8000).map(|i| 3 + i * 31 % 200).collect();
    let run = |bound: Duration| {
        let context = bounded(bound);
        let model = load(&context, folder.path());
        let mut session = model.session(&session_options(KvFormat::F16, 8192, 512)).unwrap();
        let start = Instant::now();
        session.prefill(&ids).unwrap();
        (start.elapsed(), context.submits(), session.logits().unwrap().to_vec())
    };
    // A step of 512 tokens is one submit then.
    let (took, _, expected) = run(Duration::from_secs(60));
    let free = took / 16;
    // What is the default, or less where the machine does not need a bound.
    let bound = (free / 3).clamp(Duration::from_millis(1), Duration::from_millis(200));
    let (_, submits, logits) = run(bound);
    println!("{free:?} a submit; with a bound of {bound:?}: {submits:?}");
    // Steps and submits are cut at other places, and nothing else changes.
    assert_eq!(logits, expected);
    if bound < Duration::from_millis(20) {
        println!("the device is too fast to be bounded by so small a model");
        return;
    }
    // Another process may take the cores of a software adapter for a while: of one submit, or two.
    assert!(submits.over * 20 <= submits.count, "bound {bound:?}: {submits:?}");
}

#[test]
fn tokens_are_not_kept_back_by_long_steps() {
    let Some(folder) = tiny() else { return };
    // So short that each launch is a submit that is waited for.
    let context = bounded(Duration::from_micros(1));
    let model = load(&context, folder.path());
    let mut session = model.session(&session_options(KvFormat::F16, 64, 8)).unwrap();
    let submits: Vec<usize> = session
        .generate_ids(&[3, 34, 65], &Sampling::default().max_tokens(5))
        .unwrap()
        .filter_map(|piece| piece.unwrap().id.map(|_| context.submits().count))
        .collect();
    assert_eq!(submits.len(), 5);
    // One step for each, the last one too: none was fed ahead.
    let steps: Vec<usize> = submits.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(steps[0] > 0 && steps.iter().all(|step| *step == steps[0]), "{submits:?}");
}

#[test]
fn steps_of_many_sequences_are_bounded() {
    let Some(folder) = tiny() else { return };
    let ids: Vec<u32> = (0..20).map(|i| 3 + i * 7).collect();
    let run = |bound: Duration| {
        let context = bounded(bound);
        let model = load(&context, folder.path());
        let mut group = model.group(&session_options(KvFormat::F16, 8, 8), ids.len()).unwrap();
        // The first step is measured.
        group.feed_each(&ids).unwrap();
        let before = context.submits().count;
        group.feed_each(&ids).unwrap();
        let logits: Vec<Vec<f32>> = (0..ids.len()).map(|s| group.logits(s).unwrap().to_vec()).collect();
        (context.submits().count - before, group.plan().launches.len(), logits)
    };
    let (_, launches, expected) = run(Duration::from_secs(60));
    let (submits, _, logits) = run(Duration::from_micros(1));
    assert!(submits >= 2 * launches, "{submits} submits of {launches} launches");
    assert_eq!(logits, expected);
}
