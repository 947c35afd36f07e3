//! What holds for all sizes, batches and orders of work, tried on random ones: the same in every run, and made
//! smaller where one fails.

#[path = "support/rig.rs"]
mod rig;
mod support;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rig::{Rig, matrix, vector};
use support::tiny::{Tiny, VOCAB};
use support::{assert_close, gpu, greedy, load, max_error, session, session_options};
use wgllama::caps::AdapterKind;
use wgllama::graph::reference::Reference;
use wgllama::graph::{Batch, Graph, Rope};
use wgllama::plan::{PlanOptions, lower};
use wgllama::{Activations, Caps, Context, ContextOptions, KvFormat, Model, WeightFormat};

/// Runs `test` on `cases` values of `strategy`.
fn property<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    TestRunner::new_with_rng(config, random).run(strategy, test).unwrap_or_else(|e| panic!("{e}"));
}

fn tiny_model(gpu: &Context) -> Model {
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write(folder.path()).unwrap();
    load(gpu, folder.path())
}

/// Ids of a text.
fn ids(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..VOCAB as u32, length)
}

/// Two ways to the same logits differ by roundings of their sums (docs/NUMERICS.md).
const ROUNDINGS: f32 = 1e-4;

/// Products of any sizes, with the kernels of CPUs and of GPUs.
#[test]
fn odd_sizes_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    let formats = [WeightFormat::F32, WeightFormat::F16, WeightFormat::Q8_0, WeightFormat::Q4_0];
    let sizes = (1usize..40, 1usize..90, 1usize..200, 0..formats.len(), any::<bool>(), any::<bool>());
    property(12, &sizes, |(tokens, rows, cols, format, bias, as_gpu)| {
        let kind = if as_gpu { AdapterKind::Discrete } else { gpu.caps().kind };
        let caps = Caps { kind, ..gpu.caps().clone() };
        let mut graph = Graph::new(Rope::plain(1e4, 2));
        let table = graph.weight(matrix("table", 11, cols)).unwrap();
        let w = graph.weight(matrix("w", rows, cols)).unwrap();
        let bias = bias.then(|| graph.vector(vector("bias", rows)));
        let x = graph.embed("x", table);
        graph.linear("y", x, w, bias).unwrap();
        let rig = Rig::new(graph, formats[format], 7);
        let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 5 % 11).collect();
        let batch = Batch::sequence(&ids, 0, 0).with_all_outputs();
        let options =
            PlanOptions { activations: Activations::F32, ..PlanOptions::new(tokens, tokens, KvFormat::F32) };
        let plan = lower(&rig.graph, &rig.layouts(&caps), &caps, &options).unwrap();
        let found = rig.run(&gpu, &caps, &plan, std::slice::from_ref(&batch), 64);
        let expected = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap().logits(&batch).unwrap();
        let (error, _) = max_error(&found, &expected);
        prop_assert!(error <= 2e-4, "{tokens} x {rows} x {cols} {}: off by {error}", formats[format]);
        Ok(())
    });
}

/// Sequences of any lengths, together and alone.
#[test]
fn ragged_batches_equal_their_sequences_alone() {
    let Some(gpu) = gpu() else { return };
    let model = tiny_model(&gpu);
    let options = session_options(KvFormat::F32, 128, 16);
    property(8, &prop::collection::vec(ids(1..70), 1..5), |prompts| {
        let mut group = model.group(&options, prompts.len()).unwrap();
        for (sequence, prompt) in prompts.iter().enumerate() {
            group.prefill(sequence, prompt).unwrap();
        }
        let mut sampler = wgllama::Sampler::new(&wgllama::Sampling::default()).unwrap();
        let steps: Vec<Vec<_>> = (0..5).map(|_| group.step(&mut sampler).unwrap()).collect();
        for (sequence, prompt) in prompts.iter().enumerate() {
            let mut alone = session(&model, KvFormat::F32, 128, 16);
            let expected = greedy(&mut alone, prompt, 5);
            let found: Vec<u32> = steps.iter().filter_map(|step| step[sequence]).collect();
            prop_assert_eq!(found, expected);
            let (error, _) = max_error(group.logits(sequence).unwrap(), alone.logits().unwrap());
            prop_assert!(error <= ROUNDINGS, "off by {error}");
        }
        Ok(())
    });
}

/// What happens to a text.
#[derive(Debug, Clone)]
enum Edit {
    Feed(Vec<u32>),
    Truncate(usize),
    /// To another sequence, which goes on.
    Fork,
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = prop_oneof![
        3 => ids(1..30).prop_map(Edit::Feed),
        1 => (0usize..60).prop_map(Edit::Truncate),
        1 => Just(Edit::Fork),
    ];
    prop::collection::vec(edit, 1..6)
}

/// Does `edits` to sequences of a group, and answers the text that is left and the logits after it.
fn edited(model: &Model, kv: KvFormat, edits: &[Edit]) -> (Vec<u32>, Vec<f32>) {
    let mut group = model.group(&session_options(kv, 256, 16), 2).unwrap();
    let mut text: Vec<u32> = Vec::new();
    let mut here = 0;
    for edit in edits {
        match edit {
            Edit::Feed(ids) => {
                group.prefill(here, ids).unwrap();
                text.extend(ids);
            }
            Edit::Truncate(len) => {
                group.truncate(here, *len);
                text.truncate(*len);
            }
            Edit::Fork => {
                group.fork(here, 1 - here).unwrap();
                // What becomes of the other is nothing to this one.
                group.prefill(here, &[1, 2, 3]).unwrap();
                here = 1 - here;
            }
        }
        assert_eq!(group.ids()[here], text);
    }
    group.prefill(here, &[5]).unwrap();
    text.push(5);
    (text, group.logits(here).unwrap().to_vec())
}

/// A text that was cut, forked and gone on with, in pages that others had before, is as a fresh one; and the same
/// twice, to the bit.
#[test]
fn edited_texts_equal_fresh_ones_and_repeat_to_the_bit() {
    let Some(gpu) = gpu() else { return };
    let models = [
        tiny_model(&gpu),
        // Layers with windows, whose pages are used in turn.
        load(&gpu, &std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families/starcoder2")),
    ];
    for model in &models {
        property(8, &edits(), |edits| {
            let vocab = model.config().vocab_size as u32;
            let edits: Vec<Edit> = edits
                .into_iter()
                .map(|edit| match edit {
                    Edit::Feed(ids) => Edit::Feed(ids.into_iter().map(|id| id % vocab).collect()),
                    other => other,
                })
                .collect();
            let (text, found) = edited(model, KvFormat::F32, &edits);
            let mut fresh = session(model, KvFormat::F32, 256, 16);
            fresh.prefill(&text).unwrap();
            let (error, _) = max_error(&found, fresh.logits().unwrap());
            prop_assert!(error <= ROUNDINGS, "{edits:?}: off by {error}");
            for kv in [KvFormat::F32, KvFormat::Q8_0] {
                prop_assert_eq!(edited(model, kv, &edits), edited(model, kv, &edits));
            }
            Ok(())
        });
    }
}

/// One token at a time, in any steps, and all at once.
#[test]
fn decoding_equals_reading_a_prompt() {
    let Some(gpu) = gpu() else { return };
    let model = tiny_model(&gpu);
    property(6, &(ids(2..100), 2usize..40), |(ids, chunk)| {
        let all = |chunk| session(&model, KvFormat::F32, 128, chunk).prefill_all(&ids).unwrap();
        let (one, some, whole) = (all(1), all(chunk), all(128));
        assert_close("one at a time", &one, &whole, ROUNDINGS);
        assert_close("some at a time", &some, &whole, ROUNDINGS);
        Ok(())
    });
}

/// Bounds that a compiler adds change nothing: our own indices stay inside.
#[test]
fn checked_and_unchecked_modules_agree() {
    let Some(gpu) = gpu() else { return };
    let checked = Context::new(&ContextOptions { checked: true, ..support::device() }).unwrap();
    let (model, other) = (tiny_model(&gpu), tiny_model(&checked));
    property(4, &ids(1..100), |ids| {
        for kv in [KvFormat::F16, KvFormat::Q4_0] {
            let run = |model| session(model, kv, 128, 16).prefill_all(&ids).unwrap();
            prop_assert_eq!(run(&model), run(&other));
        }
        Ok(())
    });
}
